"""Encoded bytes -> pixels: the project's one decoder, so that training can read what the saliency pass accepts."""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from cvsa_jax.data import png

# Counts the changes of what pixels the same bytes give: turned by EXIF; transparent over white; more than 8 bits by the
# range that the file tells.
DECODER = 3
BACKGROUND = 255  # level of grey behind what is transparent
_ORIENTATION = 0x0112  # EXIF's tag
_PHOTOMETRIC = 262  # TIFF's tag
_LOWEST, _HIGHEST = (340, 280), (341, 281)  # TIFF's tags: SMinSampleValue, MinSampleValue, and of the maximum
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(Exception):
    """Says, in one line, why bytes are not an image."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image of which the header alone is read. `orientation`: how it must be turned to stand upright, 1 to 8 in
    EXIF's numbers; `cut`: rows that are no part of it at the bottom (a credit banner)."""

    image: Image.Image
    orientation: int = 1
    cut: int = 0

    @property
    def turn(self) -> Image.Transpose | None:
        """What makes it upright; None where it is."""
        return _TURNS.get(self.orientation)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px, upright and without what is cut off."""
        width, height = self.image.size
        if self.orientation >= 5:
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
            if image.mode[0] in "IF":
                image = Image.fromarray(_in_levels(image))
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
        image = _picture(encoded)
        # Pillow turns a TIFF itself.
        orientation = 1 if image.format == "TIFF" else _orientation(image)
    read = Encoded(image, orientation, cut)
    if min(read.size) < 1:
        raise Unreadable(f"it is {image.size[0]} x {image.size[1]} px, of which the lowest {cut} rows are cut off")
    return read


def _picture(encoded: bytes) -> Image.Image:
    """A picture of which the header alone is read, whatever its metadata are."""
    try:
        return Image.open(io.BytesIO(png.without_metadata(encoded)))
    except (ValueError, SyntaxError, OSError):
        return Image.open(io.BytesIO(png.without_metadata(encoded, texts=False)))


def upright(encoded: bytes) -> Image.Image:
    """A picture that is no photograph, such as a mask: with its own values, turned as its EXIF data say. Raises what
    Pillow raises."""
    image = _picture(encoded)
    orientation = 1 if image.format == "TIFF" else _orientation(image)
    image.load()
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where the image does not tell, or tells nonsense."""
    with contextlib.suppress(Exception):  # whatever damaged EXIF data raise: the pixels may be sound
        orientation = image.getexif().get(_ORIENTATION)
        if orientation in _TURNS:
            return int(orientation)
    return 1


def _in_levels(image: Image.Image) -> np.ndarray:
    """(H, W) uint8 of a grey image of more than 8 bits, or of floats, scaled by the range that the file tells: the tags
    of a TIFF, or the maximum of a PGM, which Pillow scales to 16 bits. Without it 16 bits are taken for 16, and floats
    for shares from 0 to 1. Raises Unreadable where the range cannot be told, or is not kept."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    low, high = (
        next((float(np.ravel(tags[tag])[0]) for tag in both if tag in tags), None) for both in (_LOWEST, _HIGHEST)
    )
    if high is None and values.dtype.kind == "f":
        high = 1.0
    if high is None and (values.dtype.itemsize == 2 or image.format in ("PNG", "PPM")):
        high = 65535.0
    low = 0.0 if low is None else low
    if high is None or not high > low:
        raise Unreadable("its pixels have 32 bits, of a range that it does not tell: save it with 8")
    if not (values.min() >= low and values.max() <= high):  # NaN neither
        found = f"its pixels have values from {values.min():g} to {values.max():g}"
        raise Unreadable(f"{found}, outside of the range of {low:g} to {high:g}: save it with 8 bits")
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0
        values = low + high - values.astype(np.float64)
    return np.floor((values - low) / (high - low) * 255.999).clip(0, 255).astype(np.uint8)


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
    except Unreadable:
        raise
    except Image.UnidentifiedImageError:
        raise Unreadable("not an image of a known format") from None
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise Unreadable(reason[0][:160]) from None
