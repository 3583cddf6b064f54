"""The page of networks side by side: where each looks, what was found, the tables, and how each fails."""

import numpy as np

from cvsa_jax.data import background
from cvsa_jax.data.reading import load_image
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.accuracy import confused_pairs
from cvsa_jax.evaluation.comparison import Comparison, reading_prefix
from cvsa_jax.evaluation.embedding import EMBEDDINGS
from cvsa_jax.evaluation.labelled import Amount
from cvsa_jax.report import pictures
from cvsa_jax.report.columns import BACKGROUND, GUESSES, LOCALIZATION, READINGS, RECOGNITION, percent, table
from cvsa_jax.report.html import Table
from cvsa_jax.runtime.files import AnyPath
from cvsa_jax.saliency.detector import squeezed

_SIZE = 128  # px of the pictured images
_PICTURED = 4  # best, median and worst images, each
_CONFUSED = 4  # pairs of classes for each network
_FINDINGS = {
    "pointing_game": "Looking at the object: the attention's maximum lies on it",
    "max_box_acc_v2": "Finding the object's box (MaxBoxAccV2 of the attention)",
    "linear_top1": "Recognition: the linear probe is right",
}
_COUNTED = {"pointing_game": "images_with_masks"}  # a figure's images, where they are not all


def findings(comparison: Comparison) -> list[str]:
    """In words: which network looks at the object, which recognises best, and what each confuses."""
    sentences = _worth(comparison)
    for key, opening in _FINDINGS.items():
        # The box only where there are no masks, and so no pointing game before it.
        masks = any("pointing_game" in row for _, row in comparison.rows)
        if any(key in row for _, row in comparison.rows) and not (key == "max_box_acc_v2" and masks):
            sentences.append(_ranking(comparison, key, opening))
    classes, labels = comparison.source.classes, comparison.source.labels
    for name, candidate in comparison.candidates.items():
        for true, taken, count in _confusions(comparison, name)[:1]:
            total = int((labels[comparison.test] == true).sum())
            sentences.append(
                f"{candidate.title} most often takes {classes[true]} for {classes[taken]} ({count} of {total})."
            )
    return sentences


def _worth(comparison: Comparison) -> list[str]:
    """Whether pre-training on these images was worth it, where there are runs of it and networks without it."""
    best = {}
    for name, candidate in comparison.candidates.items():
        score, ours = comparison.figures[name].get("linear_top1"), candidate.pretrained_here
        if score is not None and ours is not None and score > best.get(ours, (0.0, ""))[0]:
            best[ours] = score, candidate.title
    if len(best) < 2:
        return []
    (ours, title), (others, other) = best[True], best[False]
    error = _error(ours, others, len(comparison.test))
    told = "Whether it is worth pre-training here cannot be told"
    if abs(ours - others) > 2 * error:
        told = f"It is {'' if ours > others else 'not '}worth pre-training here"
    scores = f"{title} {percent(ours)} %, the best of the others, {other}, {percent(others)} %"
    return [f"{told}: by the linear probe {scores} (two standard errors: {200 * error:.1f} points)."]


def _error(one: float, two: float, images: int) -> float:
    """Standard error of the difference of two shares of the same images; that they are the same makes it if anything
    surer."""
    return (sum(v * (1 - v) for v in (one, two)) / images) ** 0.5


def tables(comparison: Comparison, amounts: list[Amount] | None = None) -> list[Table]:
    """The tables of recognition, of few labels, of localisation and of backgrounds, where there is
    anything to show."""
    rows, guesses = comparison.rows, [(title, comparison.figures[name]) for name, title in GUESSES.items()]
    few = {f"linear_top1{amount.suffix}": amount.title for amount in amounts or ()}
    places = [
        (f"{title}, {reading_title}", _of_reading(row, reading))
        for title, row in rows
        for reading, reading_title in READINGS.items()
        if _of_reading(row, reading)
    ]
    made = [table([*rows, guesses[0]], RECOGNITION)]
    if len(few) > 1 or "linear_top1" not in few:
        made.append(table(rows, few, titles=few))
    made.append(table([*places, *guesses], LOCALIZATION))
    if any("background_gap" in row for _, row in rows):
        made.append(table(rows, BACKGROUND, titles=BACKGROUND))
    return [t for t in made if len(t.header) > 1]


def looks(comparison: Comparison, path: AnyPath) -> pictures.Picture | str:
    """Attention of every network over the same test images: those on which the attention of the network whose
    attention fits the masks best fits them best, middling and worst, or evenly spaced ones where there are no masks."""
    source, test = comparison.source, comparison.test
    candidates = {name: one for name, one in comparison.candidates.items() if name in comparison.attention}
    if not candidates:
        return "These are features without their networks, so there are no maps."
    leading = max(reversed(candidates), key=lambda name: comparison.figures[name].get("mask_iou_best", 0.0))
    masks = None
    if not source.has_mask(test).any():
        shown = np.linspace(0, len(test) - 1, min(3 * _PICTURED, len(test))).astype(int)
        caption = "Attention over evenly spaced test images."
    else:
        masks = localization.square_masks(source, test, _SIZE)
        scaled = [localization.upsample(m, _SIZE) >= localization.IOU_THRESHOLD for m in comparison.attention[leading]]
        fits = [localization.iou(s, m) if m.any() else 0.0 for s, m in zip(scaled, masks, strict=True)]
        order = np.argsort(-np.array(fits), kind="stable")
        order = order[source.has_mask(test)[order]]
        k = max(1, min(_PICTURED, len(order) // 3))
        middle = (len(order) - k) // 2
        shown = np.concatenate([order[:k], order[middle : middle + k], order[len(order) - k :]])
        caption = (
            f"Attention over the {k} test images each on which that of {candidates[leading].title} fits the true mask "
            "(the line) best, middling and worst."
        )
    for reading in dict.fromkeys(comparison.shown.values()):
        titles = ", ".join(candidates[name].title for name, shown in comparison.shown.items() if shown == reading)
        caption += f" Of what trains no attention ({titles}), the {READINGS[reading]}."
    rows = {
        candidate.title: np.stack([localization.upsample(comparison.attention[name][k], _SIZE) for k in shown])
        for name, candidate in candidates.items()
    }
    outlines = None if masks is None else masks[shown]
    return pictures.attention_picture(path, _images(source, test[shown]), rows, outlines, caption)


def sections(comparison: Comparison, folder: AnyPath, embedding: str, seed: int) -> list[str | pictures.Picture]:
    """Headings and pictures of backgrounds, confusions and embeddings, where there is anything to show."""
    source, blocks = comparison.source, []
    if any("background_gap" in row for _, row in comparison.rows):
        blocks += ["# Object or background?", _background(comparison, folder / "background.png", seed)]
    if comparison.predicted:
        blocks.append("# What each network confuses")
        for name, candidate in comparison.candidates.items():
            drawn = _confusion(comparison, name, folder / f"confusion_{name}.png")
            blocks.append(drawn or f"{candidate.title} confuses no classes.")
        points = {
            candidate.title: EMBEDDINGS[embedding](comparison.features[name])
            for name, candidate in comparison.candidates.items()
        }
        caption = (
            f"The test images by their pooled features ({embedding.upper()} of the unit vectors, for each network on "
            "its own), coloured by class. Two dimensions of many: clusters here are real, overlaps need not be."
        )
        labels = source.labels[comparison.test]
        drawn = pictures.scatter_picture(folder / "embedding.png", points, labels, source.classes, caption)
        blocks += ["# Features in two dimensions", drawn]
    return blocks


def _ranking(comparison: Comparison, key: str, opening: str) -> str:
    """The networks by one share, and whether the first two can be told apart."""
    values = {title: row[key] for title, row in comparison.rows if key in row}
    order = sorted(values, key=values.get, reverse=True)
    listed = ", ".join(f"{title} {percent(values[title])} %" for title in order)
    guesses = {title: comparison.figures[name].get(key) for name, title in GUESSES.items()}
    beside = ", ".join(f"{title} {percent(value)} %" for title, value in guesses.items() if value is not None)
    sentence = f"{opening}: {listed}{f' ({beside})' if beside else ''}."
    if len(order) > 1:
        first, second = (values[title] for title in order[:2])
        measured = min(row.get(_COUNTED.get(key, ""), len(comparison.test)) for _, row in comparison.rows)
        error = _error(first, second, measured)
        if first - second <= 2 * error:
            sentence += f" The first two differ by no more than two standard errors ({200 * error:.1f} points)."
    return sentence


def _background(comparison: Comparison, path: AnyPath, seed: int) -> pictures.Picture:
    source, test = comparison.source, comparison.test
    test = test[source.has_mask(test)]
    shown = test[np.linspace(0, len(test) - 1, min(6, len(test))).astype(int)]
    changed = {
        "as_it_is_top1": source,
        "same_background_top1": background.replaced(source, test, seed, same_class=True),
        "other_background_top1": background.replaced(source, test, seed, same_class=False),
        "background_only_top1": background.removed(source),
    }
    examples = {BACKGROUND[key]: _images(changed[key], shown) for key in changed}
    rows = [(title, row) for title, row in comparison.rows if "background_gap" in row]
    bars = {title: {BACKGROUND[key]: row[key] for key in changed if key in row} for title, row in rows}
    bars[GUESSES["chance"]] = dict.fromkeys(examples, comparison.figures["chance"]["linear_top1"])
    gaps = ", ".join(f"{title} {100 * row['background_gap']:.1f}" for title, row in rows)
    caption = (
        "The probe on test images with another background behind the object (Mixed-Same and Mixed-Rand of Xiao et al. "
        "2021), and without the object. The gap between a background of the object's own class and one of another is "
        f"what the background alone is worth, in points: {gaps}. What is lost from the images as they are to the "
        "former is the price of cutting and pasting."
    )
    return pictures.background_picture(path, examples, bars, caption)


def _confusions(comparison: Comparison, name: str) -> list[tuple[int, int, int]]:
    if name not in comparison.predicted:
        return []
    source = comparison.source
    return confused_pairs(comparison.predicted[name], source.labels[comparison.test], len(source.classes), _CONFUSED)


def _confusion(comparison: Comparison, name: str, path: AnyPath) -> pictures.Picture | None:
    source, test, predicted = comparison.source, comparison.test, comparison.predicted[name]
    labels, rows = source.labels[test], []
    for true, taken, count in _confusions(comparison, name):
        confused = test[(labels == true) & (predicted == taken)][: pictures.PER_CLASS]
        of_taken = test[labels == taken][: pictures.PER_CLASS]
        total = int((labels == true).sum())
        title = f"{source.classes[true]}, {count} of {total} taken for {source.classes[taken]}"
        rows.append((title, _images(source, confused), _images(source, of_taken)))
    if not rows:
        return None
    title = comparison.candidates[name].title
    caption = f"{title}: the classes that its probe confuses most; left images it got wrong, right the class it chose."
    return pictures.confusion_picture(path, rows, caption)


def _images(source: Source, indices: np.ndarray) -> np.ndarray:
    """(k, _SIZE, _SIZE, 3) uint8, each whole image squeezed to a square."""
    if not len(indices):
        return np.zeros((0, _SIZE, _SIZE, 3), np.uint8)
    return np.stack([squeezed(load_image(source, int(i)), _SIZE) for i in indices])


def _of_reading(row: dict[str, float], reading: str) -> dict[str, float]:
    prefix = reading_prefix(reading)
    return {key: row[prefix + key] for key in LOCALIZATION if prefix + key in row}
