"""`evaluate`'s page: what was found first, then the tables, then where and how each run fails."""

import numpy as np
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import background, pipeline
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.accuracy import confused_pairs
from cvsa_jax.evaluation.comparison import GUESSES, Comparison, Run, compare, reading_prefix
from cvsa_jax.evaluation.embedding import EMBEDDINGS
from cvsa_jax.evaluation.labelled import fraction_suffix
from cvsa_jax.report import html as report
from cvsa_jax.report import pictures
from cvsa_jax.report.run import PANELS
from cvsa_jax.runs import linear as classify
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath, as_path
from cvsa_jax.training.monitor import read_metrics

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
BACKGROUND = {
    "linear_top1": "as it is",
    "same_background_top1": "background of its class",
    "other_background_top1": "background of another",
    "background_only_top1": "background alone",
    "background_gap": "gap",
}
READINGS = {
    "attention": "attention",
    "mean": "mean activation",
    "component": "first component",
    "cam": "CAM of the probe",
    "grad_cam": "Grad-CAM of the probe",
}
_SIZE = 128  # px of the pictured images
_PICTURED = 4  # best, median and worst images, each
_CONFUSED = 4  # pairs of classes for each run


def compare_runs(config: ConfigDict, workdirs: list[str], out: AnyPath) -> dict[str, dict[str, float]]:
    """Evaluates the runs and writes `out/report/`; returns the figures of its `results.json`.

    Args:
        config: of mode `linear`.

    Raises:
        UserError: a run is none, two have the same name, or the data set has no test split.
    """
    if config.mode != "linear":
        raise UserError(f"--config is one of mode {config.mode!r}: give that of a linear probe, e.g. *_linear.py")
    names = [as_path(workdir).name for workdir in workdirs]
    if len({*names, *GUESSES}) < len(names) + len(GUESSES):
        raise UserError(
            f"--runs={','.join(workdirs)}: their folders' names must differ, as they name the rows beside "
            f"{' and '.join(GUESSES)}"
        )
    knn, probe, embedding = settings.knn(config.eval), settings.probe(config), settings.embedding(config.eval)
    source = settings.load_source(config.data)
    train, test = (
        pipeline.readable(source, source.split(name), config.data.on_bad_image)
        for name in (config.data.train_split, config.data.test_split)
    )
    runs = {}
    for name, workdir in zip(names, workdirs, strict=True):
        evaluator, network = classify.load_run(workdir, source, config.eval)
        runs[name] = Run(name, evaluator, network)
    comparison = compare(runs, train, test, knn=knn, probe=probe)
    folder = out / "report"
    report.write_json(folder / "results.json", comparison.figures)
    curves = [
        pictures.curves_picture(
            folder / f"curves_{name}.png", read_metrics(as_path(workdir)), PANELS, f"Curves of {name}."
        )
        for name, workdir in zip(names, workdirs, strict=True)
    ]
    said = findings(comparison, runs, source, test)
    protocol = _protocol(config, source, train, test)
    found = tables(comparison, {name: name for name in names}, probe.fractions)
    blocks = [*said, *found, *protocol, *sections(comparison, runs, test, folder, embedding, probe.list_seed)]
    page = report.write_page(folder / "index.html", f"Runs on {source.name}", [*blocks, "# Curves", *curves])
    lines = [*said, "", *(f"{table.as_text()}\n" for table in found), *protocol, f"report: {page}"]
    print("\n" + "\n".join(lines))
    return comparison.figures


def findings(comparison: Comparison, runs: dict[str, Run], source: Source, test: np.ndarray) -> list[str]:
    """In words: which run looks at the object, which recognises best, and what each confuses."""
    rows, said = comparison.figures, []
    for figure, saying in (
        ("pointing_game", "Looking at the object: the attention's maximum lies on it"),
        ("max_box_acc_v2", "Finding the object's box (MaxBoxAccV2 of the attention)"),
        ("linear_top1", "Recognition: the linear probe is right"),
    ):
        values = {run.title: rows[name][figure] for name, run in runs.items() if figure in rows[name]}
        if not values or (figure == "max_box_acc_v2" and said):
            continue
        order = sorted(values, key=values.get, reverse=True)
        listed = ", ".join(f"{title} {report.percent(values[title])} %" for title in order)
        guesses = ", ".join(
            f"{title} {report.percent(rows[g][figure])} %" for g, title in GUESSES.items() if figure in rows[g]
        )
        first, second = (values[title] for title in (*order[:2], order[0])[:2])
        error = (sum(v * (1 - v) for v in (first, second)) / len(test)) ** 0.5
        # A difference of two shares of the same images; that they are the same images makes it if anything surer.
        close = len(order) > 1 and first - second <= 2 * error
        unsure = (
            f" The first two differ by no more than two standard errors ({200 * error:.1f} points)." if close else ""
        )
        said.append(f"{saying}: {listed}{f' ({guesses})' if guesses else ''}.{unsure}")
    for name, run in runs.items():
        for true, taken, count in _confusions(comparison, name, source, test)[:1]:
            asked = int((source.labels[test] == true).sum())
            classes = source.classes
            said.append(f"{run.title} most often takes {classes[true]} for {classes[taken]} ({count} of {asked}).")
    return said


def tables(comparison: Comparison, titles: dict[str, str], fractions: tuple[float, ...] = (1.0,)) -> list[report.Table]:
    """The tables of recognition, of fractions of the labels, of localisation and of backgrounds, where there is
    anything to say; `titles`: name of a run -> title."""
    rows = comparison.figures
    own = [(title, rows[name]) for name, title in titles.items()]
    recognition = [*own, (GUESSES["chance"], rows["chance"])]
    places = [
        (f"{title}, {said}", _of_reading(rows[name], reading))
        for name, title in titles.items()
        for reading, said in READINGS.items()
        if _of_reading(rows[name], reading)
    ]
    places += [(title, rows[name]) for name, title in GUESSES.items()]
    few = {f"linear_top1{fraction_suffix(f)}": f"{100 * f:.4g} % of the labels" for f in sorted(fractions)}
    found = [
        _table(recognition, RECOGNITION),
        _table(own, few) if fractions != (1.0,) else None,
        _table(places, LOCALIZATION),
    ]
    if any("background_gap" in row for _, row in own):
        found.append(_table(own, BACKGROUND))
    return [table for table in found if table is not None and len(table.header) > 1]


def sections(
    comparison: Comparison, runs: dict[str, Run], test: np.ndarray, folder: AnyPath, embedding: str, seed: int
) -> list[str | pictures.Picture]:
    """Headings and pictures: attention, backgrounds, confusions and embeddings, where there is anything to show."""
    source = next(iter(runs.values())).evaluator.source
    blocks = ["# Where each network looks", attention_picture(comparison, runs, test, folder / "attention.png")]
    if any("background_gap" in row for row in comparison.figures.values()):
        blocks += ["# Object or background?", _background(comparison, runs, test, folder / "background.png", seed)]
    if comparison.predicted:
        blocks.append("# What each network confuses")
        for name, run in runs.items():
            drawn = _confusion(comparison, name, run.title, source, test, folder / f"confusion_{name}.png")
            blocks.append(drawn or f"{run.title} confuses no classes.")
        points = {run.title: EMBEDDINGS[embedding](comparison.features[name]) for name, run in runs.items()}
        caption = (
            f"The test images by their pooled features ({embedding.upper()} of the unit vectors, for each run on its "
            "own), coloured by class. Two dimensions of many: clusters here are real, overlaps need not be."
        )
        labels = source.labels[test]
        drawn = pictures.scatter_picture(folder / "embedding.png", points, labels, source.classes, caption)
        blocks += ["# Features in two dimensions", drawn]
    return blocks


def attention_picture(
    comparison: Comparison, runs: dict[str, Run], test: np.ndarray, path: AnyPath
) -> pictures.Picture:
    """Attention of every run over the same test images: those on which the attention of the run whose attention fits
    the masks best fits them best, middling and worst, or evenly spaced ones where there are no masks."""
    fit = lambda name: comparison.figures.get(name, {}).get("mask_iou_best", 0.0)  # noqa: E731
    leading = max(reversed(runs), key=fit)
    source = runs[leading].evaluator.source
    masks = None if source.mask is None else np.stack([_mask(source, i) for i in test])
    if masks is None:
        shown = np.linspace(0, len(test) - 1, min(3 * _PICTURED, len(test))).astype(int)
        caption = "Attention over evenly spaced test images."
    else:
        maps = comparison.attention[leading]
        fits = [localization.iou(localization.upsample(m, _SIZE), t) for m, t in zip(maps, masks, strict=True)]
        order = np.argsort(-np.array(fits), kind="stable")
        k = max(1, min(_PICTURED, len(order) // 3))
        middle = (len(order) - k) // 2
        shown = np.concatenate([order[:k], order[middle : middle + k], order[len(order) - k :]])
        caption = (
            f"Attention over the {k} test images each on which that of {runs[leading].title} fits the true mask (the "
            "line) best, middling and worst."
        )
    rows = {
        run.title: np.stack([localization.upsample(comparison.attention[name][k], _SIZE) for k in shown])
        for name, run in runs.items()
    }
    outlines = None if masks is None else masks[shown]
    return pictures.attention_picture(path, _images(source, test[shown]), rows, outlines, caption)


def _protocol(config: ConfigDict, source: Source, train: np.ndarray, test: np.ndarray) -> list[str]:
    error = 100 * (0.25 / len(test)) ** 0.5
    probe = "augmented crops" if config.probe.augmented else "cached features of centre crops"
    seeds = f", mean of {config.probe.seeds} seeds" if config.probe.seeds > 1 else ""
    return [
        f"{source.name}: {len(train)} train and {len(test)} test images. A share near 50 % has a standard error of "
        f"{error:.1f} points from the choice of test images alone; other seeds of training vary too. Linear probe: "
        f"{config.probe.total_epochs} epochs on {probe}{seeds}; its learning rate and the k of kNN are chosen on train "
        "images.",
        "CAM and Grad-CAM are those of the probe's predicted class, so they know the labels of the train images; the "
        "other maps know none. The attention of a run without the alignment loss, or of the mask_head control, is read "
        "from heads that nothing trained for it.",
    ]


def _background(comparison: Comparison, runs: dict[str, Run], test: np.ndarray, path: AnyPath, seed: int):
    source = next(iter(runs.values())).evaluator.source
    shown = test[np.linspace(0, len(test) - 1, min(6, len(test))).astype(int)]
    changed = {
        "linear_top1": source,
        "same_background_top1": background.replaced(source, test, seed, same_class=True),
        "other_background_top1": background.replaced(source, test, seed, same_class=False),
        "background_only_top1": background.removed(source),
    }
    examples = {BACKGROUND[key]: _images(changed[key], shown) for key in changed}
    rows = {run.title: comparison.figures[name] for name, run in runs.items()}
    bars = {title: {BACKGROUND[key]: row[key] for key in changed if key in row} for title, row in rows.items()}
    bars["chance"] = dict.fromkeys(examples, comparison.figures["chance"]["linear_top1"])
    gaps = ", ".join(f"{title} {100 * row['background_gap']:.1f}" for title, row in rows.items())
    caption = (
        "The probe on test images with another background behind the object (Mixed-Same and Mixed-Rand of Xiao et al. "
        "2021), and without the object. The gap between a background of the object's own class and one of another is "
        f"what the background alone is worth, in points: {gaps}. What is lost from the images as they are to the "
        "former is the price of cutting and pasting."
    )
    return pictures.background_picture(path, examples, bars, caption)


def _confusions(comparison: Comparison, name: str, source: Source, test: np.ndarray) -> list[tuple[int, int, int]]:
    if name not in comparison.predicted:
        return []
    return confused_pairs(comparison.predicted[name], source.labels[test], len(source.classes), _CONFUSED)


def _confusion(comparison: Comparison, name: str, title: str, source: Source, test: np.ndarray, path: AnyPath):
    labels, predicted = source.labels[test], comparison.predicted[name]
    rows = []
    for true, taken, count in _confusions(comparison, name, source, test):
        confused = test[(labels == true) & (predicted == taken)][: pictures.PER_CLASS]
        of_taken = test[labels == taken][: pictures.PER_CLASS]
        asked = int((labels == true).sum())
        said = f"{source.classes[true]}, {count} of {asked} taken for {source.classes[taken]}"
        rows.append((said, _images(source, confused), _images(source, of_taken)))
    if not rows:
        return None
    caption = f"{title}: the classes that its probe confuses most; left images it got wrong, right the class it saw."
    return pictures.confusion_picture(path, rows, caption)


def _images(source: Source, indices: np.ndarray) -> np.ndarray:
    """(k, _SIZE, _SIZE, 3) uint8, each whole image squeezed to a square."""
    if not len(indices):
        return np.zeros((0, _SIZE, _SIZE, 3), np.uint8)
    images, _ = next(pipeline.image_batches(source, indices, resize=0, size=_SIZE, batch_size=len(indices)))
    return images


def _mask(source: Source, i) -> np.ndarray:
    return localization.square_mask(source.mask(int(i)), _SIZE)


def _of_reading(row: dict[str, float], reading: str) -> dict[str, float]:
    prefix = reading_prefix(reading)
    return {key: row[prefix + key] for key in LOCALIZATION if prefix + key in row}


def _table(rows: list[tuple[str, dict[str, float]]], columns: dict[str, str]) -> report.Table:
    """Shares in percent, with `±` where a figure has a deviation over seeds."""
    present = [key for key in columns if any(key in row for _, row in rows)]
    cells = [(title, *(_cell(row, key) for key in present)) for title, row in rows]
    return report.Table(("%", *(columns[key] for key in present)), cells)


def _cell(row: dict[str, float], key: str) -> str:
    deviation = f" ± {100 * row[f'{key}_std']:.1f}" if f"{key}_std" in row else ""
    return report.percent(row.get(key)) + deviation
