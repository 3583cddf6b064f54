"""Where a pipeline's images come from: encoded files, which TensorFlow reads and decodes, or squares that are kept
decoded."""

import os
from typing import Protocol, runtime_checkable

import numpy as np
import tensorflow as tf

from cvsa_jax.data import decode, pixels
from cvsa_jax.data.headers import OTHER, Headers
from cvsa_jax.data.reading import load_image, read
from cvsa_jax.data.sources import Source
from cvsa_jax.data.stored import Squares
from cvsa_jax.runtime.callbacks import called_back, go_on
from cvsa_jax.runtime.workers import spread

Rows = dict[str, np.ndarray]
Tensors = dict[str, tf.Tensor]


@runtime_checkable
class Pictures(Protocol):
    """`look` at examples (b,): what is known of them, name -> (b, …), and their heights and widths (b, 2) in px.
    `planned` adds how they are to be read, where views need no more than `least` (b, 2) px of them (None: all of them),
    and gives the heights and widths (b, 2) that they then have. `fetched` and `image` are of the graph: the first asks
    for what one of them needs of the disk, the second makes it (H, W, 3) uint8. After an error `mend` tells whether the
    examples (b,) can be read now; it raises decode.Unreadable at one that cannot. `close` comes last."""

    def look(self, examples: np.ndarray) -> tuple[Rows, np.ndarray]: ...

    def planned(self, known: Rows, shapes: np.ndarray, least: np.ndarray | None) -> tuple[Rows, np.ndarray]: ...

    def fetched(self, picture: Tensors) -> Tensors: ...

    def image(self, picture: Tensors) -> tf.Tensor: ...

    def mend(self, examples: np.ndarray) -> bool: ...

    def close(self) -> None: ...


class Files:
    """The encoded images of a source: JPEGs by TensorFlow's decoder, others by the project's."""

    def __init__(self, source: Source):
        self._source, self._headers = source, Headers(source)

    def look(self, examples: np.ndarray) -> tuple[Rows, np.ndarray]:
        """Raises decode.Unreadable at what is no image."""
        source, contents = self._source, None
        if source.path is None:
            files = contents = spread(lambda i: _read(source, i), examples.tolist())
        else:
            files = [os.fsencode(source.path(int(i))) for i in examples]
        shapes, turns = self._headers.look(examples, contents)
        return {"file": np.array(files, object), "turn": turns.astype(np.int32)}, shapes

    def planned(self, known: Rows, shapes: np.ndarray, least: np.ndarray | None) -> tuple[Rows, np.ndarray]:
        """JPEGs are read at a half, a quarter or an eighth of their size where that is no smaller than `least`."""
        ratios = np.zeros(len(shapes), np.int32)
        if least is not None and not self._source.cut:
            ratios = np.where(known["turn"] == OTHER, 0, pixels.halvings(shapes, least))
        whole = shapes + np.where(known["turn"] == OTHER, 0, self._source.cut)[:, None] * np.array([1, 0])
        how = {"ratio": ratios, "shape": pixels.read_shapes(whole, ratios).astype(np.int32)}
        return known | how, pixels.read_shapes(shapes, ratios)

    def fetched(self, picture: Tensors) -> Tensors:
        if self._source.path is None:
            return picture
        return picture | {"file": tf.io.read_file(picture["file"])}

    def image(self, picture: Tensors) -> tf.Tensor:
        cut = self._source.cut

        def by_us(encoded: tf.Tensor) -> tf.Tensor:
            def decoded(encoded: bytes) -> np.ndarray:
                return np.asarray(decode.opened(encoded, cut).pixels())

            image = tf.numpy_function(called_back(decoded), [encoded], tf.uint8, stateful=False)
            return tf.ensure_shape(image, (None, None, 3))

        image = pixels.decoded(picture["file"], picture["turn"], picture["ratio"], by_us)
        # A file may have been replaced since its header was read.
        with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(image)[:2], picture["shape"])]):
            return tf.identity(image)

    def mend(self, examples: np.ndarray) -> bool:
        """Where a file has been replaced, or only the project's decoder reads it, that is known from now on."""
        mended = False
        for i in examples.tolist():
            load_image(self._source, i)
            changed = self._headers.look_again(i)
            if not changed and self._is_odd(i):
                self._headers.leave_to_us(i)
                changed = True
            mended |= changed
        return mended

    def _is_odd(self, i: int) -> bool:
        """Whether TensorFlow's decoder is asked for an image that it does not read."""
        if self._headers.turns[i] == OTHER:
            return False
        known, shapes = self.look(np.array([i]))
        known = self.planned(known, shapes, None)[0] | {"file": [read(self._source, i)]}
        try:
            self.image({name: tf.constant(value[0]) for name, value in known.items()})
        except (tf.errors.OpError, ValueError):
            return True
        return False

    def close(self) -> None:
        self._headers.keep()


class Kept:
    """The images of a source from the squares that are kept of them."""

    def __init__(self, squares: Squares):
        self._squares = squares

    def look(self, examples: np.ndarray) -> tuple[Rows, np.ndarray]:
        squares, shapes = self._squares.of(examples)
        return {"square": squares}, shapes

    def planned(self, known: Rows, shapes: np.ndarray, least: np.ndarray | None) -> tuple[Rows, np.ndarray]:
        del least
        return known, np.full(shapes.shape, known["square"].shape[1])

    def fetched(self, picture: Tensors) -> Tensors:
        return picture

    def image(self, picture: Tensors) -> tf.Tensor:
        return picture["square"]

    def mend(self, examples: np.ndarray) -> bool:
        del examples
        return False

    def close(self) -> None:
        pass


def _read(source: Source, i: int) -> bytes:
    go_on()
    try:
        return read(source, i)
    except OSError as error:
        raise decode.Unreadable(str(error)) from None
