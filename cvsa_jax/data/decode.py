"""Encoded bytes -> pixels: the project's one decoder, so that training can read what the saliency pass accepts."""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

DECODER = 2  # counts the changes of what pixels the same bytes give: turned by EXIF, transparent over white
BACKGROUND = 255  # level of grey behind what is transparent
_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Of these, those that exchange width and height.
_QUARTERS = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))


class Unreadable(Exception):
    """Says, in one line, why bytes are not an image."""


@runtime_checkable
class Opened(Protocol):
    """An image whose size is known and whose pixels are not read yet."""

    @property
    def size(self) -> tuple[int, int]: ...

    def pixels(self, least: np.ndarray | None = None) -> Image.Image: ...


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image of which the header alone is read. `turn`: how it must be turned to stand upright, as its EXIF data say;
    `cut`: rows that are no part of it at the bottom (a credit banner)."""

    image: Image.Image
    turn: Image.Transpose | None = None
    cut: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px, upright and without what is cut off."""
        width, height = self.image.size
        if self.turn in _QUARTERS:
            width, height = height, width
        return width, height - self.cut

    def pixels(self, least: np.ndarray | None = None) -> Image.Image:
        """The image in RGB, read, upright, over white where it is transparent. Where `least`, (2,) height and width
        in px, allows it, a JPEG is read at a half, a quarter or an eighth of its size, which is no smaller. Raises
        Unreadable."""
        image = self.image
        with _explained():
            if least is not None and not self.cut:
                height, width = (
                    max(1, int(np.ceil(side))) for side in (least if self.turn is None else [max(least)] * 2)
                )
                image.draft("RGB", (width, height))
            if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would cut off what is above 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = _over_background(image) if image.has_transparency_data else _in_rgb(image)
            if self.turn is not None:
                image = image.transpose(self.turn)
            return image.crop((0, 0, image.width, image.height - self.cut)) if self.cut else image


def opened(encoded: bytes, cut: int = 0) -> Encoded:
    """An image whose size is known and whose pixels are not read yet; raises Unreadable."""
    if not encoded:
        raise Unreadable("the file is empty")
    with _explained(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of very large images, and of odd metadata
        image = Image.open(io.BytesIO(encoded))
        # Pillow turns a TIFF itself.
        turn = None if image.format == "TIFF" else _TURNS.get(image.getexif().get(_ORIENTATION))
    read = Encoded(image, turn, cut)
    if min(read.size) < 1:
        raise Unreadable(f"it is {image.size[0]} x {image.size[1]} px, of which the lowest {cut} rows are cut off")
    return read


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()
    return image


def _over_background(image: Image.Image) -> Image.Image:
    below = Image.new("RGBA", image.size, (BACKGROUND,) * 3)
    return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")


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
