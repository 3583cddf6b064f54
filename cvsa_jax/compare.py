"""Several networks on one data set, side by side: figures, tables and pictures."""

import dataclasses
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cvsa_jax import classify, report, settings
from cvsa_jax.data import pipeline
from cvsa_jax.errors import UserError
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.summary import Evaluator, chance
from cvsa_jax.monitor import read_metrics
from cvsa_jax.run_report import PANELS
from cvsa_jax.state import Network

RECOGNITION = {
    "linear_top1": "linear top-1",
    "linear_mean_class": "mean per class",
    "linear_top5": "top-5",
    "knn_top1": "kNN top-1",
    "recall_at_1": "recall@1",
    "map_at_r": "mAP@R",
}
LOCALIZATION = {
    "pointing_game": "pointing game",
    "mask_iou": "mask IoU",
    "mask_iou_best": "best IoU",
    "pixel_ap": "pixel AP",
    "max_box_acc_v2": "MaxBoxAccV2",
    "corloc": "CorLoc",
}
_READINGS = {"attention": "attention", "mean": "mean activation", "component": "first component"}
_GUESSES = {"chance": "chance", "center_prior": "centre prior"}
_SIZE = 128  # px of the pictured images
_PICTURED = 4  # best, median and worst images, each


@dataclasses.dataclass(frozen=True)
class Run:
    """A network under comparison; `title` names it in tables and pictures."""

    title: str
    evaluator: Evaluator
    network: Network


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`figures`: name of a run, `chance` or `center_prior` -> flat names -> numbers; those of the attention have no
    prefix, those of the backbone's activation `mean_` or `component_`. `attention`: name of a run -> (k, h, w)."""

    figures: dict[str, dict[str, float]]
    attention: dict[str, np.ndarray]


def compare_runs(config: ConfigDict, workdirs: list[str], out: Path) -> dict[str, dict[str, float]]:
    """Evaluates the runs and writes `out/report/`; returns the figures of its `results.json`.

    Args:
        config: of mode `linear`.

    Raises:
        UserError: a run is none, two have the same name, or the data set has no test split.
    """
    if config.mode != "linear":
        raise UserError(f"--config is one of mode {config.mode!r}: give that of a linear probe, e.g. *_linear.py")
    names = [Path(workdir).name for workdir in workdirs]
    if len({*names, *_GUESSES}) < len(names) + len(_GUESSES):
        raise UserError(
            f"--runs={','.join(workdirs)}: their folders' names must differ, as they name the rows beside "
            f"{' and '.join(_GUESSES)}"
        )
    source = settings.load_source(config.data)
    train, test = (
        pipeline.readable(source, source.split(name), config.data.on_bad_image)
        for name in (config.data.train_split, config.data.test_split)
    )
    runs = {}
    for name, workdir in zip(names, workdirs, strict=True):
        evaluator, network = classify.load_run(workdir, source, config.eval)
        runs[name] = Run(name, evaluator, network)
    probe = classify.probe_arguments(config)
    comparison = compare(runs, train, test, knn=config.eval.knn, probe=probe)
    folder = out / "report"
    report.write_json(folder / "results.json", comparison.figures)
    found = tables(comparison, {name: name for name in names})
    error = 100 * (0.25 / len(test)) ** 0.5
    note = (
        f"{source.name}: {len(train)} train and {len(test)} test images. A share near 50 % has a standard error of "
        f"{error:.1f} points from the choice of test images alone; other seeds of training vary too. The attention of "
        "a run without the alignment loss, or of the mask_head control, is read from heads that nothing trained for it."
    )
    attention = picture(comparison, runs, test, folder / "attention.png")
    curves = [
        report.curves_picture(folder / f"curves_{name}.png", read_metrics(Path(workdir)), PANELS, f"Curves of {name}.")
        for name, workdir in zip(names, workdirs, strict=True)
    ]
    blocks = [note, *found, "# Where each network looks", attention, "# Curves", *curves]
    page = report.write_page(folder / "index.html", f"Runs on {source.name}", blocks)
    print("\n" + "\n\n".join(table.as_text() for table in found) + f"\n\n{note}\nreport: {page}")
    return comparison.figures


def compare(runs: dict[str, Run], train: np.ndarray, test: np.ndarray, *, knn: int, probe: dict) -> Comparison:
    """Recognition (where the source has labels) and localisation (where it has masks or boxes) of each run on the
    same images, and what guessing and the centre give.

    Args:
        runs: name -> run, all of the same source.
        knn, probe: as in `Evaluator.recognition`.
    """
    figures, attention, masks = {}, {}, None
    for name, run in runs.items():
        evaluator = run.evaluator
        masks = None if evaluator.source.mask is None else evaluator.masks(test)
        maps = evaluator.maps(run.network, test)
        attention[name] = maps["attention"]
        figures[name] = {}
        for reading, values in maps.items():
            scores = evaluator.localization(values, test, masks)
            figures[name] |= {_prefix(reading) + key: value for key, value in scores.items()}
        if evaluator.source.labels is not None:
            figures[name] |= evaluator.recognition(run.network, train, test, knn=knn, probe=probe)
    prior = localization.center_prior_maps(len(test), evaluator.size)
    figures["chance"] = chance(evaluator.source, test, masks)
    figures["center_prior"] = evaluator.localization(prior, test, masks)
    return Comparison(figures, attention)


def tables(comparison: Comparison, titles: dict[str, str]) -> list[report.Table]:
    """The recognition and the localisation table, where there is anything to say; `titles`: name of a run -> title."""
    rows = comparison.figures
    recognition = [(title, rows[name]) for name, title in (titles | _GUESSES).items() if name != "center_prior"]
    places = [
        (f"{title}, {said}", _of_reading(rows[name], reading))
        for name, title in titles.items()
        for reading, said in _READINGS.items()
    ]
    places += [(title, rows[name]) for name, title in _GUESSES.items()]
    found = (_table(recognition, RECOGNITION), _table(places, LOCALIZATION))
    return [table for table in found if len(table.header) > 1]


def picture(comparison: Comparison, runs: dict[str, Run], test: np.ndarray, path: Path) -> report.Picture:
    """Attention of every run over the same test images: those on which the last run's attention fits the masks best,
    middling and worst, or evenly spaced ones where there are no masks."""
    *_, last = runs
    source = runs[last].evaluator.source
    masks = None if source.mask is None else np.stack([_mask(source, i) for i in test])
    if masks is None:
        shown = np.linspace(0, len(test) - 1, min(3 * _PICTURED, len(test))).astype(int)
        caption = "Attention over evenly spaced test images."
    else:
        maps = comparison.attention[last]
        fits = [localization.iou(localization.upsample(m, _SIZE), t) for m, t in zip(maps, masks, strict=True)]
        order = np.argsort(-np.array(fits), kind="stable")
        k = max(1, min(_PICTURED, len(order) // 3))
        middle = (len(order) - k) // 2
        shown = np.concatenate([order[:k], order[middle : middle + k], order[len(order) - k :]])
        caption = (
            f"Attention over the {k} test images each on which that of {runs[last].title} fits the true mask (the "
            "line) best, middling and worst."
        )
    images, _ = next(pipeline.image_batches(source, test[shown], resize=0, size=_SIZE, batch_size=len(shown)))
    rows = {
        run.title: np.stack([localization.upsample(comparison.attention[name][k], _SIZE) for k in shown])
        for name, run in runs.items()
    }
    return report.attention_picture(path, images, rows, None if masks is None else masks[shown], caption)


def _mask(source, i) -> np.ndarray:
    return localization.square_mask(source.mask(int(i)), _SIZE)


def _of_reading(row: dict[str, float], reading: str) -> dict[str, float]:
    prefix = _prefix(reading)
    return {key: row[prefix + key] for key in LOCALIZATION if prefix + key in row}


def _prefix(reading: str) -> str:
    return "" if reading == "attention" else f"{reading}_"


def _table(rows: list[tuple[str, dict[str, float]]], columns: dict[str, str]) -> report.Table:
    present = [key for key in columns if any(key in row for _, row in rows)]
    cells = [(title, *(report.percent(row.get(key)) for key in present)) for title, row in rows]
    return report.Table(("%", *(columns[key] for key in present)), cells)
