"""The study's book-keeping: what is done is not done again, and the tables say what the lines say."""

import json
import statistics

from benchmarks import study


def args(tmp_path=None):
    return study.parser().parse_args([f"--out={tmp_path}"])


def line(row: str, seed: int, linear: float, name: str = "birds") -> dict:
    told = {"set": name, "suite": "core", "detector": "rbd", "on": "validation", "scale": "small"}
    figures = {
        f"{pooling}_{kind}_top1": linear + 0.1 * k
        for k, pooling in enumerate(study.POOLINGS)
        for kind in ("linear", "knn")
    }
    return told | {"row": row, "seed": seed} | figures


def test_tables_pair_the_gains_by_seed():
    # The seeds differ by much, and the gain by little: unpaired it would drown.
    lines = [line("byol", s, 0.1 * s) for s in (1, 2, 3)] + [
        line("cvsa", s, 0.1 * s + 0.02 + 0.01 * (s == 2)) for s in (1, 2, 3)
    ]
    text = study.tables(lines)
    rows = {
        r.split("|")[1].strip(): [c.strip() for c in r.split("|")[2:-1]] for r in text.splitlines() if r.startswith("|")
    }
    assert rows["byol"][:2] == ["3", "20.0 ± 24.8"]  # t of two degrees of freedom · 10 / √3
    gains = [0.02, 0.03, 0.02]
    half = 4.30 * statistics.stdev(gains) / 3**0.5
    assert rows["− byol"][:2] == ["3", f"+{100 * statistics.mean(gains):.1f} ± {100 * half:.1f}"]


def test_rows_of_other_sets_do_not_mix():
    text = study.tables([line("byol", 1, 0.5), line("byol", 1, 0.9, "cars")])
    assert text.count("| byol | 1 | 50.0") == 1 and text.count("| byol | 1 | 90.0") == 1


def test_what_has_a_line_is_not_run_again(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(study.pretrain, "train", lambda config, workdir: trained.append(workdir.name))
    monkeypatch.setattr(study, "measure", lambda source, workdir, seed, on: {"average_linear_top1": 0.5})
    monkeypatch.setattr(study, "compute", lambda *args, **kwargs: None)
    monkeypatch.setattr(study, "build", lambda *args: None)
    study.run_pair(args(tmp_path), "procedural", "", 0)
    assert trained[0] == "stage1" and len(trained) == 1 + len(study.SUITES["core"])
    lines = study.lines(tmp_path)
    assert [entry["row"] for entry in lines] == list(study.SUITES["core"])
    # Killed before the last line was written, the same command does the last row alone; another seed does all.
    (tmp_path / study.LINES).write_text("".join(json.dumps(entry) + "\n" for entry in lines[:-1]))
    trained.clear()
    study.run_pair(args(tmp_path), "procedural", "", 0)
    assert [name.split("-")[0] for name in trained] == ["stage1", "mask_head"]
    trained.clear()
    study.run_pair(args(tmp_path), "procedural", "", 1)
    assert len(trained) == 1 + len(study.SUITES["core"])


def test_a_row_changes_only_what_it_names():
    base = study.config_of(args(), "procedural", "", 0, {})
    for suite in study.SUITES.values():
        for changes in filter(None, suite.values()):
            config = study.config_of(args(), "procedural", "", 0, changes)
            base_with = base.copy_and_resolve_references()
            base_with.update_from_flattened_dict(changes)
            assert config.to_dict() == base_with.to_dict()
