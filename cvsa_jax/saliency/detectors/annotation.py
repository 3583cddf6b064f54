"""Detectors that look nothing up in the pixels: the data set's own masks and boxes, the user's maps, the centre."""

import collections
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from cvsa_jax.data import decode
from cvsa_jax.data.sources import Source
from cvsa_jax.data.sources.contents import digests
from cvsa_jax.data.sources.folder import NO_IMAGE
from cvsa_jax.data.sources.source import fingerprint
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import load_array
from cvsa_jax.saliency.detector import Detection, Detector
from cvsa_jax.saliency.store import GRID

CENTER_SIGMA = 0.25  # of the centre prior, in image sides
EDGE = 0.05  # of a soft rectangle: logistic scale of its edges, in sides of the box
MAP_ENDINGS = (".npy", ".png")
_FULL = {np.dtype(bool): 1, np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}  # value of a full map, by type


def masks(source: Source) -> Detector:
    """The data set's own ground-truth masks."""
    if source.mask is None:
        raise UserError(
            f"data set {source.name} has no masks (a folder source has them in masks/ beside images/, CUB in "
            f"segmentations/): take another --detector{_strays(source)}"
        )
    if bare := [source.names[i] for i in np.flatnonzero(~source.has_mask(np.arange(len(source))))]:
        raise UserError(
            f"{len(bare)} of {len(source)} images of {source.name} have no mask: {some(bare)}. Draw them, or take "
            f"another --detector{_strays(source)}"
        )
    settings = _annotation(source)
    return _detector("masks", "human", settings, lambda i: source.mask(i).astype(np.float32) / 255)


def boxes(source: Source) -> Detector:
    """The data set's own boxes as soft rectangles: 1/2 on the box's edges, about 1 inside, about 0 outside."""
    if source.box is None:
        raise UserError(
            f"data set {source.name} has no boxes (a folder source has them in boxes.csv, CUB in bounding_boxes.txt): "
            "take another --detector"
        )

    def rectangle(i: int) -> np.ndarray:
        y0, x0, y1, x1 = source.box(i)
        return np.outer(_soft_interval(y0, y1), _soft_interval(x0, x1)).astype(np.float32)

    return _detector("boxes", "human", {"edge": EDGE} | _annotation(source), rectangle)


def center(source: Source) -> Detector:
    """A Gaussian in the middle, whatever the image: the prior that a detector has to beat."""
    del source
    profile = np.exp(-((_cells() - 0.5) ** 2) / (2 * CENTER_SIGMA**2))
    prior = np.outer(profile, profile).astype(np.float32)
    return _detector("center", "prior", {"sigma": CENTER_SIGMA}, lambda i: prior)


def folder(source: Source, root: Path, supervision: str) -> Detector:
    """The user's own maps below `root`: `<image name>.png` (8 or 16 bits) or `.npy` (float in [0, 1], or uint8), of any
    size. The image's ending may be left out, unless two images differ by it alone.

    Raises:
        UserError: no such folder, or images without a map (they are named); while it runs, a map that is unreadable,
            has several channels, or is not in [0, 1].
    """
    if not root.is_dir():
        raise UserError(f"--maps={root} is not a folder")
    stems = collections.Counter(str(PurePosixPath(name).with_suffix("")) for name in source.names)

    def places(name: str) -> list[Path]:
        stem = str(PurePosixPath(name).with_suffix(""))
        return [root / f"{base}{ending}" for base in (name, *([stem] * (stems[stem] == 1))) for ending in MAP_ENDINGS]

    candidates = [places(name) for name in source.names]
    paths = [next((path for path in pair if path.is_file()), None) for pair in candidates]
    if absent := [name for name, path in zip(source.names, paths, strict=True) if path is None]:
        alike = ". Of images that differ by their ending alone, maps are named with it: a.jpg.npy"
        alike *= max(stems.values()) > 1
        raise UserError(
            f"{root} has no map (.png or .npy, in folders that mirror the images) of {len(absent)} of {len(source)} "
            f"images: {some(absent)}{alike}"
        )
    told = fingerprint([path.relative_to(root) for path in paths], digests(paths))
    return _detector("folder", supervision, {"maps": told}, lambda i: read_map(paths[i]))


def read_map(path: Path) -> np.ndarray:
    """A saliency map file as (h, w) float32 in [0, 1]; UserError where it is none."""
    try:
        if path.suffix == ".npy":
            values = load_array(path)
        else:
            image = decode.upright(path.read_bytes())
            if image.has_transparency_data and (alpha := image.convert("RGBA").getchannel("A")).getextrema() != (
                255,
                255,
            ):
                raise ValueError(f"it has an alpha channel, of {alpha.getextrema()[0]} to {alpha.getextrema()[1]}")
            # Of 16 bits, in a type that depends on Pillow's version, or of 8.
            deep = image.mode.startswith("I")
            values = np.asarray(image).astype(np.uint16) if deep else np.asarray(image.convert("RGB"))
    except (OSError, EOFError, ValueError, SyntaxError) as error:
        raise UserError(f"cannot read the saliency map {path}: {error}") from None
    if path.suffix == ".png" and values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2 or not values.size:
        raise UserError(f"the saliency map {path} has shape {values.shape}; it must be (height, width)")
    if values.dtype in _FULL:
        values = values / np.float32(_FULL[values.dtype])
    elif values.dtype.kind != "f":
        raise UserError(f"the saliency map {path} is of type {values.dtype}; it must be float, uint8, uint16 or bool")
    if not (values.min() >= 0 and values.max() <= 1):  # NaN neither
        low, high = values.min(), values.max()
        raise UserError(f"the saliency map {path} holds values from {low:g} to {high:g}; they must lie in [0, 1]")
    return values.astype(np.float32)


def _detector(name: str, supervision: str, settings: dict, map_of: Callable[[int], np.ndarray]) -> Detector:
    """A detector that needs the index alone; its maps are raw, so their maximum is the confidence."""
    return Detector(
        name,
        supervision,
        settings,
        prepare=lambda i, image: map_of(i),
        detect=lambda maps: [Detection(m, float(m.max())) for m in maps],
    )


def _strays(source: Source) -> str:
    strays = source.left_out.get(NO_IMAGE, ())
    return f". What lies among the masks belongs to no image: {some(strays)}" if strays else ""


def _annotation(source: Source) -> dict[str, str]:
    """What tells, in a store's settings, whether the annotation that its maps were made from has changed."""
    annotation = source.annotation()
    return {"annotation_hash": annotation} if annotation else {}


def _cells() -> np.ndarray:
    """Centres of the cells along one side, in fractions."""
    return (np.arange(GRID) + 0.5) / GRID


def _soft_interval(start: float, end: float) -> np.ndarray:
    """Logistic edges at both ends; an interval narrower than a cell is widened to one, or it would fall between."""
    side = max(end - start, 1 / GRID)
    distance = side / 2 - np.abs(_cells() - (start + end) / 2)
    return (1 + np.tanh(distance / (2 * EDGE * side))) / 2
