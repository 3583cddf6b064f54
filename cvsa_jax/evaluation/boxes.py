"""How well the boxes that a map suggests fit the true boxes: MaxBoxAccV2 and CorLoc.

Boxes are (y0, x0, y1, x1) in fractions of the image.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.localization import CHUNK, FEW, IOU_THRESHOLD, THRESHOLDS, upsample
from cvsa_jax.evaluation.regions import region_boxes
from cvsa_jax.runtime.progress import Progress
from cvsa_jax.runtime.workers import over_cores

OVERLAPS = (0.3, 0.5, 0.7)  # the levels of MaxBoxAccV2
_CORLOC = 0.5


def box_score(
    maps: Float[np.ndarray, "k h w"], boxes: Float[np.ndarray, "k 4"], size: int | None = None
) -> dict[str, float]:
    """Figures of maps, each against one true box.

    `max_box_acc_v2` (Choe et al. 2020): for each level of OVERLAPS, the share of images in which one of the connected
    regions at a threshold has a box that overlaps the true one by at least that level, at the threshold of THRESHOLDS
    that is best for all images; the mean over the levels. `corloc`: the share of images in which the box of the
    *largest* region at IOU_THRESHOLD overlaps the true box by at least half.

    Args:
        size: side to which `upsample` brings each map first; None where they are square and in [0, 1] as they are.
    """
    progress, measured = Progress("maps against boxes", len(maps)), []
    items = ((m, box, size) for m, box in zip(maps, boxes, strict=True))
    for one in over_cores(_image_score, items, chunk=CHUNK, alone=len(maps) < FEW):
        measured.append(one)
        progress.update(len(measured))
    best, largest = (np.array(values) for values in zip(*measured, strict=True))
    accuracies = [(best >= level).mean(0).max() for level in OVERLAPS]
    return {"max_box_acc_v2": float(np.mean(accuracies)), "corloc": float(np.mean(largest >= _CORLOC))}


def _image_score(m: np.ndarray, box: np.ndarray, size: int | None) -> tuple[np.ndarray, float]:
    scaled = m if size is None else upsample(m, size)
    return _best_overlaps(scaled, box), _largest(scaled >= IOU_THRESHOLD, box)


def box_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray | np.float64:
    """Intersection over union of boxes (…, 4), pair by pair."""
    inner = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    return inner / union


def true_box(source: Source, i: int, mask: np.ndarray | None) -> np.ndarray | None:
    """The source's box of image i, else that around its mask (H, W) bool; None where there is neither."""
    if source.box is not None:
        return source.box(i)
    return None if mask is None else bounding_box(mask)


def bounding_box(on: np.ndarray) -> np.ndarray | None:
    """(y0, x0, y1, x1), in fractions, around what is True in (h, w) bool; None where nothing is."""
    if not on.any():
        return None
    rows, cols = np.flatnonzero(on.any(1)), np.flatnonzero(on.any(0))
    return np.array([rows[0], cols[0], rows[-1] + 1, cols[-1] + 1]) / np.tile(on.shape, 2)


def _best_overlaps(scaled: Float[np.ndarray, "s s"], box: np.ndarray) -> np.ndarray:
    """At each of THRESHOLDS, that of the region whose box fits best; 0 where there is none."""
    threshold, boxes = region_boxes(scaled, THRESHOLDS)
    best = np.zeros(len(THRESHOLDS))
    np.maximum.at(best, threshold, box_overlap(boxes / len(scaled), np.broadcast_to(box, boxes.shape)))
    return best


def _largest(on: Bool[np.ndarray, "s s"], box: np.ndarray) -> float:
    """Overlap of the true box with that of the largest connected region (8 neighbours); 0 where there is none."""
    labels, count = ndimage.label(on, np.ones((3, 3)))
    if not count:
        return 0.0
    return float(box_overlap(bounding_box(labels == 1 + np.bincount(labels.ravel())[1:].argmax()), box))
