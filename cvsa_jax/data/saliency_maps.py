"""Saliency maps for the search of boxes in them, in operations that NumPy and JAX share (`xp` is one of the two).

Maps are (G, G) uint8; sums are integers, so equal means exactly equal.
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np

from cvsa_jax.data.boxes import ASPECT_RANGE


class SaliencyMaps(NamedTuple):
    """Of n images: `cells` (n, G, G) uint8; `integral` (n, G + 1, G + 1) int32, whose [:, y, x] is the sum of the cells
    above and left of (y, x), and `object` the same of the cells at the threshold alone; `rows` (n, G) uint8, see
    `covering_rows`, or 0 where holes need not cover."""

    cells: np.ndarray
    integral: np.ndarray
    object: np.ndarray
    rows: np.ndarray

    @property
    def mass(self):
        """(n,) int32 sum of the cells at the threshold; 0 where a map is blank and shows no object."""
        return self.object[:, -1, -1]

    def take(self, k) -> "SaliencyMaps":
        """Those of the images (m,)."""
        return SaliencyMaps(*(field[k] for field in self))


def saliency_maps(cells, rows, threshold: float, xp: ModuleType) -> SaliencyMaps:
    """From (n, G, G) uint8 and the `covering_rows` of each."""
    return SaliencyMaps(cells, _integral(cells, xp), object_integral(cells, threshold, xp), rows)


def object_integral(cells, threshold: float, xp: ModuleType):
    """`SaliencyMaps.object` of maps (n, G, G) uint8."""
    return _integral(xp.where(cells >= np.float32(255 * threshold), cells, np.uint8(0)), xp)


def covering_rows(integral: np.ndarray, cover: float) -> np.ndarray:
    """For each width 1 … G in cells, the height of the lowest box that holds the share `cover` of an object, whose
    integral is (G + 1, G + 1): (G,) uint8; G + 1 where none of that width does."""
    grid = len(integral) - 1
    rows, high, least = np.empty(grid, np.uint8), grid, cover * integral[-1, -1]
    # The wider the box, the lower it may be: one walk along the border between what holds enough and what does not.
    for wide in range(1, grid + 1):
        while high >= 1 and _box_sums(integral, high, wide).max() >= least:
            high -= 1
        rows[wide - 1] = high + 1
    return rows


def fills(rows, most: float, xp: ModuleType):
    """(n,) bool: no box of an allowed aspect and at most the share `most` of the image covers the object."""
    grid = rows.shape[1]
    wide = xp.arange(1, grid + 1, dtype=xp.float32)
    high = xp.maximum(rows, xp.ceil(wide * ASPECT_RANGE[0]))
    return ~((high <= wide * ASPECT_RANGE[1]) & (high * wide <= most * grid**2)).any(1)


def search(integral: np.ndarray, rows: np.ndarray, cols: np.ndarray, u: np.ndarray) -> tuple:
    """The `Search` of the host."""
    found = np.empty((2, len(rows)), np.int32)
    for k, (high, wide) in enumerate(zip(rows.tolist(), cols.tolist(), strict=True)):
        sums = _box_sums(integral[k], high, wide)
        good = np.flatnonzero(sums == sums.max())
        choice = good[min(int(u[k] * np.float32(len(good))), len(good) - 1)]
        found[:, k] = np.divmod(choice, sums.shape[1])
    return found[0], found[1]


def _integral(cells, xp: ModuleType):
    sums = xp.cumsum(xp.cumsum(cells.astype(xp.int32), 1, dtype=xp.int32), 2, dtype=xp.int32)
    return xp.pad(sums, [(0, 0), (1, 0), (1, 0)])


def _box_sums(integral: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """The sums of all boxes of one size, by their corner."""
    return integral[rows:, cols:] - integral[:-rows, cols:] - integral[rows:, :-cols] + integral[:-rows, :-cols]


def box_sum(integral, box, xp: ModuleType):
    """(n,) sums in one box of each map."""
    n = xp.arange(len(box))
    y0, x0, y1, x1 = xp.round(box * (integral.shape[1] - 1)).astype(xp.int32).T
    return integral[n, y1, x1] - integral[n, y0, x1] - integral[n, y1, x0] + integral[n, y0, x0]
