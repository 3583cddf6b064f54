"""The study's tables and pictures, from its lines."""

import statistics
from pathlib import Path

from benchmarks.study_rows import BASES, SUITES

POOLINGS = ("average", "attention")
RECOGNITION = tuple(f"{pooling}_{kind}" for pooling in POOLINGS for kind in ("linear_top1", "knn_top1"))
LOCALISATION = ("pointing_game", "mask_iou", "mask_iou_best")
_SAME = ("set", "suite", "detector", "on", "scale")  # what the runs of a table share


def write(done: list[dict], folder: Path) -> None:
    """`tables.md` of all lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.md").write_text(tables(done) + "\n")
    print(f"tables: {folder / 'tables.md'}")


def tables(done: list[dict]) -> str:
    """One table for each set, suite, detector, scale and split: means with 95 % intervals over the seeds, and the gain
    over `byol`, or in the ablation over `cvsa`, paired by seed."""
    groups: dict[tuple, list[dict]] = {}
    for line in done:
        groups.setdefault(tuple(line[key] for key in _SAME), []).append(line)
    text = []
    for group, runs in sorted(groups.items()):
        base = BASES[group[1]]
        by_row = {row: {run["seed"]: run for run in runs if run["row"] == row} for row in SUITES[group[1]]}
        measured = [*RECOGNITION, *(key for key in LOCALISATION if any(key in run for run in runs))]
        text += [f"**{group[0]}**, maps by {group[2]}, on {group[3]}; {group[4]}", ""]
        text += ["| row | seeds | " + " | ".join(key.replace("_top1", "").replace("_", " ") for key in measured) + " |"]
        text += ["|" + "---|" * (len(measured) + 2)]
        for row, seeds in by_row.items():
            if seeds:
                cells = [_cell([run[key] for run in seeds.values() if key in run]) for key in measured]
                text.append(f"| {row} | {len(seeds)} | " + " | ".join(cells) + " |")
                shared = sorted(seeds.keys() & by_row[base].keys())
                if row not in (base, "random") and shared:
                    gains = [
                        _cell([seeds[s][key] - by_row[base][s][key] for s in shared], sign=True) for key in RECOGNITION
                    ]
                    text.append(f"| − {base} | {len(shared)} | " + " | ".join(gains) + " |" * (len(measured) - 3))
        text.append("")
    return "\n".join(text)


# Student's t, two-sided 95 %, by degrees of freedom.
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def _cell(values: list[float], sign: bool = False) -> str:
    """Mean ± half of the 95 % interval, in %."""
    if not values:
        return "–"
    mean = f"{100 * statistics.mean(values):{'+' if sign else ''}.1f}"
    if len(values) == 1:
        return mean
    half = _T.get(len(values) - 1, 1.96) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {100 * half:.1f}"
