"""How well maps of where something looks fit the masks and boxes of a source."""

import contextlib
import time
from collections.abc import Iterator

import numpy as np

from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.boxes import box_score, true_box


class Localizer:
    """Measures on one source, whose images are squeezed to squares of `size` px. `perf`: `<part>_s`, the seconds that
    each part has taken so far, for the commands' JSON."""

    def __init__(self, source: Source, size: int):
        self.source, self.size = source, size
        self.perf: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the seconds inside to those of a part."""
        began = time.monotonic()
        yield
        self.perf[f"{part}_s"] = self.perf.get(f"{part}_s", 0) + time.monotonic() - began

    def masks(self, indices: np.ndarray) -> np.ndarray:
        """(k, size, size) bool ground-truth masks of the same squares; nothing of images that have none."""
        if (known := self.source.has_mask(indices)).sum() < len(indices):
            print(f"{known.sum()} of {len(indices)} images have a mask: figures against masks are of these")
        return localization.square_masks(self.source, indices, self.size)

    def localization(self, maps: np.ndarray, indices: np.ndarray, masks: np.ndarray | None) -> dict[str, float]:
        """Figures of maps (k, h, w) against the images' masks, as `masks` gives them, and boxes (those around the
        masks where the source has none); {} where there is neither."""
        with self.timed("maps_against_masks"):
            known = self.source.has_mask(indices)
            figures = localization.score(maps[known], masks[known]) if masks is not None and known.any() else {}
            figures |= {"images_with_masks": int(known.sum())} if 0 < known.sum() < len(indices) else {}
        truths = [None] * len(indices) if masks is None else masks
        boxes = [true_box(self.source, int(i), mask) for i, mask in zip(indices, truths, strict=True)]
        known = [k for k, box in enumerate(boxes) if box is not None]
        if not known:
            return figures
        with self.timed("maps_against_boxes"):
            return figures | box_score(maps[known], np.stack([boxes[k] for k in known]), self.size)
