"""How well saliency maps fit the true masks and boxes: the figures of salient-object detection."""

import collections
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.boxes import box_overlap, true_box
from cvsa_jax.evaluation.localization import iou, pointing_score

BETA_SQUARED = 0.3  # of the F-measure: precision counts more (Achanta et al. 2009)
LEVELS = 256  # thresholds over which the F-measure is maximised


class _Scores(NamedTuple):
    """Of one image; None where it has no true mask or box. `precision`, `recall`: (LEVELS,) at `map >= level`."""

    mae: float | None = None
    precision: np.ndarray | None = None
    recall: np.ndarray | None = None
    iou: float | None = None
    box_iou: float | None = None
    pointing_game: float | None = None


def measure(
    source: Source, indices: np.ndarray, record_of: Callable[[int], np.void], threshold: float
) -> dict[str, float]:
    """Figures of the maps of `indices` against the source's masks and boxes, {} where it has neither.

    Each stored map is scaled bilinearly to its image's full-size mask, so that the coarse grid is not forgiven.
    `mae`: mean absolute difference. `max_f`: the highest F-measure (β² = 0.3) of mean precision and mean recall over
    all thresholds. `iou`: of the map at `threshold`. `box_iou`: of the stored box and the true one (around the mask
    where the source has no boxes). `pointing_game`: share of the images whose maximum lies on the object, or in its
    box where there are no masks; equal maxima share the image. An image whose mask is empty counts for `mae` only.

    Args:
        record_of: index -> its RECORD.
    """
    if source.box is None:
        indices = indices[source.has_mask(indices)]
    if not len(indices):
        return {}
    sums, counts = {}, collections.Counter()
    with ThreadPoolExecutor() as pool:
        for score in pool.map(lambda i: _score(source, int(i), record_of(int(i)), threshold), indices):
            for name, value in score._asdict().items():
                if value is not None:
                    sums[name] = sums.get(name, 0) + value
                    counts[name] += 1
    means = {name: total / counts[name] for name, total in sums.items()}
    figures = {name: float(means[name]) for name in ("mae", "iou", "box_iou", "pointing_game") if name in means}
    if "precision" in means:
        precision, recall = means["precision"], means["recall"]
        weighted = BETA_SQUARED * precision + recall
        figures["max_f"] = float(((1 + BETA_SQUARED) * precision * recall / np.maximum(weighted, 1e-12)).max())
    return figures


def _score(source: Source, i: int, record: np.void, threshold: float) -> _Scores:
    mask = source.mask(i) > 127 if source.has_mask(np.array([i]))[0] else None
    box = true_box(source, i, mask)
    box_iou = None if box is None else float(box_overlap(record["box"].astype(float), box))
    if mask is None:
        return _Scores(
            box_iou=box_iou,
            pointing_game=pointing_score(record["map"].astype(np.float32), _inside(box, record["map"].shape)),
        )
    size = (mask.shape[1], mask.shape[0])
    # In "F" the values keep the fractions that the interpolation gives them.
    levels = np.asarray(Image.fromarray(record["map"].astype(np.float32), "F").resize(size, Image.Resampling.BILINEAR))
    mae = float(np.abs(levels / 255 - mask).mean())
    if not mask.any():
        return _Scores(mae=mae)
    rounded = np.round(levels).astype(int)
    # Counts at or above each level, from the highest down.
    hits, above = (np.bincount(rounded[m], minlength=LEVELS)[::-1].cumsum() for m in (mask, np.ones_like(mask)))
    return _Scores(
        mae,
        hits / np.maximum(above, 1),
        hits / mask.sum(),
        iou(levels >= 255 * threshold, mask),
        box_iou,
        pointing_score(levels, mask),
    )


def _inside(box: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Cells of a grid whose centre lies in the box; of a box that holds no centre, the cells nearest to its own."""

    def along(start: float, end: float, n: int) -> np.ndarray:
        centres = (np.arange(n) + 0.5) / n
        within = (centres >= start) & (centres < end)
        distance = np.abs(centres - (start + end) / 2)
        return within if within.any() else distance == distance.min()

    return np.outer(along(box[0], box[2], shape[0]), along(box[1], box[3], shape[1]))
