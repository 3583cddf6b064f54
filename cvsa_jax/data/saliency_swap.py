"""Saliency Swap (section 3.2 of the paper): which box of an image goes over which hole of another, in operations that
NumPy and JAX share (`xp` is one of the two), so that host and device swap alike.

       source                        background                           view
    +--------------------+        +-----------------------+        +-------------------+
    |     +-------+      |        | window                |        |                   |
    |     | crop  |      |        |  +-----------------+  |        |    +--------+     |
    |     |   *   |      |        |  |   +--------+    |  |        |    |  crop  |     |
    |     +-------+      |        |  |   | hole o |    |  |        |    |   *    |     |
    |                    |        |  |   +--------+    |  |        |    +--------+     |
    +--------------------+        |  +-----------------+  |        |                   |
                                  +-----------------------+        +-------------------+

The crop holds the source's object (*) and the hole that of the background (o). The view is the window, with the crop
resized to the hole.

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


def background_indices(examples, too_large, spec: ViewSpec, xp: ModuleType):
    """The rows of a batch that give each row its two backgrounds, (b, 2) int32: rows after it in its group of
    `spec.group`.

    No example is its own background, and the two views have different ones where the group allows it (equal examples
    meet in a group only where it straddles the border of two epochs). An image whose object is too large to be covered,
    `too_large` (b,) bool, serves only where no other can. With common backgrounds both views have the same.
    """
    row = xp.arange(len(examples))[:, None]
    place = row % spec.group
    others = row - place + (place + xp.arange(1, spec.group)) % spec.group
    foreign = examples[others] != examples[:, None]
    fit = foreign * 1 + (foreign & ~too_large[others])
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
    crop = _sample_source_box(u[:, :3], ratio, maps, own, spec, xp, search)
    crop_aspect = (crop[:, 3] - crop[:, 1]) / ((crop[:, 2] - crop[:, 0]) * ratio)
    hole = _sample_paste_box(u[:, 3:6], crop_aspect, maps, lent, spec, xp, search)
    object_mass = maps.object_mass[lent]
    residual = 1 - box_sum(maps.object, lent, hole, xp) / xp.maximum(object_mass, 1)
    residual = xp.where(object_mass > 0, residual, 0).astype(xp.float32)
    window, hole = _place_window(u[:, 6:], hole, spec, xp)
    return Swap(crop, window, hole, residual)


def _sample_source_box(u, ratio, maps: SaliencyMaps, own, spec: ViewSpec, xp: ModuleType, search: Search):
    """The crops, (n, 4): boxes of random area and aspect where the sources are most salient; u: (n, 3)."""
    height, width = box_shape(draw_area(u[:, 0], spec.source_area), draw_aspect(u[:, 1], ASPECT_RANGE, xp) * ratio, xp)
    shape = _in_cells(height, width, maps, xp)
    return salient_box(maps.integral, maps.object_mass, own, shape, u[:, 2], xp, search)


def _sample_paste_box(u, crop_aspect, maps: SaliencyMaps, lent, spec: ViewSpec, xp: ModuleType, search: Search):
    """The holes, (n, 4), in fractions of the whole backgrounds: boxes of random area and aspect where these are most
    salient, made larger as `spec.hole` asks; u: (n, 3); `crop_aspect` (n,) is width / height in pixels."""
    aspect = draw_aspect(u[:, 1], _paste_aspects(crop_aspect, spec, xp), xp)
    covers = spec.hole == "cover"
    least, most = spec.paste_area
    if covers:  # from the smallest box that covers the background's object on
        one = xp.ones_like(lent)
        rows, cols = _grow_to_cover(one, one, aspect, maps.min_cover_height[lent], xp)
        least = xp.clip((rows * cols / maps.cells[0].size).astype(xp.float32), least, most)
    height, width = box_shape(draw_area(u[:, 0], (least, most)), aspect, xp)
    if spec.paste != "stretch":
        height, width = xp.minimum(height, width / aspect), xp.minimum(width, height * aspect)
    rows, cols = _in_cells(height, width, maps, xp)
    if covers:
        rows, cols = _grow_to_cover(rows, cols, aspect, maps.min_cover_height[lent], xp)
    salient = maps.object if covers else maps.integral
    return salient_box(salient, maps.object_mass, lent, (rows, cols), u[:, 2], xp, search)


def _place_window(u, hole, spec: ViewSpec, xp: ModuleType) -> tuple:
    """Random windows that keep the holes inside, (n, 4), and the holes in fractions of their windows; u: (n, 3)."""
    window = window_around(hole, spec.canvas_min, u, xp)
    return window, (hole - xp.tile(window[:, :2], 2)) / (window[:, 2:3] - window[:, :1])


def salient_box(integral, object_mass, which, shape: tuple, u_tie, xp: ModuleType, search: Search):
    """Of the maps `which` (n,) the box of so many (rows, cols), each (n,) int32, with the highest sum over all
    positions; the centre's where the map is blank. `u_tie` (n,) draws among equals; sums are integers, so equal means
    exactly equal. (n, 4) float32 in fractions."""
    grid, (rows, cols), seen = integral.shape[1] - 1, shape, object_mass[which] > 0
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


def _grow_to_cover(rows, cols, aspect, min_cover_height, xp: ModuleType) -> tuple:
    """The smallest boxes of the aspect, in cells, that are no smaller than (rows, cols) and cover the object; an aspect
    that would leave the map is given up as far as needed."""
    grid = min_cover_height.shape[1]
    wide = xp.arange(1, grid + 1, dtype=xp.float32)
    # A little more than a half: ties, which a kept aspect often makes, must fall alike on host and device.
    high = xp.clip(xp.floor(wide / aspect[:, None] + np.float32(0.501)), rows[:, None], grid).astype(xp.int32)
    holds = (wide >= cols[:, None]) & (min_cover_height <= high)
    first = holds.argmax(1)
    fits, n = holds.any(1), xp.arange(len(rows))
    whole = xp.maximum(rows, min_cover_height[:, -1])
    return xp.where(fits, high[n, first], whole).astype(xp.int32), xp.where(fits, first + 1, grid).astype(xp.int32)
