"""The study's book-keeping: what is done is not done again, and the tables say what the lines say."""

import csv
import dataclasses
import hashlib
import json
import statistics

import numpy as np
import pytest
from PIL import Image
from support.compiling import few_devices

from benchmarks import study, study_rows, study_tables
from cvsa_jax.saliency.store import open_store

SCALE = "depth=8,width=8,size=32,batch=8,steps=4"


def args(tmp_path=None, *more: str):
    return study.parser().parse_args([f"--out={tmp_path}", *more])


def line(row: str, seed: int, linear: float, name: str = "birds") -> dict:
    told = {"set": name, "suite": "core", "detector": "rbd", "on": "validation", "scale": "small"}
    figures = {key: linear + 0.1 * k for k, key in enumerate(study_tables.RECOGNITION)}
    return told | {"row": row, "seed": seed} | figures


def test_tables_pair_the_gains_by_seed():
    # The seeds differ by much, and the gain by little: unpaired it would drown.
    lines = [line("byol", s, 0.1 * s) for s in (1, 2, 3)] + [
        line("cvsa", s, 0.1 * s + 0.02 + 0.01 * (s == 2)) for s in (1, 2, 3)
    ]
    rows = {(row["row"], row["minus"], row["figure"]): row for row in study_tables.rows_of(lines)}
    plain, gain = rows["byol", "", "average_linear_top1"], rows["cvsa", "byol", "average_linear_top1"]
    # 4.30 is t of two degrees of freedom, 10 the deviation of 10, 20, 30.
    assert (plain["seeds"], plain["mean"], plain["half_interval"]) == (3, "20.0", f"{4.30 * 10 / 3**0.5:.1f}")
    gains = [0.02, 0.03, 0.02]
    half = 100 * 4.30 * statistics.stdev(gains) / 3**0.5
    assert (gain["seeds"], gain["mean"]) == (3, f"{100 * statistics.mean(gains):.1f}")
    assert gain["half_interval"] == f"{half:.1f}"


def test_tables_keep_data_sets_apart(tmp_path):
    study_tables.write([line("byol", 1, 0.5), line("byol", 1, 0.9, "cars")], tmp_path)
    with (tmp_path / "tables.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["figure"] == "average_linear_top1"]
    assert [(row["set"], row["seeds"], row["mean"]) for row in rows] == [("birds", "1", "50.0"), ("cars", "1", "90.0")]


def test_tables_leave_out_figures_missing_from_a_run():
    lines = [line("byol", 1, 0.5), line("byol", 1, 0.9, "cars")]
    del lines[0]["head_knn_top1"]
    named = {row["set"]: set() for row in study_tables.rows_of(lines)}
    for row in study_tables.rows_of(lines):
        named[row["set"]].add(row["figure"])
    assert named["cars"] == set(study_tables.RECOGNITION) == named["birds"] | {"head_knn_top1"}


def test_gains_picture_has_a_panel_for_each_scale(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(study_tables.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    lines = [line("byol", seed, 0.1) | {"scale": scale} for seed in (1, 2, 3) for scale in ("a", "b", "c")]
    lines += [line("cvsa", seed, 0.3) | {"scale": "b"} for seed in (1, 2, 3)]
    lines += [line("swap", seed, 0.15 if seed < 3 else 0.3) | {"scale": "c"} for seed in (1, 2, 3)]
    lines.append(line("cvsa", 1, 0.9) | {"scale": "a"})  # too few seeds
    study_tables.draw(lines, tmp_path / "gains.png")
    panels = {place.get_suptitle(): place.axes[0] for place in drawn[0].subfigs}
    points = {scale: axis.containers[0].lines[0].get_xdata() for scale, axis in panels.items()}
    rows = {scale: [label.get_text() for label in axis.get_yticklabels()] for scale, axis in panels.items()}
    assert rows == {"b": ["cvsa"], "c": ["swap"]}
    assert {scale: pytest.approx(list(x)) for scale, x in points.items()} == {"b": [20], "c": [10]}


def test_finished_rows_are_not_run_again(tmp_path, monkeypatch):
    trained = []

    def train(config, workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "health/align_gradient_share": 0.5}\n')
        trained.append(workdir.name)

    monkeypatch.setattr(study.pretrain, "train", train)
    monkeypatch.setattr(study, "measure", lambda source, origin, *how: {"average_linear_top1": 0.5})
    monkeypatch.setattr(study, "compute", lambda *args, **kwargs: None)
    monkeypatch.setattr(study, "build", lambda *args: None)
    suite = [row for row in study_rows.SUITES["core"] if row != "supervised"]  # it would have seen the labels
    study.Pair(args(tmp_path), "procedural", "", 0).run()
    assert trained[0].startswith("stage1") and len(trained) == len(suite)  # `stage1` is the first
    lines = study.lines(tmp_path)
    assert [entry["row"] for entry in lines] == suite
    assert all(
        entry.get("health/align_gradient_share") == (None if entry["row"] == "stage1" else 0.5) for entry in lines
    )
    # Killed before the last line was written, the same command does the last row alone; another seed does all.
    (tmp_path / study.LINES).write_text("".join(json.dumps(entry) + "\n" for entry in lines[:-1]))
    trained.clear()
    study.Pair(args(tmp_path), "procedural", "", 0).run()
    assert [name.split("-")[0] for name in trained] == ["stage1", suite[-1]]
    trained.clear()
    study.Pair(args(tmp_path), "procedural", "", 1).run()
    assert len(trained) == len(suite)  # `stage1` is the first


def test_weights_file_replaces_stage_1(tmp_path, monkeypatch):
    trained, measured = [], []

    def train(config, workdir):
        workdir.mkdir(parents=True)
        (workdir / "metrics.jsonl").write_text('{"step": 1}\n')
        trained.append(config)

    monkeypatch.setattr(study.pretrain, "train", train)
    monkeypatch.setattr(study, "measure", lambda source, origin, *how: measured.append((origin, how)) or {})
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"weights")
    scale = f"{SCALE},rate=0.0002,stem=imagenet"
    given = args(tmp_path, f"--init={file}", "--rows=byol,stage1,random", f"--scale={scale}", "--on=test")
    study.Pair(given, "procedural", "", 0).run()
    assert [config.init_from for config in trained] == [str(file)]
    assert trained[0].model.stem == "imagenet" and trained[0].optim.lr == pytest.approx(0.0002 * 256 / 8)
    assert [how for _, how in measured] == [(0, "test", 42, "")] * 2  # seed, split, px, no maps of a look head
    assert measured[1][0] == str(file) and measured[0][0].startswith(f"{tmp_path}/procedural/0/byol-")
    lines = study.lines(tmp_path)
    assert [entry["row"] for entry in lines] == ["byol", "stage1"]
    content = hashlib.sha256(b"weights").hexdigest()[:8]
    assert {entry["scale"] for entry in lines} == {f"{scale}, from x.safetensors ({content})"}
    # Another file of the same name is another start.
    file.write_bytes(b"others")
    study.Pair(given, "procedural", "", 0).run()
    assert len(trained) == 2 and len({entry["key"] for entry in study.lines(tmp_path)}) == 4
    with pytest.raises(SystemExit, match="--rows=other: suite core has byol, cvsa"):
        study.Pair(args(tmp_path, "--rows=other"), "procedural", "", 0).run()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_supervised_row_is_trained_and_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(study_rows.DRAWN, "tiny", {"classes": 2, "train_per_class": 8, "test_per_class": 4, "size": 32})
    monkeypatch.setattr(study.pretrain, "train", lambda *_: pytest.fail("no row needs stage 1"))
    scale = "--scale=depth=8,width=4,size=32,batch=8,steps=2"
    given = args(tmp_path, "--rows=supervised", scale, "--on=test", "--head", "--detector=masks")
    with few_devices(1, study, study.finetune):
        study.Pair(given, "tiny", "", 0).run()
    (line,) = study.lines(tmp_path)
    results = json.loads(next(tmp_path.glob("tiny/0/supervised-*/report/results.json")).read_text())
    assert line["supervised_top1"] == results["finetune_top1"]
    assert set(study_tables.RECOGNITION) <= line.keys()
    steps = {path.parent.parent.name for path in tmp_path.glob("tiny/0/supervised-*/labels_100/lr_*/final/ckpt/4")}
    assert len(steps) == 1  # as many steps as of both stages


def test_different_networks_have_different_keys(tmp_path):
    pair = study.Pair(args(tmp_path), "procedural", "", 0)
    keys = {
        (suite, name): pair.key(row, row.maps or "rbd")
        for suite, rows in study_rows.SUITES.items()
        for name, row in rows.items()
    }
    same = {(suite, name) for (suite, name), key in keys.items() if key == keys["core", "cvsa"]}
    # Only what is the default is the default.
    assert same == {("core", "cvsa"), ("ablation", "cvsa"), ("balance", "cvsa"), ("objectives", "byol_cvsa"),
                    ("maps", "rbd"), ("loop", "rbd")}  # fmt: skip


def test_row_changes_only_the_keys_it_names():
    def config(row, name="procedural"):
        return study_rows.config_of(row, name, "", 0, SCALE, "host")

    base = config(study_rows.CVSA)
    for suite in study_rows.SUITES.values():
        for row in suite.values():
            base_with = config(dataclasses.replace(row, changes={}))
            base_with.update_from_flattened_dict(row.changes if row.start != "random" else {})
            assert config(row).to_dict() == base_with.to_dict()
    assert config(study_rows.Row(start="scratch")).total_steps == 2 * base.total_steps
    assert config(study_rows.CVSA, "telling").data.procedural.background == "telling"


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_loop_trains_each_round_on_attention_of_the_previous_one(tmp_path, monkeypatch):
    monkeypatch.setitem(study_rows.SUITES["loop"], "loop_1", study_rows.Row({"optim.warmup_steps": 1}, maps="encoder"))
    for row in ("byol", "loop_2"):
        plain = study_rows.SUITES["loop"][row]
        changed = dataclasses.replace(plain, changes=plain.changes | {"optim.warmup_steps": 1})
        monkeypatch.setitem(study_rows.SUITES["loop"], row, changed)
    monkeypatch.setitem(study_rows.DRAWN, "tiny", {"classes": 2, "train_per_class": 8, "test_per_class": 4, "size": 32})
    monkeypatch.setattr(study, "BYOL", study_rows.SUITES["loop"]["byol"])
    given = args(tmp_path, "--suite=loop", "--rows=loop_1,loop_2", f"--scale={SCALE}", "--on=test")
    pair = study.Pair(given, "tiny", "", 0)
    pair.run()
    assert [entry["row"] for entry in study.lines(tmp_path)] == ["loop_1", "loop_2"]
    # A run anew has the same figures, to the last digit, and one of other figures is found out.
    key = study.lines(tmp_path)[1]["key"]
    repeated = args(tmp_path, f"--again={key}", "--sets=tiny")
    assert study.again(repeated) == {}
    again = tmp_path / f"again-{key}"
    assert [entry["row"] for entry in study.lines(again)] == ["loop_1", "loop_2"]
    (again / study.LINES).write_text("of an earlier time, and no JSON")
    changed = [entry | {"average_map_at_r": 2.0} for entry in study.lines(tmp_path)]
    (tmp_path / study.LINES).write_text("".join(json.dumps(entry) + "\n" for entry in changed))
    assert set(study.again(repeated)) == {"average_map_at_r"}
    with pytest.raises(SystemExit, match="no such line"):
        study.again(args(tmp_path, "--again=f00", "--sets=tiny"))
    config = json.loads((pair.workdir("loop_2") / "config.json").read_text())
    store = open_store(config["saliency"]["store"], pair.source, "any", 1.0)
    wanted = study.attention(pair.source, pair.workdir("loop_1")).detect([np.array(5)])[0].saliency
    assert wanted.max() == 1 and wanted.min() == 0 and wanted.std() > 0.1
    kept = Image.fromarray(store[np.array([5])][0]).resize(wanted.shape[::-1], Image.Resampling.BOX)
    assert np.corrcoef(np.asarray(kept, float).ravel(), wanted.ravel())[0, 1] > 0.9
