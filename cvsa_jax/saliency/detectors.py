"""Detectors: from an image of a source to a saliency map. Each returns (GRID, GRID) float32 in [0, 1]."""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image

from cvsa_jax.data.sources import Source
from cvsa_jax.errors import UserError
from cvsa_jax.saliency.store import GRID

CENTER_SIGMA = 0.25  # of the centre prior, in image sides


@dataclasses.dataclass(frozen=True)
class Detector:
    """`supervision` says where the knowledge of objects comes from: human | supervised | unsupervised | prior."""

    name: str
    supervision: str
    settings: dict
    detect: Callable[[int], np.ndarray]


def masks(source: Source) -> Detector:
    """The data set's own ground-truth masks, area-averaged to the grid."""
    if source.mask is None:
        raise UserError(
            f"data set {source.name} has no masks (a folder source has them in masks/ beside images/, CUB in "
            "segmentations/): take another --detector"
        )

    def detect(i: int) -> np.ndarray:
        image = Image.fromarray(source.mask(i)).resize((GRID, GRID), Image.Resampling.BOX)
        return np.asarray(image, np.float32) / 255

    return Detector("masks", "human", {}, detect)


def center(source: Source) -> Detector:
    """A Gaussian in the middle, whatever the image: the prior that a detector has to beat."""
    del source
    distance = (np.arange(GRID) + 0.5) / GRID - 0.5
    profile = np.exp(-(distance**2) / (2 * CENTER_SIGMA**2))
    prior = np.outer(profile, profile).astype(np.float32)
    return Detector("center", "prior", {"sigma": CENTER_SIGMA}, lambda i: prior)


DETECTORS = {"masks": masks, "center": center}
