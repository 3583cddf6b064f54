"""Host input: tf.data pipelines that give batches of views for training, and whole images for evaluation.

The order of the images, then their files, the plan of their views, their pixels, batches. The plan is made once for a
batch, in NumPy; pixels are TensorFlow operations in tf.data's own threads (`data.views`)."""

import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from cvsa_jax.data import decode, pixels
from cvsa_jax.data.index import Order
from cvsa_jax.data.pictures import Files, Kept, Pictures, Tensors
from cvsa_jax.data.reading import PAUSE, unreadable, unreadable_error
from cvsa_jax.data.resample import PLACES, with_masks
from cvsa_jax.data.saliency_maps import Mapped, Maps
from cvsa_jax.data.sources import Source
from cvsa_jax.data.stored import Squares
from cvsa_jax.data.view_spec import MASK_STRIDE, ViewSpec
from cvsa_jax.data.views import Boxes, Cuts, LabelledCrops, Making, Pairs, WholeImages
from cvsa_jax.runtime import workers
from cvsa_jax.runtime.callbacks import called_back
from cvsa_jax.runtime.errors import UserError

_AHEAD = 2  # batches
Batch = dict[str, np.ndarray]
Places = Callable[[int], tuple[np.ndarray, np.ndarray]]  # step -> examples (b,) and positions (b,) of its rows


def train_batches(
    source: Source,
    pool: np.ndarray,
    saliency: Maps | None,
    spec: ViewSpec,
    order: Order,
    labels: np.ndarray | None = None,
    squares: Squares | None = None,
) -> Iterator[Batch]:
    """This process's rows of the batches of views.

    Args:
        pool: indices into the source that take part; one pass over them is an epoch.
        saliency: maps of the whole source, or None where no view needs one.
        labels: (N,) int32 of the whole source, or None where nothing needs them.
        squares: the images as they are kept decoded; None: they are read from their files.

    Yields:
        What `views.Pairs` gives, and with labels `label` (b,) int32.

    Raises:
        UserError: the pool is smaller than a group, or an image cannot be decoded (it is named).
    """
    if len(pool) < spec.group:
        raise UserError(f"{source.name}: {len(pool)} images are fewer than config.views.group={spec.group}")
    making = Pairs.of(saliency, spec, order.seed)
    return Input(source, pool, in_order(order, pool), making, labels, squares).batches(order.steps)


def crop_batches(
    source: Source,
    pool: np.ndarray,
    order: Order,
    *,
    area: tuple[float, ...],
    size: int,
    squares: Squares | None = None,
) -> Iterator[Batch]:
    """This process's rows of batches of augmented crops with their labels: `image` (b, size, size, 3) uint8 and `label`
    (b,) int32. `area` is the crop's range of fractions of the image; `squares` as in `train_batches`."""
    making = LabelledCrops(area, size, order.seed)
    return Input(source, pool, in_order(order, pool), making, source.labels, squares).batches(order.steps)


def image_batches(
    source: Source, indices: np.ndarray, *, resize: int, size: int, batch_size: int, maps: Maps | None = None
) -> Iterator[tuple[np.ndarray | Mapped, int]]:
    """Images for evaluation, in order: shorter side to `resize`, then the centre size × size crop.

    `resize` 0 instead squeezes the whole image to size × size, so that masks can be laid over it. The last batch is
    padded with zeros; yields ((batch_size, size, size, 3) uint8, number of rows that are not padding); with `maps`, of
    the whole source, `Mapped` in the place of the images.
    """

    def rows(step: int) -> tuple[np.ndarray, np.ndarray]:
        places = np.arange(step * batch_size, min((step + 1) * batch_size, len(indices)))
        return indices[places], places

    steps = range(-(-len(indices) // batch_size))
    for batch in Input(source, indices, rows, WholeImages(resize, size, maps)).batches(steps):
        count = len(batch["image"])
        if count < batch_size:
            batch = {name: _padded(values, batch_size) for name, values in batch.items()}
        yield batch["image"] if maps is None else Mapped(**batch), count


def in_order(order: Order, pool: np.ndarray) -> Places:
    """Where the pool's images stand in the data order."""

    def rows(step: int) -> tuple[np.ndarray, np.ndarray]:
        positions = order.positions(step)
        return order.examples(pool, positions), positions

    return rows


class Input:
    """A tf.data pipeline over images of a source."""

    def __init__(
        self,
        source: Source,
        pool: np.ndarray,
        places: Places,
        making: Making,
        labels: np.ndarray | None = None,
        squares: Squares | None = None,
    ):
        """`pool`: the images among which those that cannot be read are looked for; the rest as in `train_batches`."""
        self._source, self._pool, self._places, self._making, self._labels = source, pool, places, making, labels
        self._pictures: Pictures = Files(source) if squares is None else Kept(squares)
        # Of steps whose plan failed: TensorFlow tells of it in its own words.
        self._failures: dict[int, Exception] = {}

    def batches(self, steps: range) -> Iterator[Batch]:
        """The batches of these steps as arrays, which may not be written to. Raises UserError at an image that cannot
        be read."""
        pixels.leave_accelerators()
        step, again, held = steps.start, False, [self]
        # As the program ends, modules lose their contents before a generator that was left open is closed.
        errors, ends = (tf.errors.OpError, decode.Unreadable), sys.is_finalizing
        try:
            while step < steps.stop:
                try:
                    for batch in self.dataset(range(step, steps.stop), held).as_numpy_iterator():
                        yield batch
                        step, again = step + 1, False
                except errors:
                    self._mend(step, again)
                    again = True
        finally:
            held.clear()
            if not ends():
                self._pictures.close()

    def dataset(self, steps: range, held: list["Input"] | None = None) -> tf.data.Dataset:
        """The batches of these steps as dictionaries of tensors. `held`: of this pipeline, which can be given up:
        TensorFlow keeps every function of Python that it was ever given."""
        held = [self] if held is None else held
        like = self._plan(steps.start)
        flat = tf.nest.flatten(like)
        first = {steps.start: flat}  # made already, once

        def plan(step: np.integer) -> list[np.ndarray]:
            return first.pop(int(step), None) or tf.nest.flatten(held[0]._plan(int(step)))

        def planned(step: tf.Tensor) -> dict:
            types = [tf.as_dtype(array.dtype) for array in flat]
            told = tf.numpy_function(called_back(plan), [step], types, stateful=False)
            told = [tf.ensure_shape(value, (None, *array.shape[1:])) for value, array in zip(told, flat, strict=True)]
            return tf.nest.pack_sequence_as(like, told)

        def mapped(data: tf.data.Dataset, function: Callable, calls: int) -> tf.data.Dataset:
            return data.map(tf.autograph.experimental.do_not_convert(function), num_parallel_calls=calls)

        groups = mapped(tf.data.Dataset.range(steps.start, steps.stop), planned, _AHEAD).unbatch()
        made = mapped(mapped(groups, self._fetched, workers.READERS), self._made, workers.CORES)
        return mapped(made.batch(len(flat[0])), _joined, 1).prefetch(_AHEAD).with_options(_options())

    def pairs(self, steps: range) -> tf.data.Dataset:
        """`dataset` of pairs of views for who has no step of ours: their masks are placed, and only views, masks and
        labels are given."""
        try:
            data = self.dataset(steps)
        except decode.Unreadable:
            raise unreadable_error(self._source, unreadable(self._source, self._pool)) from None
        data = data.apply(tf.data.experimental.assert_cardinality(len(steps)))
        if "cells" not in data.element_spec:
            return data.map(_shown)
        size = data.element_spec["view1"].shape[1]

        def masks(*rows) -> tuple[np.ndarray, np.ndarray]:
            made = with_masks(dict(zip(PLACES, rows, strict=True)), size, np)
            return made["mask1"], made["mask2"]

        def placed(batch: Tensors) -> Tensors:
            made = tf.numpy_function(called_back(masks), [batch[name] for name in PLACES], [tf.uint8] * 2, False)
            side = size // MASK_STRIDE
            first, second = (tf.ensure_shape(mask, (None, side, side)) for mask in made)
            return _shown(batch | {"mask1": first, "mask2": second})

        return data.map(tf.autograph.experimental.do_not_convert(placed)).prefetch(_AHEAD)

    def _plan(self, step: int) -> dict:
        """What the pixels of a step are made of, each (groups, …)."""
        try:
            examples, positions = self._places(step)
            known, shapes = self._pictures.look(examples)
            boxes, needs, told = self._making.decide(examples, positions, shapes)
            least = _least(boxes, len(examples)) if self._making.shrinks else None
            pictures, read = self._pictures.planned(known, shapes, least)
            whole, real = pixels.cuts(read[boxes.of], boxes.box, boxes.size)
            if self._labels is not None:
                told = told | {"label": self._labels[examples].astype(np.int32)}
            parts = {"pictures": pictures, "cuts": {"whole": whole, "real": real}, "needs": needs, "told": told}
            b, g = len(examples), self._making.group
            return tf.nest.map_structure(lambda rows: _by_group(rows, b, g), parts)
        except Exception as error:
            self._failures[step] = error
            raise

    def _fetched(self, group: dict) -> dict:
        columns = {name: tf.unstack(value) for name, value in group["pictures"].items()}
        each = ({name: column[k] for name, column in columns.items()} for k in range(self._making.group))
        return group | {"pictures": tuple(self._pictures.fetched(picture) for picture in each)}

    def _made(self, group: dict) -> Tensors:
        images = [self._pictures.image(picture) for picture in group["pictures"]]
        cuts = Cuts(**{name: tf.unstack(value) for name, value in group["cuts"].items()})
        needs = {name: tf.unstack(value) for name, value in group["needs"].items()}
        return self._making.pixels(images, cuts, needs) | group["told"]

    def _mend(self, step: int, again: bool) -> None:
        """Does what lets the batch of this step be made after all; `again`: not for the first time. Raises UserError,
        of all images that cannot be read, or whatever error was none of an image's."""
        failure = self._failures.pop(step, None)
        if failure is not None and not isinstance(failure, decode.Unreadable):
            raise failure from None
        examples, _ = self._places(step)
        try:
            if self._pictures.mend(examples):
                return
        except decode.Unreadable:
            if bad := unreadable(self._source, self._pool):
                raise unreadable_error(self._source, bad) from None
        if again:
            reason = f": {failure}" if failure else ""
            raise UserError(
                f"an image of {self._source.name} could not be read, and can be now{reason}. Try again"
            ) from None
        time.sleep(PAUSE)


def _least(boxes: Boxes, b: int) -> np.ndarray:
    """(b, 2) smallest height and width in px at which no box enlarges what it takes of an image."""
    least, needed = np.zeros((b, 2)), boxes.size / (boxes.box[:, 2:] - boxes.box[:, :2])
    np.maximum.at(least, boxes.of[boxes.used], needed[boxes.used])
    return least


def _by_group(rows: np.ndarray, b: int, g: int) -> np.ndarray:
    """Blocks of b rows, one after the other, as (b / g, blocks · g, …): of each group its rows of every block."""
    blocks = rows.reshape(-1, b // g, g, *rows.shape[1:])
    return np.ascontiguousarray(blocks.swapaxes(0, 1)).reshape(b // g, -1, *rows.shape[1:])


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    """So many rows, of which the last are 0."""
    return np.pad(rows, [(0, length - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def _shown(batch: Tensors) -> Tensors:
    return {name: batch[name] for name in ("view1", "view2", "mask1", "mask2", "label") if name in batch}


def _joined(batch: Tensors) -> Tensors:
    """Groups (n, g, …) as rows (n·g, …)."""
    return {name: tf.reshape(rows, tf.concat([[-1], tf.shape(rows)[2:]], 0)) for name, rows in batch.items()}


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic, options.autotune.enabled = True, False
    # With more threads than cores, operations of several images take turns in the processor's caches: a fifth slower.
    options.threading.private_threadpool_size, options.threading.max_intra_op_parallelism = workers.CORES, 1
    return options
