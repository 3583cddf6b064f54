"""Encoded bytes -> pixels: the project's one decoder, so that training can read what the saliency pass accepts."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image


class Unreadable(Exception):
    """Says, in one line, why bytes are not an image."""


def opened(encoded: bytes) -> Image.Image:
    """An image whose size is known and whose pixels are not read yet; raises Unreadable."""
    if not encoded:
        raise Unreadable("the file is empty")
    with _explained(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of very large images, and of odd metadata
        return Image.open(io.BytesIO(encoded))


def pixels(image: Image.Image, least: np.ndarray | None = None) -> Image.Image:
    """The image in RGB, read; transparency is dropped. Where `least`, (2,) height and width in px, allows it, a JPEG is
    read at a half, a quarter or an eighth of its size, which is no smaller. Raises Unreadable."""
    with _explained():
        if least is not None:
            image.draft("RGB", (max(1, int(np.ceil(least[1]))), max(1, int(np.ceil(least[0])))))
        if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would cut off what is above 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB") if image.mode != "RGB" else _loaded(image)


def to_array(encoded: bytes) -> np.ndarray:
    """Encoded bytes -> (H, W, 3) uint8; raises Unreadable."""
    return np.asarray(pixels(opened(encoded)))


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns whatever Pillow raises at broken bytes, which is of many types, into Unreadable."""
    try:
        yield
    except Image.UnidentifiedImageError:
        raise Unreadable("not an image of a known format") from None
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Unreadable(reason[0][:160]) from None
