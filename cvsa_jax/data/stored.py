"""Decoded images of one size on disk: made once, used again by every run on the same images."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from cvsa_jax.data import decode
from cvsa_jax.data.reading import open_image, unreadable, unreadable_error
from cvsa_jax.data.sources import Source
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import cache_folder, check_room, whole_folder, write_json_atomically
from cvsa_jax.runtime.progress import Progress
from cvsa_jax.runtime.workers import in_threads

_FILES = ("identity.json", "images.npy", "shapes.npy")


class Squares:
    """The stored squares of images of a source, by their index in it."""

    def __init__(self, source: Source, indices: np.ndarray, size: int):
        self.images, self.shapes = stored_squares(source, indices, size)
        self.places = np.full(len(source), -1)
        self.places[indices] = np.arange(len(indices))

    def of(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(k, P, P, 3) uint8, and (k, 2) float32 heights and widths in px that they had before. IndexError at an image
        that is none of those that are stored."""
        places = self.places[examples]
        if places.min() < 0:
            raise IndexError(f"image {examples[places.argmin()]} is none of those that are stored")
        return self.images[places], self.shapes[places]


def stored_squares(source: Source, indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The images at the indices, squeezed to squares, (N, size, size, 3) uint8 mapped from disk, and their original
    (N, 2) float32 heights and widths in px. They lie in the user's cache, from where they may be deleted.

    Raises:
        UserError: an image cannot be decoded (all such images are named), or the disk is too small for them.
    """
    identity = {"fingerprint": source.fingerprint, "indices": np.asarray(indices).tolist(), "size": size}
    identity["decoder"] = decode.DECODER
    told = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"images-{source.fingerprint}-{size}-{told}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {folder.parent} cannot be made ({error.strerror}): name another in XDG_CACHE_HOME"
        ) from None
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a folder that cannot be written to, or without locks
            lock = held.enter_context(open(folder.with_name(f".{folder.name}.lock"), "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one decodes, and the others wait
        if not all((folder / name).is_file() for name in _FILES):
            _decode(source, indices, size, folder, identity)
    return np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "shapes.npy")


def _decode(source: Source, indices: np.ndarray, size: int, folder: Path, identity: dict) -> None:
    """Makes the folder of the squares, elsewhere first, so that a process that is killed leaves nothing half done."""
    check_room(
        folder.parent,
        len(indices) * 3 * size**2,
        f"the decoded images, as squares of {size} px,",
        "make room there, name another disk in XDG_CACHE_HOME, set config.data.cache=False, or with "
        "config.views.where=device config.views.stored lower",
    )
    # Under the lock, what has such a name is of a process that was killed.
    for left in folder.parent.glob(f"{folder.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    with whole_folder(folder) as half:
        images = reserved_array(half / "images.npy", (len(indices), size, size, 3))
        np.save(half / "shapes.npy", write_squares(source, indices, images))
        images.flush()
        _sync(half / "images.npy", half / "shapes.npy")
        write_json_atomically(half / "identity.json", identity)


def reserved_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new array of uint8, mapped from a file whose place on the disk is taken; OSError where there is none."""
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # a disk that fills up would end the process at a write to the map
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(file.name))
    return array


def _sync(*paths: Path) -> None:
    """Until the files are on the disk, so that what says that they are whole is not there before them."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def write_squares(source: Source, indices: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Fills `images` (N, size, size, 3) uint8 with the images at the indices, each squeezed to a square, and returns
    their original (N, 2) float32 heights and widths in px; UserError names all that cannot be decoded."""
    size = images.shape[1]

    def square(i: np.integer) -> tuple[np.ndarray, tuple[int, int]]:
        image = open_image(source, int(i))
        shape = image.size[::-1]
        read = image.pixels(np.array([size, size], float))
        return np.asarray(read.resize((size, size), Image.Resampling.BILINEAR)), shape

    shapes, progress = np.zeros((len(indices), 2), np.float32), Progress("decode", len(indices))
    try:
        for k, (pixels, shape) in enumerate(in_threads(square, indices, ahead=64)):
            images[k], shapes[k] = pixels, shape
            progress.update(k + 1)
    except decode.Unreadable:
        raise unreadable_error(source, unreadable(source, indices)) from None
    return shapes
