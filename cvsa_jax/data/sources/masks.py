"""Mask files as people have them: two values of any kind, trimaps, labels of objects, degrees, and cut-outs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cvsa_jax.data import decode
from cvsa_jax.runtime.errors import UserError

SOFT_SHARE = 0.1  # of a mask's pixels that may lie between object and background, at a soft edge
_SOFT = 32  # grey levels from black or white within which a pixel is not between
_PARTS_OF_TRIMAPS = ([1, 2], [1, 3], [2, 3], [2])
_BORDER = 4  # times the area of the labels, which the border around them may have
_TRIMAP = {1, 2, 3}  # object, background and border, as in Oxford-IIIT Pet
_VOID = 255  # of labels: the border that Pascal VOC leaves out
_LABELS = 21  # Pascal VOC's; values up to there, or that count the objects without a gap, are labels
_MANY = 32  # places of a palette in use, up to which they are labels
_RANGE = 127  # of greys that are degrees
TWO, SOFT, TRIMAP, LABELS, DEGREES = "two values", "soft edges", "trimap", "labels of objects", "degrees"
CUT_OUT = "cut-out"  # before another kind: it is of the transparency


class Mask(NamedTuple):
    """`values` (H, W) uint8, 255 on the object and 0 beside it, and of DEGREES in between; `kind`, in words."""

    values: np.ndarray
    kind: str


def read_mask(path: Path) -> Mask:
    """A mask file.

    Of two values the higher is the object, whether they are 0 and 1, 0 and 255, 16 bits, two colours of a palette, or
    lie in one channel or in alpha alone; of the trimap's 1, 2 and 3 the background is 2. Of labels, in a palette or as
    greys, all but 0, and but 255 beside them, are one object. A picture with transparency is a cut-out, and the mask is
    that. Greys from black to white count from the middle on where few pixels lie between, as at a soft edge; else they
    are degrees.

    Raises:
        UserError: it cannot be read, or is another kind of picture; the values found are named.
    """
    channel = _read(path, _one_channel)
    if channel is None:
        raise UserError(f"mask {path} is a colour picture; a mask has two values, or is a map of greys")
    mask = _mask_of(path, channel)
    return mask._replace(kind=f"{CUT_OUT}, {mask.kind}") if channel.transparency else mask


class _Channel(NamedTuple):
    """The one channel of a picture that says something: whether it is the transparency of a coloured one, and whether
    its values are the places of a palette."""

    values: np.ndarray
    transparency: bool = False
    places: bool = False


def _mask_of(path: Path, channel: _Channel) -> Mask:
    values = channel.values
    found, counts = np.unique(values, return_counts=True)
    if set(found.tolist()) == _TRIMAP:
        return Mask(_levels(values != 2), TRIMAP)
    if found.tolist() in _PARTS_OF_TRIMAPS:
        listed = " and ".join(map(str, found.tolist()))
        raise UserError(
            f"mask {path} has the values {listed}: in a trimap 1 is the object, 2 the background, 3 the border; in a "
            "mask the highest is the object. Write 0 and 255"
        )
    if len(found) <= 2:
        # Of one value: a mask that is all object, or none.
        inside = values == found[-1] if found[-1] > 0 else np.zeros(values.shape, bool)
        return Mask(_levels(inside), TWO)
    if channel.places or _are_labels(found, counts):
        return Mask(_levels((values > 0) & (values != _VOID)), LABELS)
    if found[-1] > 255:  # 16 bits
        values = (values / found[-1] * 255).round().astype(np.uint8)
        found = np.unique(values)
    if found[-1] - found[0] >= _RANGE:
        between = ((values >= _SOFT) & (values <= 255 - _SOFT)).mean()
        return Mask(binary_mask(values), SOFT) if between <= SOFT_SHARE else Mask(values.astype(np.uint8), DEGREES)
    listed = ", ".join(map(str, found[:6].tolist())) + (", …" if len(found) > 6 else "")
    raise UserError(
        f"mask {path} has {len(found)} values ({listed}): a mask has two, or the trimap's 1, 2 and 3, or labels from 0 "
        "on, or greys from dark to bright"
    )


def _are_labels(found: np.ndarray, counts: np.ndarray) -> bool:
    """Whether values are numbers of objects or classes, 0 for none, and perhaps 255 around them, and not greys of which
    the darkest are near 0."""
    inner = found[(found > 0) & (found != _VOID)]
    if found[0] != 0 or not len(inner):
        return False
    few = inner[-1] <= _LABELS or (inner[-1] <= _VOID and np.array_equal(inner, np.arange(1, len(inner) + 1)))
    if found[-1] != _VOID:
        return bool(few)
    # A few pixels near black beside much white are what is left of a soft edge.
    return bool(few and _BORDER * counts[1:-1].sum() > counts[-1])


def read_trimap(path: Path) -> Mask:
    """A trimap of 1 (object), 2 (background) and 3 (border, which here counts as object); UserError where it is another
    kind of picture."""
    values = _read(path, np.asarray)
    if values.ndim != 2 or not set(np.unique(values).tolist()) <= _TRIMAP:
        raise UserError(f"{path} is no trimap of the values 1, 2 and 3")
    return Mask(_levels(values != 2), TRIMAP)


def read_grey(path: Path) -> Mask:
    """A mask file of greys, object above half of their range; UserError where it is unreadable."""
    return Mask(binary_mask(_read(path, lambda image: np.asarray(image.convert("L")))), SOFT)


def _read(path: Path, seen: Callable[[Image.Image], Any]) -> Any:
    """What `seen` makes of the upright picture."""
    try:
        return seen(decode.upright(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"no mask {path}: every image needs one where masks are asked for") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, decode.Unreadable) as error:
        raise UserError(f"cannot read mask {path}: {error}") from None


def binary_mask(values: np.ndarray) -> np.ndarray:
    """uint8 values -> 255 where they are above half of their range, else 0."""
    return _levels(values > 127)


def _levels(inside: np.ndarray) -> np.ndarray:
    return np.where(inside, 255, 0).astype(np.uint8)


def _one_channel(image: Image.Image) -> _Channel | None:
    """None where several channels differ."""
    if image.mode == "P":
        return _of_palette(image)
    if image.mode == "1":
        return _Channel(np.asarray(image).astype(np.uint8))
    values = np.asarray(image)
    if values.ndim == 2:
        return _Channel(values)
    varying = [values[..., k] for k in range(values.shape[2]) if np.ptp(values[..., k])]
    if not varying:
        return _Channel(values[..., :3].max(2))
    same = all((channel == varying[0]).all() for channel in varying)
    if same:
        return _Channel(varying[0])
    # Two colours are two values, whatever they are.
    if len(varying) > 1 and len(np.unique(values.reshape(-1, values.shape[2]), axis=0)) == 2:
        return _Channel(values[..., :3].max(2) if np.ptp(values[..., :3].max(2)) else np.asarray(image.convert("L")))
    if image.mode in ("RGBA", "LA") and np.ptp(values[..., -1]):
        return _Channel(values[..., -1], transparency=True)
    greys = values[..., :3].astype(int)
    if np.ptp(greys, axis=2).max() <= _SOFT:  # grey but for what JPEG does to colours
        return _Channel(greys.mean(2).astype(np.uint8))
    return None


def _of_palette(image: Image.Image) -> _Channel | None:
    """Of two colours the lighter is the object; greys stand for themselves; else the places of the palette number what
    is shown, of which a quantised photograph has too many."""
    places = np.asarray(image)
    used, first = np.unique(places, return_index=True)
    if image.has_transparency_data and len(used) > 2:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if np.ptp(alpha):
            return _Channel(alpha, transparency=True)
    colours = np.asarray(image.convert("RGB"))
    shown = colours.reshape(-1, 3)[first]
    if len(used) <= 2:
        lightness = np.asarray(image.convert("L"))
        return _Channel(lightness if np.ptp(lightness) else places)
    if not np.ptp(shown, axis=1).any() and len(np.unique(shown[:, 0])) == len(used):
        return _Channel(colours[..., 0])
    return _Channel(places, places=True) if len(used) <= _MANY else None
