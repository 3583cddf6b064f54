"""The background test's images: another background behind the object, or the background without the object.

In the spirit of Xiao et al. 2021 (ImageNet-9: Mixed-Same, Mixed-Rand and Only-BG-B): what a network recognises when the
background tells of another class, beside the same with a background of its own class, which is cut and pasted just as
much; and how much it recognises from the background alone. All need masks and labels.
"""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from cvsa_jax.data.reading import load_image
from cvsa_jax.data.sources import Source
from cvsa_jax.data.sources.source import fingerprint

_FEATHER = 1.0  # px, standard deviation: the object's border is as soft as a photograph's
_SMOOTHING = 4.0  # px, standard deviation, inside of what is filled
_CLEARANCE = 2  # px around an object that is taken out, so that its border does not stay behind


def replaced(source: Source, indices: np.ndarray, seed: int, *, same_class: bool) -> Source:
    """The source with, for the images at `indices`, the background of another one of them, of the same or of another
    class (where there is one).

    The object stays where it is; the other image, squeezed to the same size, lies behind it, and its own object is
    filled from its surroundings."""
    lenders = _lenders(source.labels[indices], seed, same_class)
    lender = dict(zip(indices.tolist(), indices[lenders].tolist(), strict=True))

    def read(i: int) -> bytes:
        image, mask = _load(source, int(i))
        behind = Image.fromarray(without_object(*_load(source, lender[int(i)])))
        behind = np.asarray(behind.resize(image.shape[1::-1], Image.Resampling.BILINEAR), np.float32)
        return _encoded(laid_over(image, mask, behind))

    return _showing(source, read, f"replaced {seed} {same_class}")


def removed(source: Source) -> Source:
    """The source with the box around each object, and a little more, filled from its surroundings; the box, and not the
    silhouette, so that the shape does not tell the class."""

    def read(i: int) -> bytes:
        image, mask = _load(source, int(i))
        hole = np.zeros_like(mask)
        for box in ndimage.find_objects(mask.astype(int)):
            hole[box] = True
        return _encoded(without_object(image, hole))

    return _showing(source, read, "removed")


def _showing(source: Source, read: Callable[[int], bytes], what: str) -> Source:
    """The source with other pictures, whole and upright, which no cache must take for its own."""
    told = fingerprint([source.fingerprint, what], [0, len(source)])
    return dataclasses.replace(source, read=read, path=None, cut=0, identify=lambda kind: told)


def without_object(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 with the object, and a little around it, filled from its surroundings."""
    return filled(image, ndimage.binary_dilation(mask, iterations=_CLEARANCE))


def filled(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 with each pixel of the hole (H, W) bool as the nearest one outside, smoothed so that neither the
    hole's outline nor streaks stay visible; grey where there is nothing outside."""
    if hole.all():
        return np.full_like(image, 128)
    rows, columns = ndimage.distance_transform_edt(hole, return_distances=False, return_indices=True)
    smooth = ndimage.gaussian_filter(image[rows, columns].astype(np.float32), (_SMOOTHING, _SMOOTHING, 0))
    return np.where(hole[..., None], np.round(smooth), image).astype(np.uint8)


def laid_over(image: np.ndarray, mask: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """The image where the mask (H, W) bool is, `behind` elsewhere, with a soft border; (H, W, 3) uint8."""
    alpha = ndimage.gaussian_filter(mask.astype(np.float32), _FEATHER)[..., None]
    return np.round(alpha * image + (1 - alpha) * behind).astype(np.uint8)


def _lenders(labels: np.ndarray, seed: int, same_class: bool) -> np.ndarray:
    """For each row another one, drawn among those of the same or of another class, or else among all others."""
    rng = np.random.default_rng([seed, 0xBAC6])
    rows = np.arange(len(labels))
    chosen = []
    for row, label in zip(rows, labels, strict=True):
        wanted = rows[(labels == label) & (rows != row)] if same_class else rows[labels != label]
        others = rows[rows != row]
        chosen.append(rng.choice(wanted if len(wanted) else others if len(others) else rows))
    return np.array(chosen)


def _load(source: Source, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 and mask (H, W) bool of one size."""
    image, mask = load_image(source, i), source.mask(i)
    if mask.shape != image.shape[:2]:
        mask = np.asarray(Image.fromarray(mask).resize(image.shape[1::-1], Image.Resampling.NEAREST))
    return image, mask > 127


def _encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
