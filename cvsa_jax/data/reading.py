"""Images of a source, one at a time: opened, decoded, and told apart from what cannot be read."""

import time

import numpy as np

from cvsa_jax.data import decode
from cvsa_jax.data.sources import Source
from cvsa_jax.data.sources.source import TIMES
from cvsa_jax.runtime.errors import UserError, some

PAUSE = 1.0  # s, before a file is read again


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
        return decode.opened(read(source, i), source.cut)
    except OSError as error:
        raise decode.Unreadable(str(error)) from None


def read(source: Source, i: int) -> bytes:
    """An image's bytes; asked for again a moment later where a network's file system fails once."""
    try:
        return source.read(i)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except OSError as error:
        if error.errno is None:  # not the system's: what was read makes no sense, and will not later
            raise
        time.sleep(PAUSE)
        return source.read(i)


def unreadable_error(source: Source, bad: dict[str, str]) -> UserError:
    """The error that names unreadable images, name -> reason."""
    listed = some(f"{name} ({reason})" for name, reason in bad.items())
    return UserError(
        f"{len(bad)} of {len(source)} images of {source.name} cannot be decoded: {listed}. Leave them out with "
        "--config.data.on_bad_image=skip (of embed: --skip_bad_images), or replace or remove them before a training "
        "begins. One that has begun goes on with that as well, unless they were sound then: put those back as they were"
    )
