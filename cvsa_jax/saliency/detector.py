"""What a detector is: from an image to a saliency map, in two steps, one for each image and one for a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SUPERVISIONS = ("human", "supervised", "unsupervised", "prior")


class Detection(NamedTuple):
    """`saliency`: (h, w) float32 in [0, 1], of any size, each axis of the image scaled on its own; `confidence`: the
    detector's raw maximum in [0, 1], before any scaling to the image's own range."""

    saliency: np.ndarray
    confidence: float


@dataclasses.dataclass(frozen=True)
class Detector:
    """A detector that is ready to run.

    Attributes:
        name: as in `--detector`.
        supervision: where its knowledge of objects comes from, one of SUPERVISIONS.
        settings: everything that changes its maps, JSON-like; a store made with other settings is another store.
        prepare: (index into the source, image (H, W, 3) uint8) -> what `detect` takes; called in several threads.
        detect: prepared images, at most `batch_size` -> a detection of each, in order. An image's map does not depend
            on the others'.
        batch_size: images given to `detect` together.
    """

    name: str
    supervision: str
    settings: dict[str, Any]
    prepare: Callable[[int, np.ndarray], np.ndarray]
    detect: Callable[[list[np.ndarray]], list[Detection]]
    batch_size: int = 32


def squeezed(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) or (H, W) uint8 -> (size, size, …) uint8, bilinear with antialiasing, each axis on its own."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def scaled(saliency: np.ndarray) -> np.ndarray:
    """A map of any range, scaled to [0, 1] as float32; a constant one becomes 0."""
    low, high = float(saliency.min()), float(saliency.max())
    return ((saliency - low) / max(high - low, 1e-12)).astype(np.float32)
