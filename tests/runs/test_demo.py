import json

import pytest
from support.compiling import few_devices
from support.tiny_runs import LOCALIZATION, tiny, tiny_probe

from cvsa_jax.runs import demo, pretrain


@pytest.mark.slow
def test_demo_end_to_end(tmp_path, capsys, quick_compilation):
    def get_config(arg):
        config = tiny(arg)
        config.total_steps = 4
        return config

    with few_devices(2, demo, pretrain):
        figures = demo.run_demo(tmp_path, get_config, tiny_probe())
    written = json.loads((tmp_path / "report" / "results.json").read_text())
    assert {"network_s", "probe_s", "maps_against_boxes_s"} <= written.pop("perf").keys()
    assert figures == written
    measured = {"linear_top1", "linear_top5", "linear_mean_class", "knn_top1", "knn_k", "map_at_r", "learning_rate"}
    measured |= {f"knn_top1_of_{k}" for k in tiny_probe().eval.knn}
    measured |= {f"{kind}_top1" for kind in ("as_it_is", "same_background", "other_background", "background_only")}
    measured |= {f"recall_at_{k}" for k in (1, 2, 4, 8)} | LOCALIZATION | {"background_gap"}
    maps = ("mean", "component", "cam", "grad_cam")
    measured |= {f"{kind}_{name}" for kind in maps for name in LOCALIZATION}
    assert all(figures[row].keys() == measured for row in ("random", "byol", "cvsa"))
    assert figures["chance"]["linear_top1"] == pytest.approx(1 / 3)
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") >= 5
    printed = capsys.readouterr().out
    assert "mask_head" in printed and str(tmp_path / "report" / "index.html") in printed
