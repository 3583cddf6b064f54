"""Boxes around the connected regions of a map at every threshold at once.

Each pixel climbs to a neighbour that is higher, so every pixel belongs to a peak, and what a peak has at or above a
threshold hangs together. Two peaks belong to one region at all thresholds up to their saddle: the highest level at
which pixels of theirs touch. So the regions of all thresholds follow from a few peaks and saddles, where labelling the
pixels once for each threshold costs several times as much.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

_NOWHERE = (2**31 - 1, 2**31 - 1, -1, -1)


def region_boxes(
    values: Float[np.ndarray, "h w"], thresholds: Float[np.ndarray, " t"]
) -> tuple[Int[np.ndarray, " r"], Int[np.ndarray, "r 4"]]:
    """Box of each region of pixels (8 neighbours) at or above each of the rising `thresholds`.

    Returns:
        The place of its threshold, and (y0, x0, y1, x1) in pixels, of every region of every threshold, in no order.
    """
    level = np.searchsorted(thresholds, values, side="right").astype(np.int32) - 1
    peaks = _peaks(level)
    boxes = _boxes_of_peaks(level, peaks, len(thresholds))
    root = list(range(len(boxes)))
    for saddle, *pair in _saddles(level, peaks):
        a, b = (_find(root, peak) for peak in pair)
        if a == b:
            continue
        root[b] = a
        boxes[a, : saddle + 1, :2] = np.minimum(boxes[a, : saddle + 1, :2], boxes[b, : saddle + 1, :2])
        boxes[a, : saddle + 1, 2:] = np.maximum(boxes[a, : saddle + 1, 2:], boxes[b, : saddle + 1, 2:])
        boxes[b, : saddle + 1] = _NOWHERE
    region, threshold = np.nonzero(boxes[..., 2] >= 0)
    return threshold, boxes[region, threshold]


def _peaks(level: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """The number of each pixel's peak; of equal neighbours the later one is the higher."""
    size = level.size
    pixel = np.arange(size, dtype=np.int32)
    rank = level * np.int32(size) + pixel.reshape(level.shape)
    higher = ndimage.maximum_filter(rank, 3, mode="nearest").ravel() % np.int32(size)
    number = np.cumsum(higher == pixel, dtype=np.int32) - 1
    while not np.array_equal(above := higher[higher], higher):
        higher = above
    return number[higher].reshape(level.shape)


def _boxes_of_peaks(level: np.ndarray, peaks: np.ndarray, thresholds: int) -> Int[np.ndarray, "p t 4"]:
    """Box of what each peak has at or above each threshold."""
    boxes = np.tile(np.array(_NOWHERE, np.int32), (peaks.max() + 1, thresholds, 1))
    pixel = np.flatnonzero(level >= 0)
    place = (peaks * np.int32(thresholds) + level).ravel()[pixel]
    y, x = np.divmod(pixel.astype(np.int32), np.int32(level.shape[1]))
    sides = [(np.minimum, y), (np.minimum, x), (np.maximum, y + 1), (np.maximum, x + 1)]
    for side, (reduce, values) in enumerate(sides):
        at_level = boxes[..., side].ravel()
        reduce.at(at_level, place, values)
        boxes[..., side] = reduce.accumulate(at_level.reshape(-1, thresholds)[:, ::-1], 1)[:, ::-1]
    return boxes


def _saddles(level: np.ndarray, peaks: np.ndarray) -> list[list[int]]:
    """[level, peak, other peak] of each two peaks that touch, the highest saddle first."""
    count, codes = int(peaks.max()) + 1, []
    neighbours = [
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1, :], np.s_[1:, :]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
        (np.s_[:-1, 1:], np.s_[1:, :-1]),
    ]
    for a, b in neighbours:
        border = peaks[a] != peaks[b]
        pair = np.sort([peaks[a][border], peaks[b][border]], 0)
        highest = np.minimum(level[a][border], level[b][border]).astype(np.int64)
        codes.append((highest * count + pair[0]) * count + pair[1])
    codes = np.unique(np.concatenate(codes))[::-1]
    codes = codes[codes >= 0]
    _, first = np.unique(codes % count**2, return_index=True)
    codes = codes[np.sort(first)]
    return np.stack([codes // count**2, codes // count % count, codes % count], 1).tolist()


def _find(root: list[int], peak: int) -> int:
    while root[peak] != peak:
        root[peak] = peak = root[root[peak]]
    return peak
