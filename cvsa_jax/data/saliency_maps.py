"""Saliency maps for the search of boxes in them, in operations that NumPy and JAX share (`xp` is one of the two).

Maps are (G, G) uint8; sums are integers, so equal means exactly equal.
"""

from types import ModuleType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from cvsa_jax.data.boxes import ASPECT_RANGE
from cvsa_jax.data.view_spec import ViewSpec


@runtime_checkable
class Maps(Protocol):
    """(N, G, G) uint8 maps, as an array or a store: indexed with (k,) integers they give (k, G, G)."""

    shape: tuple[int, ...]

    def __getitem__(self, indices): ...


class Mapped(NamedTuple):
    """Images (b, size, size, 3) uint8, the maps (b, G, G) uint8 of the files that they are of, and the part of these
    that they show, (b, 4) float32 in fractions."""

    image: np.ndarray
    cells: np.ndarray
    box: np.ndarray


class SaliencyMaps(NamedTuple):
    """Of n images: `cells` (n, G, G) uint8; `integral` (n, G + 1, G + 1) int32, whose [:, y, x] is the sum of the cells
    above and left of (y, x), and `object` the same of the cells at the threshold alone; `min_cover_height`
    (n, G) uint8, see `cover_heights`, or 0 where holes need not cover."""

    cells: np.ndarray
    integral: np.ndarray
    object: np.ndarray
    min_cover_height: np.ndarray

    @property
    def object_mass(self):
        """(n,) int32 sum of the cells at the threshold; 0 where a map is blank and shows no object."""
        return self.object[:, -1, -1]


def saliency_maps(cells, min_cover_height, threshold: float, xp: ModuleType) -> SaliencyMaps:
    """From (n, G, G) uint8 and the `cover_heights` of each."""
    return SaliencyMaps(cells, _integral(cells, xp), object_integral(cells, threshold, xp), min_cover_height)


class MapReader:
    """Maps, and what covers their objects, which is searched once for each image."""

    def __init__(self, saliency: Maps, spec: ViewSpec):
        self.saliency, self.spec = saliency, spec
        self._min_cover_height = np.zeros(saliency.shape[:2], np.uint8)

    def min_cover_height(self, examples: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """`SaliencyMaps.min_cover_height` of these examples (k,), whose maps are `cells` (k, G, G)."""
        if self.spec.hole == "cover":
            for k in np.flatnonzero(self._min_cover_height[examples, -1] == 0):
                (integral,) = object_integral(cells[k : k + 1], self.spec.threshold, np)
                self._min_cover_height[examples[k]] = cover_heights(integral, self.spec.cover)
        return self._min_cover_height[examples]


def object_integral(cells, threshold: float, xp: ModuleType):
    """`SaliencyMaps.object` of maps (n, G, G) uint8."""
    return _integral(xp.where(cells >= np.float32(255 * threshold), cells, np.uint8(0)), xp)


def cover_heights(integral: np.ndarray, cover: float) -> np.ndarray:
    """For each width 1 … G in cells, the height of the lowest box that holds the share `cover` of an object, whose
    integral is (G + 1, G + 1): (G,) uint8; G + 1 where none of that width does."""
    grid = len(integral) - 1
    heights, high, least = np.empty(grid, np.uint8), grid, cover * integral[-1, -1]
    # The wider the box, the lower it may be: one walk along the border between what holds enough and what does not.
    for wide in range(1, grid + 1):
        while high >= 1 and _box_sums(integral, high, wide).max() >= least:
            high -= 1
        heights[wide - 1] = high + 1
    return heights


def object_too_large(min_cover_height, most: float, xp: ModuleType):
    """(n,) bool: no box of an allowed aspect and at most the share `most` of the image covers the object."""
    grid = min_cover_height.shape[1]
    wide = xp.arange(1, grid + 1, dtype=xp.float32)
    high = xp.maximum(min_cover_height, xp.ceil(wide * ASPECT_RANGE[0]))
    return ~((high <= wide * ASPECT_RANGE[1]) & (high * wide <= most * grid**2)).any(1)


def search(integral: np.ndarray, which: np.ndarray, rows: np.ndarray, cols: np.ndarray, u: np.ndarray) -> tuple:
    """The `Search` of the host. It takes one box at a time, whose sums fit the processor's cache; those of all boxes of
    a batch do not, and take four times as long."""
    found = np.empty((2, len(rows)), np.int32)
    for k, (i, high, wide) in enumerate(zip(which.tolist(), rows.tolist(), cols.tolist(), strict=True)):
        sums = _box_sums(integral[i], high, wide)
        flat = sums.ravel()
        choice = int(flat.argmax())
        best = flat == flat[choice]
        if (count := np.count_nonzero(best)) > 1:
            choice = int(np.flatnonzero(best)[min(int(u[k] * np.float32(count)), count - 1)])
        found[:, k] = divmod(choice, sums.shape[1])
    return found[0], found[1]


def _integral(cells, xp: ModuleType):
    sums = xp.cumsum(xp.cumsum(cells.astype(xp.int32), 1, dtype=xp.int32), 2, dtype=xp.int32)
    return xp.pad(sums, [(0, 0), (1, 0), (1, 0)])


def _box_sums(integral: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """The sums of all boxes of one size, by their corner."""
    bands = integral[rows:] - integral[:-rows]
    return bands[:, cols:] - bands[:, :-cols]


def box_sum(integral, which, box, xp: ModuleType):
    """(n,) sums in a box (n, 4), in fractions, of the map (n,) it belongs to."""
    y0, x0, y1, x1 = xp.round(box * (integral.shape[1] - 1)).astype(xp.int32).T
    return integral[which, y1, x1] - integral[which, y0, x1] - integral[which, y1, x0] + integral[which, y0, x0]
