"""Resizing a box of an image, or of a map, to a box of a view. Boxes are (y0, x0, y1, x1)."""

import tensorflow as tf

from cvsa_jax.data.view_spec import MASK_STRIDE


def place(image: tf.Tensor, source: tf.Tensor, shape: tf.Tensor | list[int]) -> tf.Tensor:
    """The box `source` (in fractions) of an image, resized to `shape` (height, width); bilinear with antialiasing.

    (H, W, C) of any type -> (height, width, C) float32. Pixels beside the box take part at its edges.
    """
    extent = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = tf.cast(shape, tf.float32) / ((source[2:] - source[:2]) * extent)
    return tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=shape,
        scale=scale,
        translation=-source[:2] * extent * scale,
        kernel_type="triangle",
        antialias=True,
    )[0]


def placed_mask(cells: tf.Tensor, source: tf.Tensor, target: tf.Tensor, size: int) -> tf.Tensor:
    """What `place` gives for a map (G, G) when it fills the whole-pixel box `target` of a size × size view that is 0
    elsewhere, averaged over squares of MASK_STRIDE pixels: (size / MASK_STRIDE,) * 2 float32. Each axis is a small
    matrix, so that no mask is ever made at full size."""
    grid = cells.shape[0]
    pixel = tf.range(size, dtype=tf.float32) + 0.5
    weights = []
    for axis in (0, 1):
        low, high = tf.cast(target[axis], tf.float32), tf.cast(target[axis + 2], tf.float32)
        per_pixel = (source[axis + 2] - source[axis]) * grid / (high - low)  # cells
        centre = source[axis] * grid + (pixel - low) * per_pixel
        distance = tf.abs(tf.range(grid, dtype=tf.float32) + 0.5 - centre[:, None]) / tf.maximum(per_pixel, 1.0)
        triangle = tf.maximum(1.0 - distance, 0.0)
        triangle = tf.math.divide_no_nan(triangle, tf.reduce_sum(triangle, 1, keepdims=True))
        within = tf.where((pixel > low) & (pixel < high), 1.0 / MASK_STRIDE, 0.0)
        weights.append(tf.reduce_sum(tf.reshape(within[:, None] * triangle, [-1, MASK_STRIDE, grid]), 1))
    return weights[0] @ tf.matmul(tf.cast(cells, tf.float32), weights[1], transpose_b=True)
