"""Saliency Swap (section 3.2 of the paper): which box of an image goes over which hole of another, in operations that
NumPy and JAX share (`xp` is one of the two), so that host and device swap alike.

Everything is for n views at once. Boxes are (y0, x0, y1, x1). Saliency maps are (G, G) uint8, each axis of the image
scaled on its own, so a box in map cells divided by G is a box in fractions of the image."""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np

from cvsa_jax.data.boxes import ASPECT_RANGE, box_shape, draw_area, draw_aspect, window_around
from cvsa_jax.data.saliency_maps import SaliencyMaps, box_sum
from cvsa_jax.data.view_spec import ViewSpec

SWAP_DRAWS = 9  # uniform draws of one swap
# (integrals (m, …), which of them (n,), rows, cols, u) -> (y, x) of one of the boxes whose sum is the highest.
Search = Callable[..., tuple]


def lenders(examples, filled, spec: ViewSpec, xp: ModuleType):
    """(b, 2) int32 rows of a batch that lend each row its backgrounds, those after it in its group of `spec.group`.

    An example never lends to itself, nor the same to both views where there is another (equal examples meet in a group
    only where it straddles the border of two epochs); one whose object fills it, (b,) bool, only where no other can.
    With common backgrounds view 1's is view 2's.
    """
    row = xp.arange(len(examples))[:, None]
    place = row % spec.group
    others = row - place + (place + xp.arange(1, spec.group)) % spec.group
    foreign = examples[others] != examples[:, None]
    fit = foreign * 1 + (foreign & ~filled[others])
    first = others[row[:, 0], fit.argmax(1)]
    if spec.background == "common":
        return xp.stack([first, first], 1).astype(xp.int32)
    fit = xp.where(examples[others] != examples[first][:, None], fit, 0)
    second = xp.where(fit.any(1), others[row[:, 0], fit.argmax(1)], first)
    return xp.stack([first, second], 1).astype(xp.int32)


class Swap(NamedTuple):
    """Of n views: the box `crop` of the source that is cut out, and the box `hole` of the window `window` of the
    background that it replaces, all (n, 4) in fractions; `residual` (n,), the share of the background's object that
    stays outside the hole."""

    crop: np.ndarray
    window: np.ndarray
    hole: np.ndarray
    residual: np.ndarray


def swap_boxes(u, ratio, maps: SaliencyMaps, own, lent, spec: ViewSpec, xp: ModuleType, search: Search) -> Swap:
    """The boxes of n swaps.

    Args:
        u: (n, SWAP_DRAWS) uniform draws.
        ratio: (n,) height / width of the source in pixels.
        maps: of m images.
        own, lent: (n,) which of these are the source and the background of each swap.
    """
    height, width = box_shape(draw_area(u[:, 0], spec.source_area), draw_aspect(u[:, 1], ASPECT_RANGE, xp) * ratio, xp)
    crop = salient_box(maps.integral, maps.mass, own, _in_cells(height, width, maps, xp), u[:, 2], xp, search)

    cut = (crop[:, 3] - crop[:, 1]) / ((crop[:, 2] - crop[:, 0]) * ratio)  # aspect in pixels
    aspect = draw_aspect(u[:, 4], _paste_aspects(cut, spec, xp), xp)
    covers = spec.hole == "cover"
    least, most = spec.paste_area
    if covers:  # from the smallest box that covers the background's object on
        one = xp.ones_like(lent)
        rows, cols = _covering(one, one, aspect, maps.rows[lent], xp)
        least = xp.clip((rows * cols / maps.cells[0].size).astype(xp.float32), least, most)
    height, width = box_shape(draw_area(u[:, 3], (least, most)), aspect, xp)
    if spec.paste != "stretch":
        height, width = xp.minimum(height, width / aspect), xp.minimum(width, height * aspect)
    rows, cols = _in_cells(height, width, maps, xp)
    if covers:
        rows, cols = _covering(rows, cols, aspect, maps.rows[lent], xp)
    salient = maps.object if covers else maps.integral
    hole = salient_box(salient, maps.mass, lent, (rows, cols), u[:, 5], xp, search)
    mass = maps.mass[lent]
    residual = 1 - box_sum(maps.object, lent, hole, xp) / xp.maximum(mass, 1)
    residual = xp.where(mass > 0, residual, 0).astype(xp.float32)

    window = window_around(hole, spec.canvas_min, u[:, 6:9], xp)
    hole = (hole - xp.tile(window[:, :2], 2)) / (window[:, 2:3] - window[:, :1])
    return Swap(crop, window, hole, residual)


def salient_box(integral, mass, which, shape: tuple, u_tie, xp: ModuleType, search: Search):
    """Of the maps `which` (n,) the box of so many (rows, cols), each (n,) int32, with the highest sum over all
    positions; the centre's where the map is blank. `u_tie` (n,) draws among equals; sums are integers, so equal means
    exactly equal. (n, 4) float32 in fractions."""
    grid, (rows, cols), seen = integral.shape[1] - 1, shape, mass[which] > 0
    y, x = search(integral, which, rows, cols, u_tie)
    y, x = xp.where(seen, y, (grid - rows) // 2), xp.where(seen, x, (grid - cols) // 2)
    return xp.stack([y, x, y + rows, x + cols], 1).astype(xp.float32) / grid


def _paste_aspects(cut, spec: ViewSpec, xp: ModuleType) -> tuple:
    """Range of the aspects of what is pasted, where the crops' aspects in pixels are `cut` (n,)."""
    if spec.paste == "stretch":
        return ASPECT_RANGE
    if spec.paste == "keep_aspect":
        return cut, cut
    return tuple(xp.clip(xp.full_like(cut, end), cut * ASPECT_RANGE[0], cut * ASPECT_RANGE[1]) for end in ASPECT_RANGE)


def _in_cells(height, width, maps: SaliencyMaps, xp: ModuleType) -> tuple:
    grid = maps.cells.shape[1]
    return tuple(xp.clip(xp.round(side * grid), 1, grid).astype(xp.int32) for side in (height, width))


def _covering(rows, cols, aspect, covering, xp: ModuleType) -> tuple:
    """The smallest boxes of the aspect, in cells, that are no smaller than (rows, cols) and cover the object; an aspect
    that would leave the map is given up as far as needed."""
    grid = covering.shape[1]
    wide = xp.arange(1, grid + 1, dtype=xp.float32)
    # A little more than a half: ties, which a kept aspect often makes, must fall alike on host and device.
    high = xp.clip(xp.floor(wide / aspect[:, None] + np.float32(0.501)), rows[:, None], grid).astype(xp.int32)
    holds = (wide >= cols[:, None]) & (covering <= high)
    first = holds.argmax(1)
    fits, n = holds.any(1), xp.arange(len(rows))
    whole = xp.maximum(rows, covering[:, -1])
    return xp.where(fits, high[n, first], whole).astype(xp.int32), xp.where(fits, first + 1, grid).astype(xp.int32)
