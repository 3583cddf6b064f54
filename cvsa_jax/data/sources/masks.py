"""Mask files as people have them: two values of any kind, trimaps, labels of objects, degrees, and cut-outs.

A mask that is read wrongly is worse than one that is refused: where a file could mean two things it is refused, with
what was found in it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cvsa_jax.data import decode
from cvsa_jax.runtime.errors import UserError

READER = 2  # changes with what files are read as, so that maps made from them are known to be outdated
SOFT_SHARE = 0.1  # of a mask's pixels that may lie between object and background, at a soft edge
_SOFT = 32  # grey levels from black or white within which a pixel is not between
_PARTS_OF_TRIMAPS = ([1, 2], [1, 3], [2, 3], [2])
_TRIMAP = {1, 2, 3}  # object, background and border, as in Oxford-IIIT Pet
_VOID = 255  # of labels: the border that Pascal VOC leaves out
_CLASSES = 21  # of Pascal VOC, with the background
_MANY = 64  # values, up to which they may be labels
_FEW = 16  # distinct values, up to which degrees must form bands in the order of their brightness
_APART = 0.8  # of the borders between labels, which lie beside the background
_BRIGHT = 191  # of greys that are degrees, the least maximum
_RANGE = 127  # and the least range
_CLEAR = 0.01  # of a cut-out, the least share that is transparent, and that is not
TWO, SOFT, TRIMAP, LABELS, DEGREES = "two values", "soft edges", "trimap", "labels of objects", "degrees"
CUT_OUT = "cut-out"  # before another kind: it is of the transparency


class Mask(NamedTuple):
    """`values` (H, W) uint8, 255 on the object and 0 elsewhere, or anything between where `kind` is DEGREES. `kind` is
    one of the names above."""

    values: np.ndarray
    kind: str


def read_mask(path: Path) -> Mask:
    """A mask file.

    Of two values the higher is the object, whether they are 0 and 1, 0 and 255, 16 bits, two colours of a palette, or
    lie in one channel or in alpha alone; of the trimap's 1, 2 and 3 the background is 2. Labels, with Pascal VOC's
    palette or as greys whose regions lie apart on 0, are one object; 255 around them is left out. The mask of a
    coloured picture with transparency, a cut-out, is its transparency. Greys from black to white count from the middle
    on where few pixels lie between, as at a soft edge; else they are degrees (of 16 bits by their maximum, of fractions
    times 255).

    Raises:
        UserError: it cannot be read, or is another kind of picture; the values found are named.
    """
    channel = _read(path, _one_channel)
    if channel is None:
        raise UserError(f"mask {path} is a colour picture; a mask has two values, or is a map of greys")
    mask = Mask(_levels(channel.values > 0), LABELS) if channel.labels else _mask_of(path, channel.values)
    return mask._replace(kind=f"{CUT_OUT}, {mask.kind}") if channel.transparency else mask


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


def binary_mask(values: np.ndarray) -> np.ndarray:
    """uint8 values -> 255 where they are above half of their range, else 0."""
    return _levels(values > 127)


def _mask_of(path: Path, values: np.ndarray) -> Mask:
    if not np.isfinite(values).all() or values.min() < 0:
        raise UserError(f"mask {path} has values that are negative or not finite: write 0 and 255")
    found = np.unique(values)
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
    if _are_labels(values, found):
        return Mask(_levels((values > 0) & ~_void(values, found)), LABELS)
    greys = _as_greys(values, found)
    if int(greys.max()) - int(greys.min()) >= _RANGE:
        between = ((greys >= _SOFT) & (greys <= 255 - _SOFT)).mean()
        if between <= SOFT_SHARE and greys.max() > 255 - _SOFT:
            return Mask(binary_mask(greys), SOFT)
        if greys.max() >= _BRIGHT and (len(found) > _FEW or _are_in_order(values, found)):
            return Mask(greys, DEGREES)
    listed = ", ".join(f"{value:g}" for value in found[:6].tolist()) + (", …" if len(found) > 6 else "")
    raise UserError(
        f"mask {path} has {len(found)} values ({listed}): a mask has two, or the trimap's 1, 2 and 3, or labels of "
        "objects that lie apart on 0, or greys from dark to bright. Write 0 and 255, or give maps by "
        "--detector=folder --maps"
    )


def _as_greys(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    if found[-1] <= 1:  # fractions
        values = values * 255.0
    elif found[-1] > 255:
        values = values / found[-1] * 255.0
    return values.round().astype(np.uint8)


def _borders(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower and the higher value of each two pixels side by side that differ."""
    pairs = [(values[:, 1:], values[:, :-1]), (values[1:], values[:-1])]
    low, high = (np.concatenate([end(*pair).ravel() for pair in pairs]) for end in (np.minimum, np.maximum))
    differ = low != high
    return low[differ], high[differ]


def _are_labels(values: np.ndarray, found: np.ndarray) -> bool:
    """Whether values number objects or classes, 0 for none: then most borders are those with the background, where
    greys lie beside greys that are nearly as bright."""
    if found[0] != 0 or len(found) > _MANY or not np.array_equal(found, found.round()):
        return False
    if _void(values, found).any():
        return True
    # A label fills an area; single pixels are what an edge or noise leaves.
    same = np.searchsorted(found, values[:, 1:][values[:, 1:] == values[:, :-1]])
    counts = np.bincount(np.searchsorted(found, values.ravel()), minlength=len(found))
    solid = np.bincount(same, minlength=len(found)) >= counts / 2
    low, _ = _borders(values)
    return bool(solid.all() and (low == 0).mean() >= _APART)


def _void(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The pixels of the border around labels: 255 where the labels are classes of Pascal VOC, and meet it and hardly
    ever the background."""
    inner = found[(found > 0) & (found != _VOID)]
    nothing = np.zeros(values.shape, bool)
    if found[-1] != _VOID or not len(inner) or inner[-1] >= _CLASSES:
        return nothing
    low, high = _borders(values)
    of_labels = (high < _VOID) & (low == 0), (high == _VOID) & (low > 0)
    beside_background, beside_void = (int(pairs.sum()) for pairs in of_labels)
    return values == _VOID if beside_void > 4 * beside_background else nothing


def _are_in_order(values: np.ndarray, found: np.ndarray) -> bool:
    """Whether few values mostly lie beside the next higher or lower one, as degrees do."""
    low, high = (np.searchsorted(found, ends) for ends in _borders(values))
    return bool((high - low == 1).mean() > 0.5)


def _read(path: Path, seen: Callable[[Image.Image], Any]) -> Any:
    """What `seen` makes of the upright picture."""
    try:
        return seen(decode.upright(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"no mask {path}: every image needs one where masks are asked for") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, decode.Unreadable) as error:
        raise UserError(f"cannot read mask {path}: {error}") from None


def _levels(inside: np.ndarray) -> np.ndarray:
    return np.where(inside, 255, 0).astype(np.uint8)


class _Channel(NamedTuple):
    """The one channel of a picture that says something; whether it is the transparency of a coloured one, or a
    palette's labels, 0 for none."""

    values: np.ndarray
    transparency: bool = False
    labels: bool = False


def _one_channel(image: Image.Image) -> _Channel | None:
    """None where several channels differ."""
    if image.mode == "P":
        places = np.asarray(image)
        used, first = np.unique(places, return_index=True)
        shown = np.asarray(image.convert("RGBA"))[..., :3].reshape(-1, 3)[first]
        if (shown == shown[0]).all():
            return _Channel(places)  # of equal colours the place alone tells one from the other
        if _are_of_pascal(used, shown):
            return _Channel(np.where((places > 0) & (places != _VOID), places, 0), labels=True)
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode == "1":
        return _Channel(np.asarray(image).astype(np.uint8))
    if image.mode == "CMYK":
        image = image.convert("RGB")
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
    colours = values[..., : 3 if values.shape[2] >= 3 else 1]
    grey = bool(np.ptp(colours.astype(int), axis=2).max() <= _SOFT)  # but for what JPEG does to colours
    if image.mode in ("RGBA", "LA") and np.ptp(values[..., -1]):
        return _of_transparency(colours, values[..., -1], grey)
    return _Channel(colours.astype(int).mean(2).astype(np.uint8)) if grey else None


def _of_transparency(colours: np.ndarray, alpha: np.ndarray, grey: bool) -> _Channel | None:
    """Of a picture that is coloured where it can be seen, or of many greys, the transparency is the mask, if it tells
    two parts of it from each other; of a mask in colours it is not."""
    shown = colours[alpha > 0]
    mask_like = grey and (
        len(np.unique(shown)) <= 3 or ((shown >= _SOFT) & (shown <= 255 - _SOFT)).mean() <= SOFT_SHARE
    )
    if mask_like and len(np.unique(shown)) > 1:
        return _Channel(colours.astype(int).mean(2).astype(np.uint8))
    if min((alpha < _SOFT).mean(), (alpha > 255 - _SOFT).mean()) < _CLEAR:
        return None
    return _Channel(alpha, transparency=True)


def _are_of_pascal(used: np.ndarray, shown: np.ndarray) -> bool:
    """Whether the places of a palette that are in use, (n,), with their colours (n, 3), are Pascal VOC's labels. Of any
    other palette the colours count alone: programs put them into any order."""
    labels = (used > 0) & (used < _CLASSES)
    known = (labels | (used == 0) | (used == _VOID)).all()
    return bool(labels.any() and known and (shown == _pascal(used)).all())


def _pascal(places: np.ndarray) -> np.ndarray:
    """(n, 3) colours of Pascal VOC's palette: the bits of a place, three at a time, from the highest down."""
    colours = np.zeros((len(places), 3), int)
    for k in range(8):
        bits = (places.astype(int)[:, None] >> (3 * k + np.arange(3))) & 1
        colours |= bits << (7 - k)
    return colours
