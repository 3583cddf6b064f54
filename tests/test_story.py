"""The whole road in small: a folder of images, maps, training with an interruption, evaluation, export."""

import csv
import json

import jax
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image
from support.compiling import few_devices
from support.tiny_runs import LOCALIZATION, kill_at, tiny, tiny_probe

import cvsa_jax
from cvsa_jax import api, settings
from cvsa_jax.data.reading import load_image
from cvsa_jax.runs import compare, pretrain, saliency, weights
from cvsa_jax.saliency.registry import Options
from cvsa_jax.saliency.store import SaliencyStore
from cvsa_jax.training.log import read_metrics


@pytest.fixture
def folder(tmp_path):
    """Drawn birds as a user has them: folders of classes, masks, and a table of the splits."""
    drawn, root = settings.load_source(tiny().data), tmp_path / "birds"
    with_split = []
    for split in ("train", "test"):
        for i in drawn.split(split).tolist():
            name = f"{drawn.classes[drawn.labels[i]]}/{i:03d}.png"
            for kind, pixels in (("images", load_image(drawn, i)), ("masks", np.uint8(255) * (drawn.mask(i) > 0))):
                path = root / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
            with_split.append((name, split))
    with (root / "splits.csv").open("w", newline="") as table:
        csv.writer(table).writerows([("image", "split"), *with_split])
    return root


def test_images_become_maps_a_network_figures_and_files(tmp_path, folder, monkeypatch, quick_compilation, capsys):
    def with_folder(config):
        config.data.update(kind="folder", root=str(folder))
        return config

    config = with_folder(tiny())
    config.saliency.update(detector="rbd", store=str(tmp_path / "maps"))
    with few_devices(1, pretrain, compare, weights, api):
        saliency.make_store(config, "rbd", Options())
        source = cvsa_jax.load_source(config)
        maps = SaliencyStore(tmp_path / "maps", source)[np.arange(len(source))]
        on_object, elsewhere = np.zeros(2), np.zeros(2)
        for i, cells in enumerate(maps):
            inside = np.asarray(Image.fromarray(source.mask(i)).resize(cells.shape[::-1])) > 127
            on_object += cells[inside].sum(), inside.sum()
            elsewhere += cells[~inside].sum(), (~inside).sum()
        assert on_object[0] / on_object[1] > 1.5 * elsewhere[0] / elsewhere[1]

        workdir = tmp_path / "run"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            kill_at(patch, 8)
            pretrain.train(config, workdir)
        capsys.readouterr()
        pretrain.train(config, workdir)
        assert "step 5" in capsys.readouterr().out
        rows = read_metrics(workdir)
        assert [row["step"] for row in rows if "train/align" in row] == list(range(1, 11))
        assert all(np.isfinite(list(row.values())).all() for row in rows)

        compared = compare.compare_runs(with_folder(tiny_probe()), [f"ours={workdir}"], tmp_path / "compared")
        assert {"linear_top1", "knn_top1", "recall_at_1", *LOCALIZATION} <= compared["ours"].keys()
        assert json.loads((tmp_path / "compared" / "report" / "results.json").read_text())["ours"] == compared["ours"]

        weights.export_run(str(workdir), tmp_path / "exported", ("safetensors", "stablehlo"), "none")
        images = np.stack([load_image(source, i) for i in source.split("test")[:5].tolist()])
        features = cvsa_jax.load_backbone(str(workdir)).features(images)
        again = cvsa_jax.load_backbone(str(tmp_path / "exported" / "model.safetensors")).features(images)
        called = jax_export.deserialize(bytearray((tmp_path / "exported" / "model.stablehlo").read_bytes()))
    assert np.ptp(features, 0).max() > 0.01  # images differ, or the next two lines would show nothing
    np.testing.assert_allclose(again, features, atol=1e-5)
    np.testing.assert_allclose(jax.jit(called.call)(images), features, atol=1e-4)
