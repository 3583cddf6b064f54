"""Host input: batches of views for training, and padded batches of whole images for evaluation, as NumPy arrays."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from cvsa_jax.data import decode
from cvsa_jax.data.index import example_order, position_words
from cvsa_jax.data.saliency_maps import SaliencyMaps, covering_rows, object_integral, saliency_maps
from cvsa_jax.data.sources import Source
from cvsa_jax.data.sources.source import TIMES
from cvsa_jax.data.view_spec import ViewSpec
from cvsa_jax.data.views import group_views, labelled_crop, resized
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.workers import in_threads

_PAUSE = 1.0  # s, before a file is read again
Batch = dict[str, np.ndarray]
Opener = Callable[[int], decode.Opened]  # image i of a source, its size known and its pixels not yet read


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

    def positions(self, step: int) -> np.ndarray:
        """(share,) int64 places in the data order of this process's rows of a step's batch."""
        return step * self.batch_size + self.process_index * self.share + np.arange(self.share)

    def examples(self, pool: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Which of the pool's images stand at these places."""
        return pool[example_order(positions, len(pool), self.seed)]


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
    opener: Opener | None = None,
) -> Iterator[Batch]:
    """This process's rows of the batches of views.

    Args:
        pool: indices into the source that take part; one pass over them is an epoch.
        saliency: maps of the whole source, or None where no view needs one.
        labels: (N,) int32 of the whole source, or None where nothing needs them.
        opener: opens the images; the source's own files where it is not given.

    Yields:
        What `group_views` gives, and `position` (b, 2) uint32, and with labels `label` (b,) int32.

    Raises:
        UserError: the pool is smaller than a group, or an image cannot be decoded (it is named).
    """
    if len(pool) < spec.group:
        raise UserError(f"{source.name}: {len(pool)} images are fewer than config.views.group={spec.group}")
    maps_of = None if saliency is None else MapReader(saliency, spec)
    opener = opener or functools.partial(open_image, source)

    def make_group(positions: np.ndarray) -> Batch:
        examples = order.examples(pool, positions)
        images = [opener(int(i)) for i in examples]
        words, maps = position_words(positions), None if maps_of is None else maps_of(examples)
        batch = group_views(images, examples, words, maps, spec, order.seed)
        return batch | {"position": words} | ({} if labels is None else {"label": labels[examples].astype(np.int32)})

    groups = (part for step in order.steps for part in order.positions(step).reshape(-1, spec.group))
    yield from _stacked(make_group, groups, order.share // spec.group, source, pool, np.concatenate)


def crop_batches(
    source: Source,
    pool: np.ndarray,
    order: Order,
    *,
    area: tuple[float, ...],
    size: int,
    opener: Opener | None = None,
) -> Iterator[Batch]:
    """This process's rows of batches of augmented crops with their labels: `image` (b, size, size, 3) uint8 and `label`
    (b,) int32. `area` is the crop's range of fractions of the image; `opener` as in `train_batches`."""
    opener = opener or functools.partial(open_image, source)

    def make(position: np.ndarray) -> Batch:
        (example,), (words,) = order.examples(pool, position), position_words(position)
        image = labelled_crop(opener(int(example)), words, area, size, order.seed)
        return {"image": image, "label": source.labels[example].astype(np.int32)}

    places = (part for step in order.steps for part in order.positions(step)[:, None])
    yield from _stacked(make, places, order.share, source, pool, np.stack)


def image_batches(
    source: Source, indices: np.ndarray, *, resize: int, size: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images for evaluation, in order: shorter side to `resize`, then the centre size × size crop.

    `resize` 0 instead squeezes the whole image to size × size, so that masks can be laid over it. The last batch is
    padded with zeros; yields ((batch_size, size, size, 3) uint8, number of rows that are not padding).
    """

    def make(index: np.integer) -> Batch:
        image = open_image(source, int(index)).pixels()
        whole = np.array([0, 0, 1, 1])
        return {"image": centre_crop(image, resize, size) if resize else np.asarray(resized(image, whole, [size] * 2))}

    for batch in _stacked(make, indices, batch_size, source, indices, np.stack):
        images = batch["image"]
        yield np.pad(images, [(0, batch_size - len(images))] + [(0, 0)] * 3), len(images)


def centre_crop(image: Image.Image, resize: int, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the middle of the image whose shorter side is `resize`. Nothing else of it is resized, so
    that an image of extreme shape costs no more than others."""
    shape = np.array(image.size[::-1])
    scaled = np.round(shape * (resize / shape.min()))
    low = (scaled - size) // 2
    return np.asarray(resized(image, np.concatenate([low, low + size]) / np.tile(scaled, 2), [size] * 2))


def readable(source: Source, indices: np.ndarray, on_bad_image: str, usable: np.ndarray | None = None) -> np.ndarray:
    """The images among `indices` that can be decoded; with `on_bad_image` `skip` it prints which are left out.

    Args:
        usable: (N,) bool from a pass that has read every image; without it `skip` reads them all, and `stop` leaves
            it to the batches to stop at a bad one.

    Raises:
        UserError: with `stop`, where a bad image is known; with `skip`, where no other is left.
    """
    if usable is None and on_bad_image == "stop":
        return indices
    if usable is None:
        bad = unreadable(source, indices)
    else:
        bad = {source.names[i]: "noticed by the saliency pass" for i in indices if not usable[i]}
    if bad and (on_bad_image == "stop" or len(bad) == len(indices)):
        raise unreadable_error(source, bad)
    for name, reason in bad.items():
        print(f"skipped: {name} cannot be decoded ({reason})")
    return np.array([i for i in indices if source.names[i] not in bad], dtype=indices.dtype)


def readable_splits(source: Source, data) -> tuple[np.ndarray, np.ndarray]:
    """The images of `config.data.train_split` and `config.data.test_split` that can be decoded, as `readable` says."""
    splits = (source.split(name) for name in (data.train_split, data.test_split))
    train, test = (readable(source, split, data.on_bad_image) for split in splits)
    if source.labels is not None and len(np.unique(source.labels[train])) == 1:
        print(f"warning: all {len(train)} train images are of one class, so accuracies say nothing")
    warn_of_overlap(source, train, test)
    return train, test


def warn_of_overlap(source: Source, train: np.ndarray, test: np.ndarray) -> None:
    """Prints a warning where test images are train images as well, or hold the same bytes under another name."""
    if both := len(np.intersect1d(train, test)):
        print(
            f"warning: {both} of the {len(test)} test images are train images as well, so the figures say nothing of "
            "new ones: make a split (folders train/ and test/, or a splits.csv)"
        )
    if source.hashes is None or source.looks_at == TIMES:
        return
    hashes = source.hashes()
    known = {hashes[i]: int(i) for i in train.tolist() if hashes[i]}
    copies = [(i, known[hashes[i]]) for i in np.setdiff1d(test, train).tolist() if hashes[i] in known]
    if copies:
        pairs = some((f"{source.names[i]} = {source.names[j]}" for i, j in copies), 2)
        print(
            f"warning: {len(copies)} of the {len(test)} test images are equal to train images byte by byte ({pairs}): "
            "on these the figures say nothing of new ones"
        )


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
    return np.asarray(open_image(source, i).pixels())


def open_image(source: Source, i: int) -> decode.Encoded:
    """Image i with its size known and its pixels not yet read; `decode.Unreadable` says why that cannot be."""
    try:
        return decode.opened(_read(source, i), source.cut)
    except OSError as error:
        raise decode.Unreadable(str(error)) from None


def _read(source: Source, i: int) -> bytes:
    """An image's bytes; asked for again a moment later where a network's file system fails once."""
    try:
        return source.read(i)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except OSError:
        time.sleep(_PAUSE)
        return source.read(i)


def unreadable_error(source: Source, bad: dict[str, str]) -> UserError:
    """The error that names unreadable images, name -> reason."""
    listed = some(f"{name} ({reason})" for name, reason in bad.items())
    return UserError(
        f"{len(bad)} of {len(source)} images of {source.name} cannot be decoded: {listed}. Leave them out with "
        "--config.data.on_bad_image=skip (of embed: --skip_bad_images), with which a pre-training that has begun goes "
        "on as well, or replace or remove them before one begins"
    )


class MapReader:
    """Examples (k,) -> their `SaliencyMaps`. What covers an object is searched once for each image."""

    def __init__(self, saliency: Maps, spec: ViewSpec):
        self.saliency, self.spec = saliency, spec
        self.rows = np.zeros(saliency.shape[:2], np.uint8)

    def __call__(self, examples: np.ndarray) -> SaliencyMaps:
        cells, threshold = self.saliency[examples], self.spec.threshold
        if self.spec.hole == "cover":
            for k in np.flatnonzero(self.rows[examples, -1] == 0):
                (integral,) = object_integral(cells[k : k + 1], threshold, np)
                self.rows[examples[k]] = covering_rows(integral, self.spec.cover)
        return saliency_maps(cells, self.rows[examples], threshold, np)


def _stacked(
    make: Callable[..., Batch], items, count: int, source: Source, pool: np.ndarray, join: Callable
) -> Iterator[Batch]:
    """What `make` gives for the items, made in threads, in batches of so many of them; the last may be smaller. An
    image that cannot be decoded becomes the error that names all such images of the pool."""
    try:
        parts = []
        for part in in_threads(make, items, ahead=2 * count):
            parts.append(part)
            if len(parts) == count:
                yield {name: join([part[name] for part in parts]) for name in part}
                parts = []
        if parts:
            yield {name: join([part[name] for part in parts]) for name in parts[0]}
    except decode.Unreadable as error:
        bad = unreadable(source, pool)
        if not bad:
            raise UserError(
                f"an image of {source.name} could not be read, and can be now: {error}. Try again"
            ) from None
        raise unreadable_error(source, bad) from None
