"""What the headers of a set's images say, which the plan of their views needs before any pixel is read: looked at when
an image first comes, and kept."""

import contextlib
import io
import threading

import numpy as np

from cvsa_jax.data import decode
from cvsa_jax.data.reading import open_image
from cvsa_jax.data.sources import Source
from cvsa_jax.runtime.callbacks import go_on
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import cache_folder, write_atomically
from cvsa_jax.runtime.workers import spread

OTHER = 0  # instead of an orientation: the project's own decoder reads the image, and turns it
_HEAD = 2**16  # bytes of a file that nearly always hold the header
_JPEG = b"\xff\xd8\xff"
_SEEN = 1024  # headers, or as many as are known, after which they are kept


class Headers:
    """Of the images of a source: `shapes` (N, 2) int32 height and width in px, upright and without what is cut off, 0
    where nobody has looked yet, and `turns` (N,) uint8, the orientation of a JPEG that any decoder reads alike, 1 to 8
    in EXIF's numbers, or OTHER."""

    def __init__(self, source: Source):
        self._source, self._lock, self._new, self._is_of_set = source, threading.Lock(), 0, True
        self._path = cache_folder() / f"headers-{source.fingerprint}-{decode.DECODER}.npz"
        self.shapes, self.turns = self._kept()

    def look(self, examples: np.ndarray, files: list[bytes] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Shapes and turns of the images (k,), of which `files` are the bytes where they are read already. Raises
        decode.Unreadable at one that is no image."""
        unknown = np.flatnonzero(self.shapes[examples, 0] == 0)
        files = [None] * len(examples) if files is None else files
        items = [(int(examples[row]), files[row]) for row in unknown]
        for (i, _), told in zip(items, spread(lambda item: _told(self._source, *item), items), strict=True):
            self._learn(i, told)
        if self._new >= _SEEN and 2 * self._new >= np.count_nonzero(self.shapes[:, 0]):
            self.keep()
        return self.shapes[examples], self.turns[examples]

    def look_again(self, i: int) -> bool:
        """Whether the header of image i is no longer what it was. Then nothing is kept any more: the images are not
        those of the fingerprint."""
        shape, turn = _told(self._source, i, None)
        if tuple(self.shapes[i].tolist()) == shape and self.turns[i] in (turn, OTHER):
            return False
        self._learn(i, (shape, turn))
        self._is_of_set = False
        return True

    def leave_to_us(self, i: int) -> None:
        """From now on the project's own decoder reads image i."""
        self._learn(i, (tuple(self.shapes[i].tolist()), OTHER))

    def _learn(self, i: int, told: tuple[tuple[int, int], int]) -> None:
        shape, turn = told
        with self._lock:
            # In this order: who sees a shape takes the turn for known.
            self.turns[i] = turn
            self.shapes[i] = shape
            self._new += 1

    def keep(self) -> None:
        """Writes what is new, with what another process has written meanwhile, for later runs."""
        with self._lock, contextlib.suppress(OSError, UserError):  # a cache, which may lie where nothing can be written
            if not self._new or not self._is_of_set:
                return
            self._new = 0  # also where they cannot be kept, so that it is not tried at every batch
            self._path.parent.mkdir(parents=True, exist_ok=True)
            shapes, turns = self._kept()
            ours, theirs = self.shapes[:, 0] > 0, (shapes[:, 0] > 0) & (turns == OTHER)
            shapes[ours], turns[ours] = self.shapes[ours], self.turns[ours]
            turns[theirs] = OTHER  # whoever found out that only our decoder reads an image
            content = io.BytesIO()
            np.savez(content, shapes=shapes, turns=turns)
            write_atomically(self._path, lambda file: file.write(content.getbuffer()))

    def _kept(self) -> tuple[np.ndarray, np.ndarray]:
        count = len(self._source)
        with contextlib.suppress(Exception):  # whatever a damaged file raises: it is made again
            with np.load(io.BytesIO(self._path.read_bytes()), allow_pickle=False) as arrays:
                shapes, turns = arrays["shapes"], arrays["turns"]
            if shapes.shape == (count, 2) and turns.shape == (count,):
                return shapes, turns
        return np.zeros((count, 2), np.int32), np.zeros(count, np.uint8)


def _told(source: Source, i: int, file: bytes | None) -> tuple[tuple[int, int], int]:
    """Height and width, and the turn."""
    go_on()
    image = _opened(source, i, file)
    width, height = image.size
    # Of four channels every decoder has its own notion; a file of several pictures begins with the one that counts.
    plain = image.image.format in ("JPEG", "MPO") and image.image.mode in ("RGB", "L")
    return (height, width), image.orientation if plain else OTHER


def _opened(source: Source, i: int, file: bytes | None) -> decode.Encoded:
    if file is None and source.path is not None:
        with contextlib.suppress(OSError, decode.Unreadable):
            with open(source.path(i), "rb") as opened:
                head = opened.read(_HEAD)
            if head.startswith(_JPEG):  # of others the orientation may lie behind the pixels
                return decode.opened(head, source.cut)
    return open_image(source, i) if file is None else decode.opened(file, source.cut)
