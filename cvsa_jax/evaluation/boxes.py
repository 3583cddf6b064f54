"""How well the boxes that a map suggests fit the true boxes: MaxBoxAccV2 and CorLoc.

Boxes are (y0, x0, y1, x1) in fractions of the image.
"""

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.localization import IOU_THRESHOLD, THRESHOLDS

OVERLAPS = (0.3, 0.5, 0.7)  # the levels of MaxBoxAccV2
_CORLOC = 0.5


def box_score(scaled: Float[np.ndarray, "k s s"], boxes: Float[np.ndarray, "k 4"]) -> dict[str, float]:
    """Figures of maps scaled to [0, 1] against one true box for each image.

    `max_box_acc_v2` (Choe et al. 2020): for each level of OVERLAPS, the share of images in which one of the connected
    regions at a threshold has a box that overlaps the true one by at least that level, at the threshold of THRESHOLDS
    that is best for all images; the mean over the levels. `corloc`: the share of images in which the box of the
    *largest* region at IOU_THRESHOLD overlaps the true box by at least half.
    """
    best = np.array([[_overlaps(m >= t, box).max() for t in THRESHOLDS] for m, box in zip(scaled, boxes, strict=True)])
    accuracies = [(best >= level).mean(0).max() for level in OVERLAPS]
    largest = [_overlaps(m >= IOU_THRESHOLD, box)[0] for m, box in zip(scaled, boxes, strict=True)]
    return {
        "max_box_acc_v2": float(np.mean(accuracies)),
        "corloc": float(np.mean(np.array(largest) >= _CORLOC)),
    }


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


def _overlaps(on: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Overlap of the true box with that of each connected region (8 neighbours), the largest region first; [0] where
    there is none."""
    labels, count = ndimage.label(on, np.ones((3, 3)))
    if not count:
        return np.zeros(1)
    slices = ndimage.find_objects(labels)
    found = np.array([[y.start, x.start, y.stop, x.stop] for y, x in slices]) / on.shape[0]
    order = np.argsort(-np.bincount(labels.ravel())[1:], kind="stable")
    return box_overlap(found[order], np.broadcast_to(box, (count, 4)))
