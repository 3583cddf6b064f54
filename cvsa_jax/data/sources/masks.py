"""Mask files as people have them: any kind with two values, trimaps, and greys that are soft at the edge alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cvsa_jax.data import decode
from cvsa_jax.runtime.errors import UserError

SOFT_SHARE = 0.1  # of a mask's pixels that may lie between object and background, at a soft edge
_SOFT = 32  # grey levels from black or white within which a pixel is not between
_PARTS_OF_TRIMAPS = ([1, 2], [1, 3], [2, 3], [2])
_FEW = 16  # values, up to which a mask is of labels rather than soft at its edge
_TRIMAP = {1, 2, 3}  # object, background and border, as in Oxford-IIIT Pet


def read_mask(path: Path) -> np.ndarray:
    """A mask file as (H, W) uint8, 255 on the object.

    Of two values the higher is the object, whether they are 0 and 1, 0 and 255, 16 bits, two colours of a palette, or
    lie in one channel or in alpha alone; of the trimap's 1, 2 and 3 the background is 2. Greys from black to white
    count from the middle on, where few pixels lie between.

    Raises:
        UserError: it cannot be read, or is another kind of picture; the values found are named.
    """
    values = _read(path, _one_channel)
    if values is None:
        raise UserError(f"mask {path} is a colour picture; a mask has two values, or is a map of greys")
    found, counts = np.unique(values, return_counts=True)
    if set(found.tolist()) == _TRIMAP:
        return _levels(values != 2)
    if found.tolist() in _PARTS_OF_TRIMAPS:
        listed = " and ".join(map(str, found.tolist()))
        raise UserError(
            f"mask {path} has the values {listed}: in a trimap 1 is the object, 2 the background, 3 the border; in a "
            "mask the highest is the object. Write 0 and 255"
        )
    if len(found) <= 2:
        # Of one value: a mask that is all object, or none.
        return _levels(values == found[-1]) if found[-1] > 0 else np.zeros(values.shape, np.uint8)
    # Of labels, 0 background, 1 object and 255 "ignore" are usual: there the highest is no object.
    labels = len(found) <= _FEW and counts[1:-1].max(initial=0) > counts[-1]
    if found[-1] - found[0] >= 127 and found[-1] <= 255 and not labels:
        between = ((values >= _SOFT) & (values <= 255 - _SOFT)).mean()
        if between <= SOFT_SHARE:
            return binary_mask(values)
    listed = ", ".join(map(str, found[:6].tolist())) + (", …" if len(found) > 6 else "")
    raise UserError(
        f"mask {path} has {len(found)} values ({listed}): a mask has two, or the trimap's 1, 2 and 3. Maps of degrees "
        "are taken by --detector=folder --maps"
    )


def read_trimap(path: Path) -> np.ndarray:
    """A trimap of 1 (object), 2 (background) and 3 (border, which here counts as object) as (H, W) uint8, 255 on the
    object; UserError where it is another kind of picture."""
    values = _read(path, np.asarray)
    if values.ndim != 2 or not set(np.unique(values).tolist()) <= _TRIMAP:
        raise UserError(f"{path} is no trimap of the values 1, 2 and 3")
    return _levels(values != 2)


def read_grey(path: Path) -> np.ndarray:
    """A mask file of greys as (H, W) uint8, 255 above half of their range; UserError where it is unreadable."""
    return binary_mask(_read(path, lambda image: np.asarray(image.convert("L"))))


def _read(path: Path, values_of: Callable[[Image.Image], np.ndarray | None]) -> np.ndarray | None:
    try:
        return values_of(decode.upright(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"no mask {path}: every image needs one where masks are asked for") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, decode.Unreadable) as error:
        raise UserError(f"cannot read mask {path}: {error}") from None


def binary_mask(values: np.ndarray) -> np.ndarray:
    """uint8 values -> 255 where they are above half of their range, else 0."""
    return _levels(values > 127)


def _levels(inside: np.ndarray) -> np.ndarray:
    return np.where(inside, 255, 0).astype(np.uint8)


def _one_channel(image: Image.Image) -> np.ndarray | None:
    """(H, W) values of the one channel that says something; None where several differ."""
    if image.mode == "P":
        indices, image = np.asarray(image), image.convert("RGBA" if image.has_transparency_data else "RGB")
        colours = np.asarray(image).reshape(-1, len(image.getbands()))
        # A palette of equal colours: what tells object and background apart is the index alone.
        if (colours == colours[0]).all():
            return indices
        grey = np.asarray(image.convert("L"))
        return indices if len(np.unique(grey)) < len(np.unique(indices)) else grey
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    values = np.asarray(image)
    if values.ndim == 2:
        return values
    varying = [values[..., k] for k in range(values.shape[2]) if np.ptp(values[..., k])]
    if not varying:
        return values[..., :3].max(2)
    same = all((channel == varying[0]).all() for channel in varying)
    if same:
        return varying[0]
    # Two colours are two values, whatever they are.
    if len(varying) > 1 and len(np.unique(values.reshape(-1, values.shape[2]), axis=0)) == 2:
        return values[..., :3].max(2) if np.ptp(values[..., :3].max(2)) else np.asarray(image.convert("L"))
    greys = values[..., :3].astype(int)
    if np.ptp(greys, axis=2).max() <= _SOFT:  # grey but for what JPEG does to colours
        return greys.mean(2).astype(np.uint8)
    return None
