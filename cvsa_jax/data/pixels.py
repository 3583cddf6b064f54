"""Encoded bytes -> pixels -> boxes of them at other sizes, as TensorFlow operations: what tf.data's own threads do for
each image, without Python.

Resizing is bilinear with antialiasing, as `data.resample` and Pillow do it, to within a rounding."""

import contextlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from cvsa_jax.data.headers import OTHER

RATIOS = (1, 2, 4, 8)  # at which libjpeg reads a JPEG smaller
# A JPEG that is read smaller is softer than what a view averages of it. Read at just the size that is needed, a large
# photograph gives views of 48 px that differ by 1.5 to 2 levels on average from those of the whole one; read at twice
# that size by .5 to .7.
FINER = 2
# Of an image whose rows and columns are exchanged from orientation 5 on, the axes that are then mirrored.
_MIRRORED = np.array([(0, 0)] * 2 + [(0, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0)], bool)
_WHOLE = (3, 3, 4, 2, 2, 4, 2, 2, 3)  # sizes of the parts of `cuts`' first array
_REAL = (2, 2, 2, 2)  # and of its second


def decoded(encoded: tf.Tensor, turn: tf.Tensor, ratio: tf.Tensor, decode: Callable[[tf.Tensor], tf.Tensor]):
    """(H, W, 3) uint8, upright. `turn`: OTHER, and `decode` gives the image, or the orientation of a JPEG; `ratio`: the
    place in RATIOS of how much smaller the JPEG is read."""
    # As Pillow has libjpeg do it, so that both read the same levels.
    options = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
    smaller = [lambda r=r: tf.io.decode_jpeg(encoded, ratio=r, **options) for r in RATIOS]
    image = tf.switch_case(
        tf.where(turn == OTHER, len(RATIOS), ratio), [*smaller, lambda: decode(encoded)], name="decode"
    )
    return tf.cond(turn > 1, lambda: _upright(image, turn), lambda: image)


def _upright(image: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    image = tf.cond(turn >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    return tf.raw_ops.Reverse(tensor=image, dims=tf.concat([tf.gather(_MIRRORED, turn), [False]], 0))


def halvings(shapes: np.ndarray, least: np.ndarray) -> np.ndarray:
    """(n,) int32 places in RATIOS of how much smaller images of these shapes, (n, 2) height and width in px, are read
    where views enlarge nothing of them from `least` (n, 2) on: to no less than FINER times that."""
    spare = (shapes // np.maximum(np.ceil(FINER * least), 1)).min(1)
    return (np.searchsorted(RATIOS, np.clip(spare, 1, RATIOS[-1]), side="right") - 1).astype(np.int32)


def read_shapes(shapes: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """(n, 2) int of the images read as `halvings` says."""
    return -(-shapes // np.array(RATIOS)[ratios][:, None])


def cuts(shapes: np.ndarray, boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of `resized` for n boxes (n, 4) in fractions of images of the shapes (n, 2), at the sizes (n, 2) in
    px: (n, 25) int32 and (n, 8) float32. Pixels beside a box take part at its edges."""
    low, high = (np.clip(ends, 0, 1) * shapes for ends in (boxes[:, :2].astype(np.float64), boxes[:, 2:]))
    step = np.maximum(high - low, 1e-6) / sizes  # pixels of the image per pixel of the view
    reach = np.maximum(step, 1)
    first = np.clip(np.floor(low - reach), 0, shapes - 1).astype(np.int32)
    last = np.clip(np.ceil(high + reach), first + 1, shapes).astype(np.int32)
    (h, w), (rows, cols) = (last - first).T, sizes.T
    one, three = np.ones_like(h), np.full_like(h, 3)
    whole = [*first.T, 0 * one, h, w, three]  # the part of the image
    whole += [one, h, one, 3 * w, rows, one]  # fewer or more rows,
    whole += [rows, 3 * w, one, w, one, 3 * rows, cols, one]  # then, columns before rows, fewer or more columns
    whole += [3 * cols, rows, rows, cols, three]
    # A view's pixel at x takes part of the image around (x - shift) / scale.
    scale, ones = 1 / step, np.ones(len(step))
    shift = -(low - first) * scale
    real = [scale[:, 0], ones, shift[:, 0], 0 * ones, scale[:, 1], ones, shift[:, 1], 0 * ones]
    return np.stack(whole, 1).astype(np.int32), np.stack(real, 1).astype(np.float32)


def resized(image: tf.Tensor, whole: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
    """A box of an image (H, W, 3) uint8 at another size: (height, width, 3) uint8. `whole` and `real`: of `cuts`, one
    row of each.

    One axis is resized after the other, with all that lies along the other as the channels of one column: vector
    instructions go through these, and not through three. In between, matrices are transposed, which is faster than to
    exchange two axes of three.
    """
    begin, extent, tall, rows, lines, wide, cols, columns, size = tf.split(whole, _WHOLE)
    down, down_shift, across, across_shift = tf.split(real, _REAL)
    part = tf.reshape(tf.slice(image, begin, extent), tall)
    part = _scaled(part, rows, down, down_shift)
    part = tf.transpose(tf.reshape(part, lines))
    part = _scaled(tf.reshape(part, wide), cols, across, across_shift)
    part = tf.transpose(tf.reshape(tf.cast(tf.round(part), tf.uint8), columns))
    return tf.reshape(part, size)


def frames(boxes: np.ndarray, size: int) -> np.ndarray:
    """The argument of `pasted` for the whole-pixel boxes (n, 4) of views of `size` px: (n, 16) int32."""
    y0, x0, y1, x1 = boxes.T
    nothing, all_ = np.zeros_like(y0), np.full_like(y0, 3 * size)
    above, below = [nothing, nothing, y0, all_], [y1, nothing, size - y1, all_]
    left, right = [y0, nothing, y1 - y0, 3 * x0], [y0, 3 * x1, y1 - y0, all_ - 3 * x1]
    return np.stack([*above, *left, *right, *below], 1).astype(np.int32)


def pasted(behind: tf.Tensor, part: tf.Tensor, frame: tf.Tensor, size: int) -> tf.Tensor:
    """(size, size, 3) uint8 `behind` with `part` over a box of it. `frame`: one row of `frames`."""
    corners = tf.split(frame, [2] * 8)
    lines = tf.reshape(behind, [size, 3 * size])
    above, left, right, below = (tf.slice(lines, *corners[k : k + 2]) for k in (0, 2, 4, 6))
    middle = tf.concat([left, tf.reshape(part, [tf.shape(part)[0], 3 * tf.shape(part)[1]]), right], 1)
    return tf.reshape(tf.concat([above, middle, below], 0), [size, size, 3])


def cut_out(image: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`resized` at once: the box (4,), in fractions, of an image (H, W, 3) uint8 at the size (height, width)."""
    leave_accelerators()
    (whole,), (real,) = cuts(np.array([image.shape[:2]]), np.asarray(box)[None], np.array([size]))
    return resized(tf.constant(image), tf.constant(whole), tf.constant(real)).numpy()


def leave_accelerators() -> None:
    """Sees to it, unless TensorFlow is in use already, that it takes no accelerator's memory from JAX, and that an
    operation does not hand its work to other threads, which costs more than they take over."""
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
        tf.config.threading.set_intra_op_parallelism_threads(1)


def _scaled(images: tf.Tensor, size: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ScaleAndTranslate(
        images=images, size=size, scale=scale, translation=shift, kernel_type="triangle", antialias=True
    )
