"""Host input: batches of views for training, and padded batches of whole images for evaluation, as NumPy arrays."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import tensorflow as tf

from cvsa_jax.data import decode
from cvsa_jax.data.index import example_order, position_words
from cvsa_jax.data.sources import Source
from cvsa_jax.data.view_spec import ViewSpec
from cvsa_jax.data.views import group_views, labelled_crop
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.workers import CORES

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples come when: the global batches of `steps`, a pure function of (seed, step), of which this process
    gets the `process_index`-th of `process_count` equal contiguous shares."""

    batch_size: int  # global
    steps: range
    seed: int
    process_index: int = 0
    process_count: int = 1

    @property
    def share(self) -> int:
        """Rows of a batch that are this process's."""
        return self.batch_size // self.process_count

    def position(self, step: tf.Tensor, row: tf.Tensor | int) -> tf.Tensor:
        """Place in the data order of one of this process's rows of a step's batch."""
        return step * self.batch_size + self.process_index * self.share + row


@runtime_checkable
class Maps(Protocol):
    """(N, G, G) uint8 maps, as an array or a store: indexed with (k,) integers they give (k, G, G)."""

    shape: tuple[int, ...]

    def __getitem__(self, indices): ...


def train_batches(
    source: Source,
    pool: np.ndarray,
    saliency: Maps | None,
    spec: ViewSpec,
    order: Order,
    labels: np.ndarray | None = None,
) -> Iterator[Batch]:
    """This process's rows of the batches of views.

    Args:
        pool: indices into the source that take part; one pass over them is an epoch.
        saliency: maps of the whole source, or None where no view needs one.
        labels: (N,) int32 of the whole source, or None where nothing needs them.

    Yields:
        `view1`, `view2`, with saliency `mask1`, `mask2` (see `group_views`), `position` (b, 2) uint32, and with labels
        `label` (b,) int32.

    Raises:
        UserError: the pool is smaller than a group, or an image cannot be decoded (it is named).
    """
    if len(pool) < spec.group:
        raise UserError(f"{source.name}: {len(pool)} images are fewer than config.views.group={spec.group}")
    groups_per_share = order.share // spec.group
    read = _Reader(source, saliency)

    def make_group(number: tf.Tensor) -> dict[str, tf.Tensor]:
        step, group = number // groups_per_share, number % groups_per_share
        positions = order.position(step, group * spec.group) + tf.range(spec.group, dtype=tf.int64)
        examples = tf.gather(tf.constant(pool, tf.int64), example_order(positions, len(pool), order.seed))
        images, maps = read(examples, spec.group)
        batch = group_views(images, examples, positions, maps, spec, order.seed)
        if labels is not None:
            batch["label"] = tf.gather(tf.constant(labels, tf.int32), examples)
        return batch | {"position": position_words(positions)}

    numbers = tf.data.Dataset.range(*(k * groups_per_share for k in (order.steps.start, order.steps.stop)))
    ds = _mapped(numbers, make_group)
    ds = ds.batch(groups_per_share, drop_remainder=True)
    ds = ds.map(lambda batch: {k: tf.reshape(v, [order.share, *v.shape[2:]]) for k, v in batch.items()})
    return _as_numpy(ds.prefetch(2), source, pool, read)


def crop_batches(
    source: Source, pool: np.ndarray, order: Order, *, area: tuple[float, float], size: int
) -> Iterator[Batch]:
    """This process's rows of batches of augmented crops with their labels: `image` (b, size, size, 3) uint8 and `label`
    (b,) int32. `area` is the crop's range of fractions of the image."""
    read = _Reader(source, None)

    def make(number: tf.Tensor) -> dict[str, tf.Tensor]:
        position = order.position(number // order.share, number % order.share)
        example = tf.gather(tf.constant(pool, tf.int64), example_order(position[None], len(pool), order.seed))
        (image,), _ = read(example, 1)
        label = tf.gather(tf.constant(source.labels, tf.int32), example)[0]
        return {"image": labelled_crop(image, position, area, size, order.seed), "label": label}

    ds = _mapped(tf.data.Dataset.range(*(k * order.share for k in (order.steps.start, order.steps.stop))), make)
    return _as_numpy(ds.batch(order.share, drop_remainder=True).prefetch(2), source, pool, read)


def image_batches(
    source: Source, indices: np.ndarray, *, resize: int, size: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images for evaluation, in order: shorter side to `resize`, then the centre size × size crop.

    `resize` 0 instead squeezes the whole image to size × size, so that masks can be laid over it. The last batch is
    padded with zeros; yields ((batch_size, size, size, 3) uint8, number of rows that are not padding).
    """
    read = _Reader(source, None)

    def make(index: tf.Tensor) -> tf.Tensor:
        (image,), _ = read(index[None], 1)
        if resize:
            shape = tf.cast(tf.shape(image)[:2], tf.float32)
            scaled = tf.cast(tf.round(shape * (resize / tf.reduce_min(shape))), tf.int32)
            image = tf.image.resize(image, scaled, antialias=True)
            image = tf.image.resize_with_crop_or_pad(image, size, size)
        else:
            image = tf.image.resize(image, (size, size), antialias=True)
        return tf.saturate_cast(tf.round(image), tf.uint8)

    ds = _mapped(tf.data.Dataset.from_tensor_slices(np.asarray(indices, np.int64)), make)
    for images in _as_numpy(ds.batch(batch_size).prefetch(2), source, indices, read):
        yield np.pad(images, [(0, batch_size - len(images))] + [(0, 0)] * 3), len(images)


def readable(source: Source, indices: np.ndarray, on_bad_image: str, usable: np.ndarray | None = None) -> np.ndarray:
    """The images among `indices` that can be decoded; with `on_bad_image` `skip` it prints which are left out.

    Args:
        usable: (N,) bool from a pass that has read every image; without it `skip` reads them all, and `stop` leaves
            it to the batches to stop at a bad one.

    Raises:
        UserError: with `stop`, where a bad image is known.
    """
    if usable is None and on_bad_image == "stop":
        return indices
    if usable is None:
        bad = unreadable(source, indices)
    else:
        bad = {source.names[i]: "noticed by the saliency pass" for i in indices if not usable[i]}
    if bad and on_bad_image == "stop":
        raise unreadable_error(source, bad)
    for name, reason in bad.items():
        print(f"skipped: {name} cannot be decoded ({reason})")
    return np.array([i for i in indices if source.names[i] not in bad])


def readable_splits(source: Source, data) -> tuple[np.ndarray, np.ndarray]:
    """The images of `config.data.train_split` and `config.data.test_split` that can be decoded, as `readable` says."""
    splits = (source.split(name) for name in (data.train_split, data.test_split))
    return tuple(readable(source, split, data.on_bad_image) for split in splits)


def unreadable(source: Source, indices: np.ndarray) -> dict[str, str]:
    """Names of the images that cannot be decoded, each with the reason in one line. Reads every image."""
    reasons = {}
    for i in indices:
        try:
            load_image(source, int(i))
        except decode.Unreadable as error:
            reasons[source.names[i]] = str(error)
    return reasons


def load_image(source: Source, i: int) -> np.ndarray:
    """Image i as (H, W, 3) uint8; `decode.Unreadable` says why it cannot be read or decoded."""
    try:
        return decode.to_array(source.read(i))
    except OSError as error:
        raise decode.Unreadable(str(error)) from None


def unreadable_error(source: Source, bad: dict[str, str]) -> UserError:
    """The error that names unreadable images, name -> reason."""
    listed = some(f"{name} ({reason})" for name, reason in bad.items())
    return UserError(
        f"{len(bad)} of {len(source)} images of {source.name} cannot be decoded: {listed}. Replace them, or leave "
        "them out with --config.data.on_bad_image=skip"
    )


class _Reader:
    """(examples, k) -> (k decoded images, their (k, G, G) maps or None), in a graph. `problem` is what went wrong with
    the maps: TensorFlow hands on the text of an exception, but not the exception."""

    def __init__(self, source: Source, saliency: Maps | None):
        self.source, self.saliency = source, saliency
        self.problem: UserError | None = None

    def __call__(self, examples: tf.Tensor, k: int) -> tuple[list[tf.Tensor], tf.Tensor | None]:
        types = (tf.string,) if self.saliency is None else (tf.string, tf.uint8)
        encoded, *maps = tf.numpy_function(self._read, [examples], types, stateful=False)
        images = [decode.decode(encoded[i]) for i in range(k)]
        if maps:
            maps[0].set_shape([k, *self.saliency.shape[1:]])
        return images, maps[0] if maps else None

    def _read(self, examples: np.ndarray) -> tuple[np.ndarray, ...]:
        encoded = np.array([self.source.read(int(i)) for i in examples], object)
        if self.saliency is None:
            return (encoded,)
        try:
            return encoded, self.saliency[examples]
        except UserError as problem:
            self.problem = problem
            raise


def _mapped(ds: tf.data.Dataset, function) -> tf.data.Dataset:
    convert_nothing = tf.autograph.experimental.do_not_convert(function)
    options = tf.data.Options()
    # Its thread sleeps up to a minute between two looks, and an iterator that is closed waits for it.
    options.autotune.enabled = False
    return ds.map(convert_nothing, num_parallel_calls=CORES, deterministic=True).with_options(options)


def _as_numpy(ds: tf.data.Dataset, source: Source, pool: np.ndarray, read: _Reader) -> Iterator:
    """Iterates; a decoding error, which does not say which file it is about, becomes one that names the files."""
    try:
        yield from ds.as_numpy_iterator()
    except tf.errors.OpError as error:
        if read.problem is not None:
            raise read.problem from error
        if not (bad := unreadable(source, pool)):
            raise
        raise unreadable_error(source, bad) from error
