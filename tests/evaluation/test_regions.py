"""Against labelling the pixels once for each threshold."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cvsa_jax.evaluation.localization import THRESHOLDS, upsample
from cvsa_jax.evaluation.regions import region_boxes


def one_by_one(values: np.ndarray) -> list[tuple[int, ...]]:
    boxes = []
    for k, threshold in enumerate(THRESHOLDS):
        labels, _ = ndimage.label(values >= threshold, np.ones((3, 3)))
        boxes += [(k, y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(labels)]
    return sorted(boxes)


def at_once(values: np.ndarray) -> list[tuple[int, ...]]:
    threshold, boxes = region_boxes(values, THRESHOLDS)
    return sorted((int(k), *map(int, box)) for k, box in zip(threshold, boxes, strict=True))


def steps(rng: np.random.Generator) -> np.ndarray:
    cells = rng.integers(0, 4, (7, 7)).astype(np.uint8)
    return np.asarray(Image.fromarray(cells).resize((56, 56), Image.Resampling.NEAREST)) / 3


RNG = np.random.default_rng(0)
MAPS = {
    "attention of 7 x 7 cells": upsample(RNG.random((7, 7)), 224),
    "attention of 14 x 14 cells": upsample(RNG.random((14, 14)), 112),
    "not square": RNG.random((13, 40)),
    "noise": RNG.random((60, 60)),
    "two values": RNG.integers(0, 2, (60, 60)).astype(float),
    "three values": RNG.integers(0, 3, (60, 60)) / 2,
    "plateaus": steps(RNG),
    "constant 0": np.zeros((20, 20)),
    "constant 1": np.ones((20, 20)),
    "one pixel": np.array([[0.5]]),
    "below all thresholds": np.full((4, 4), -1.0),
    "in part below all thresholds": RNG.random((30, 30)) * 2 - 1,
}


@pytest.mark.parametrize("values", MAPS.values(), ids=MAPS)
def test_region_boxes_match_labelling_each_threshold(values):
    assert at_once(values) == one_by_one(values)


def test_region_boxes_of_small_maps_with_ties():
    rng = np.random.default_rng(1)
    for _ in range(300):
        values = rng.integers(0, rng.integers(1, 9) + 1, rng.integers(1, 9, 2)) / 8
        assert at_once(values) == one_by_one(values)
