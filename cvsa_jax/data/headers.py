"""What the headers of a set's images say, which the plan of their views needs before any pixel is read: looked at when
an image first comes, and kept."""

import contextlib
import io
import threading

import numpy as np

from cvsa_jax.data import decode
from cvsa_jax.data.reading import open_image
from cvsa_jax.data.sources import Source
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import cache_folder, write_atomically

OTHER = 0  # instead of an orientation: the project's own decoder reads the image, and turns it
_HEAD = 2**16  # bytes of a file that nearly always hold the header
_JPEG = b"\xff\xd8\xff"
_SEEN = 1024  # headers, or as many as are known, after which they are kept


class Headers:
    """Of the images of a source: `shapes` (N, 2) int32 height and width in px, upright and without what is cut off, 0
    where nobody has looked yet, and `turns` (N,) uint8, the orientation of a JPEG that any decoder reads alike, 1 to 8
    in EXIF's numbers, or OTHER."""

    def __init__(self, source: Source):
        self._source, self._lock, self._new = source, threading.Lock(), 0
        self._path = cache_folder() / f"headers-{source.fingerprint}-{decode.DECODER}.npz"
        self.shapes, self.turns = self._kept()

    def look(self, examples: np.ndarray, files: list[bytes] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Shapes and turns of the images (k,), of which `files` are the bytes where they are read already. Raises
        decode.Unreadable at one that is no image."""
        for row in np.flatnonzero(self.shapes[examples, 0] == 0):
            i = int(examples[row])
            shape, turn = _told(self._source, i, None if files is None else files[row])
            with self._lock:
                self.turns[i], self.shapes[i] = turn, shape
                self._new += 1
        if self._new >= max(_SEEN, np.count_nonzero(self.shapes[:, 0]) // 2):
            self.keep()
        return self.shapes[examples], self.turns[examples]

    def leave_to_us(self, examples: np.ndarray) -> None:
        """From now on the project's own decoder reads these images."""
        with self._lock:
            self.turns[examples] = OTHER
            self._new += 1

    def keep(self) -> None:
        """Writes what is new, with what another process has written meanwhile, for later runs."""
        with self._lock, contextlib.suppress(OSError, UserError):  # a cache, which may lie where nothing can be written
            if not self._new:
                return
            shapes, turns = self._kept()
            ours = self.shapes[:, 0] > 0
            shapes[ours], turns[ours] = self.shapes[ours], self.turns[ours]
            content = io.BytesIO()
            np.savez(content, shapes=shapes, turns=turns)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, lambda file: file.write(content.getbuffer()))
            self._new = 0

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
