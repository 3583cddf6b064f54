"""The study's tables and pictures, from its lines."""

import csv
import statistics
from collections.abc import Iterator
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.study_rows import BASES, SUITES

POOLINGS = ("average", "attention", "head")  # the last of those that asked for it
RECOGNITION = tuple(f"{pooling}_{kind}" for pooling in POOLINGS for kind in ("linear_top1", "knn_top1"))
# Of some rows. `supervised_top1` is of the classifier itself: probe and kNN of a supervised network choose their
# settings on images whose labels it has learned.
MORE = ("pointing_game", "mask_iou_best", "supervised_top1")
# What CVSA is compared with beside its suite's base, where both have been run with a seed.
PAIRS = (
    *(("cvsa", other) for other in ("mask_head", "masked_dense", "swap", "align", "saliency_crop_align")),
    ("cvsa", "stage1"),
    ("byol", "stage1"),
    ("cvsa_scratch", "byol_scratch"),
    ("cvsa_scratch", "cvsa"),
    *((f"{name}_cvsa", name) for name in ("moco", "simclr", "simsiam")),
    ("masks", "rbd"),
    ("focus", "rbd"),
    ("isnet", "rbd"),
    ("masks", "focus"),
    ("rbd", "mask_head"),
    ("loop_1", "rbd"),
    ("loop_2", "loop_1"),
    ("loop_3", "loop_1"),
)
SAME = ("set", "suite", "detector", "on", "scale")  # what the runs of a group share
COLUMNS = (*SAME, "row", "minus", "figure", "seeds", "mean", "half_interval")
_FEWEST = 3  # seeds, from which on a gain is drawn

Runs = dict[int, dict]  # seed -> line


def write(done: list[dict], folder: Path) -> None:
    """`tables.csv` of all lines, and `gains.png` of the core suite."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tables.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows_of(done))
    draw([line for line in done if (line["suite"], line["on"]) == ("core", "test")], folder / "gains.png")
    print(f"tables: {folder / 'tables.csv'}, picture: {folder / 'gains.png'}")


def rows_of(done: list[dict]) -> Iterator[dict[str, str | int]]:
    """The table, a figure a row: mean over the seeds in %, and half of its 95 % interval, of each row of each group of
    runs, and of its difference, paired by seed, from the suite's base and the rows that PAIRS names."""
    for group, runs in sorted(_groups(done).items()):
        by_row, base, figures = _by_row(runs, group[1]), BASES[group[1]], _compared(runs)
        about = dict(zip(SAME, group, strict=True))
        for row, seeds in by_row.items():
            for key in (*figures, *MORE):
                if values := [run[key] for run in seeds.values() if key in run]:
                    yield about | {"row": row, "minus": "", "figure": key} | _summary(values)
        pairs = [(row, base) for row in by_row if base in by_row and row not in (base, "random")]
        for row, other in dict.fromkeys((*pairs, *(pair for pair in PAIRS if {*pair} <= by_row.keys()))):
            for key in figures:
                if values := _gains(by_row, row, other, key):
                    yield about | {"row": row, "minus": other, "figure": key} | _summary(values)


def draw(lines: list[dict], path: Path) -> None:
    """The gain of each row over BYOL, with its 95 % interval: a row of panels for each scale, a panel for each figure
    and a colour for each set."""
    groups = {
        (group[4], f"{group[0]}, {group[2]}"): _by_row(runs, "core") for group, runs in sorted(_groups(lines).items())
    }
    names, figures = sorted({name for _, name in groups}), _compared(lines)
    shown = {scale: {name: _kept_gains(groups, scale, name, figures) for name in names} for scale, _ in groups}
    rows = {scale: [row for row in SUITES["core"] if any(row in g for g in shown[scale].values())] for scale in shown}
    scales = sorted(scale for scale in shown if rows[scale])
    heights = [1.5 + 0.45 * len(rows[scale]) for scale in scales]
    figure = Figure(figsize=(13, max(sum(heights), 1)), layout="constrained")
    for number, scale in enumerate(scales):
        place = figure.add_subfigure(figure.add_gridspec(len(scales), 1, height_ratios=heights)[number])
        place.suptitle(scale, fontsize=9)
        axes = place.subplots(1, len(figures), sharey=True)
        for axis, key in zip(axes, figures, strict=True):
            _panel(axis, key, rows[scale], shown[scale])
        axes[0].set_yticks(range(len(rows[scale])), rows[scale])
        axes[0].set_ylim(len(rows[scale]) - 0.4, -0.6)
        handles = {c.get_label(): c for axis in axes for c in axis.containers}
        place.legend(handles.values(), handles, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=90)


def _panel(axis: Axes, key: str, rows: list[str], shown: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    axis.axvline(0, color="grey", linewidth=0.8)
    for number, (name, gains) in enumerate(shown.items()):
        if gains:
            middle = [100 * statistics.mean(each[key]) for each in gains.values()]
            half = [100 * _half(each[key]) for each in gains.values()]
            places = [rows.index(row) + 0.09 * (number - (len(shown) - 1) / 2) for row in gains]
            style = {"fmt": "o", "markersize": 3, "linewidth": 1, "color": f"C{number}"}
            axis.errorbar(middle, places, xerr=half, label=name, **style)
    axis.set_title(_title(key), fontsize=10)
    axis.set_xlabel("points over BYOL")


def _kept_gains(groups: dict, scale: str, name: str, figures: list[str]) -> dict[str, dict[str, list[float]]]:
    """Row -> figure -> gains over BYOL, of the rows with as many seeds as it takes."""
    by_row = groups.get((scale, name), {})
    gains = {row: {key: _gains(by_row, row, "byol", key) for key in figures} for row in by_row}
    left_out = ("byol", "random", "supervised")
    return {row: g for row, g in gains.items() if row not in left_out and len(g[figures[0]]) >= _FEWEST}


def _groups(lines: list[dict]) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in SAME), []).append(line)
    return groups


def _by_row(runs: list[dict], suite: str) -> dict[str, Runs]:
    """The rows that have been run, in the order of the suite."""
    found = {row: {run["seed"]: run for run in runs if run["row"] == row} for row in SUITES[suite]}
    return {row: seeds for row, seeds in found.items() if seeds}


def _gains(by_row: dict[str, Runs], row: str, base: str, key: str) -> list[float]:
    """Of each seed that both have."""
    one, other = by_row.get(row, {}), by_row.get(base, {})
    return [one[seed][key] - other[seed][key] for seed in sorted(one.keys() & other.keys())]


def _compared(runs: list[dict]) -> list[str]:
    """The figures of recognition that all runs have."""
    return [key for key in RECOGNITION if all(key in run for run in runs)]


def _title(key: str) -> str:
    return key.replace("_top1", "").replace("knn", "kNN").replace("_", " ")


# Student's t, two-sided 95 %, by degrees of freedom.
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def _half(values: list[float]) -> float:
    """Half of the 95 % interval of a mean."""
    return _T.get(len(values) - 1, 1.96) * statistics.stdev(values) / len(values) ** 0.5


def _summary(values: list[float]) -> dict[str, str | int]:
    half = f"{100 * _half(values):.1f}" if len(values) > 1 else ""
    return {"seeds": len(values), "mean": f"{100 * statistics.mean(values):.1f}", "half_interval": half}
