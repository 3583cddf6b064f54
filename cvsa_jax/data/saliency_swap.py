"""Saliency Swap (section 3.2 of the paper) in TensorFlow, on the host: boxes, search, crop and paste.

Boxes are (y0, x0, y1, x1). Saliency maps are (G, G) uint8, each axis of the image scaled on its own, so a box in map
cells divided by G is a box in fractions of the image.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from cvsa_jax.data.resample import place, placed_mask
from cvsa_jax.data.view_spec import ViewSpec

ASPECT_RANGE = (3 / 4, 4 / 3)  # width / height in pixels, drawn log-uniformly, as in Random Resized Crop
SWAP_DRAWS = 9  # uniform draws of one swap


def draw_box_shape(u_area: tf.Tensor, u_aspect: tf.Tensor, area_range: tuple[float, float], ratio: tf.Tensor | float):
    """Random (height, width) as fractions of an image, each at most 1.

    Area uniform in `area_range` (fractions of the image), pixel aspect log-uniform in ASPECT_RANGE; `ratio` is the
    image's height / width, and u_* are uniform draws in [0, 1).
    """
    area = area_range[0] + u_area * (area_range[1] - area_range[0])
    low, high = math.log(ASPECT_RANGE[0]), math.log(ASPECT_RANGE[1])
    aspect = tf.exp(low + u_aspect * (high - low))
    return tf.minimum(tf.sqrt(area / (aspect * ratio)), 1.0), tf.minimum(tf.sqrt(area * aspect * ratio), 1.0)


class SaliencyMap(NamedTuple):
    """Of one image, or of a group with a leading axis: `cells` (G, G) uint8; `integral` (G + 1, G + 1) int32, whose
    [y, x] is the sum of the cells above and left of (y, x); `blank` () bool, where no cell is at the threshold."""

    cells: tf.Tensor
    integral: tf.Tensor
    blank: tf.Tensor


def saliency_maps(cells: tf.Tensor, threshold: float) -> SaliencyMap:
    """Those of a group, from (g, G, G) uint8."""
    sums = tf.cumsum(tf.cumsum(tf.cast(cells, tf.int32), 1), 2)
    blank = tf.cast(tf.reduce_max(cells, [1, 2]), tf.float32) < 255 * threshold
    return SaliencyMap(cells, tf.pad(sums, [[0, 0], [1, 0], [1, 0]]), blank)


def most_salient_box(saliency: SaliencyMap, height: tf.Tensor, width: tf.Tensor, u_tie: tf.Tensor) -> tf.Tensor:
    """The box of a given shape with the highest mean saliency over all positions; the centre's where the map is blank.

    Args:
        height, width: fractions of the image; the box has round(G·height) × round(G·width) cells, at least one.
        u_tie: uniform draw that chooses among equally good positions. The sums are integers, so equal means exactly
            equal.

    Returns:
        (4,) float32 box in fractions of the image.
    """
    integral = saliency.integral
    grid = integral.shape[0] - 1
    rows = tf.clip_by_value(tf.cast(tf.round(height * grid), tf.int32), 1, grid)
    cols = tf.clip_by_value(tf.cast(tf.round(width * grid), tf.int32), 1, grid)
    sums = integral[rows:, cols:] - integral[:-rows, cols:] - integral[rows:, :-cols] + integral[:-rows, :-cols]
    best = tf.cast(tf.where(sums == tf.reduce_max(sums)), tf.int32)
    count = tf.shape(best)[0]
    choice = tf.minimum(tf.cast(u_tie * tf.cast(count, tf.float32), tf.int32), count - 1)
    y = tf.where(saliency.blank, (grid - rows) // 2, best[choice][0])
    x = tf.where(saliency.blank, (grid - cols) // 2, best[choice][1])
    return tf.cast(tf.stack([y, x, y + rows, x + cols]), tf.float32) / grid


def to_pixels(box: tf.Tensor, size: int) -> tf.Tensor:
    """A box in fractions -> the nearest whole-pixel box of a size × size view, at least one pixel a side."""
    corners = tf.cast(tf.round(box * size), tf.int32)
    low = tf.minimum(corners[:2], size - 1)
    return tf.concat([low, tf.maximum(corners[2:], low + 1)], 0)


def window_around(box: tf.Tensor, smallest: float, u: tf.Tensor) -> tf.Tensor:
    """A random square window (in fractions) of side at least `smallest` that keeps `box` inside; u: three uniforms."""
    side = tf.maximum(smallest + u[0] * (1 - smallest), tf.reduce_max(box[2:] - box[:2]))
    low = tf.maximum(box[2:] - side, 0.0)
    high = tf.minimum(box[:2], 1 - side)
    start = low + u[1:3] * (high - low)
    return tf.concat([start, start + side], 0)


def canvas(background: tf.Tensor, spec: ViewSpec) -> tf.Tensor:
    """What `swap` takes of a background (H, W, 3) uint8: with `canvas_min` 1 the whole of it in the size of the view,
    made once for all views that it lends itself to, else itself."""
    return place(background, tf.constant([0.0, 0.0, 1.0, 1.0]), [spec.size] * 2) if spec.canvas_min == 1 else background


def swap(
    image: tf.Tensor,
    saliency: SaliencyMap,
    background: tf.Tensor,
    background_saliency: SaliencyMap,
    u: tf.Tensor,
    spec: ViewSpec,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One swapped view.

    Args:
        image: (H, W, 3) uint8 source.
        background: the image that lends its surroundings, as `canvas` gives it.
        u: (SWAP_DRAWS,) uniform draws.

    Returns:
        View (size, size, 3) float32 in [0, 255] and its mask (M, M) float32 in [0, 255], M = size / MASK_STRIDE: the
        source's saliency inside the pasted box, 0 elsewhere.
    """
    shape = tf.cast(tf.shape(image), tf.float32)
    height, width = draw_box_shape(u[0], u[1], spec.source_area, shape[0] / shape[1])
    crop = most_salient_box(saliency, height, width, u[2])

    paste_height, paste_width = draw_box_shape(u[3], u[4], spec.paste_area, 1.0)
    if spec.paste == "keep_aspect":
        aspect = (crop[3] - crop[1]) * shape[1] / ((crop[2] - crop[0]) * shape[0])
        area = paste_height * paste_width
        paste_width = tf.minimum(tf.minimum(tf.sqrt(area * aspect), 1.0), aspect)
        paste_height = paste_width / aspect
    hole = most_salient_box(background_saliency, paste_height, paste_width, u[5])

    size = spec.size
    if spec.canvas_min < 1:
        window = window_around(hole, spec.canvas_min, u[6:9])
        hole = (hole - tf.tile(window[:2], [2])) / (window[2] - window[0])
        background = place(background, window, [size, size])
    hole = to_pixels(hole, size)
    pasted = place(image, crop, hole[2:] - hole[:2])
    row, column = tf.range(size)[:, None], tf.range(size)[None]
    within = (row >= hole[0]) & (row < hole[2]) & (column >= hole[1]) & (column < hole[3])
    around = tf.stack([[hole[0], size - hole[2]], [hole[1], size - hole[3]], [0, 0]])
    view = tf.where(within[..., None], tf.ensure_shape(tf.pad(pasted, around), [size, size, 3]), background)
    return view, placed_mask(saliency.cells, crop, hole, size)
