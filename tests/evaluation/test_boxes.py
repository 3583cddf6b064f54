import dataclasses

import numpy as np
import pytest
from support.small_sources import memory_source

from cvsa_jax.evaluation.boxes import OVERLAPS, box_score, true_box
from cvsa_jax.evaluation.localization import THRESHOLDS

SIZE = 20


def rectangle(y0: int, x0: int, y1: int, x1: int, value: float = 1.0) -> np.ndarray:
    image = np.zeros((SIZE, SIZE))
    image[y0:y1, x0:x1] = value
    return image


def in_fractions(*box: int) -> np.ndarray:
    return np.array(box, float) / SIZE


def regions(on: np.ndarray) -> list[set[tuple[int, int]]]:
    """Connected regions by flood fill over the eight neighbours."""
    left = {tuple(p) for p in np.argwhere(on)}
    found = []
    while left:
        edge = [left.pop()]
        region = set(edge)
        while edge:
            y, x = edge.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            region |= near
            edge += near
        found.append(region)
    return found


def pixel_overlap(region: set, box: np.ndarray) -> float:
    ys, xs = zip(*region, strict=True)
    a = rectangle(min(ys), min(xs), max(ys) + 1, max(xs) + 1) > 0
    b = rectangle(*np.round(box * SIZE).astype(int)) > 0
    return (a & b).sum() / (a | b).sum()


def by_definition(maps, boxes) -> dict[str, float]:
    overlaps = [
        [max([pixel_overlap(r, box) for r in regions(m >= t)], default=0.0) for t in THRESHOLDS]
        for m, box in zip(maps, boxes, strict=True)
    ]
    levels = [max(np.mean([row[t] >= level for row in overlaps]) for t in range(len(THRESHOLDS))) for level in OVERLAPS]
    hits = []
    for m, box in zip(maps, boxes, strict=True):
        found = regions(m >= 0.5)
        hits.append(bool(found) and pixel_overlap(max(found, key=len), box) >= 0.5)
    return {"max_box_acc_v2": np.mean(levels), "corloc": np.mean(hits)}


def test_box_scores_match_pixelwise_definition():
    rng = np.random.default_rng(0)
    maps, boxes = [], []
    for _ in range(6):
        y, x = rng.integers(0, 10, 2)
        h, w = rng.integers(4, 10, 2)
        m = (
            rectangle(y, x, y + h, x + w, 0.8)
            + 0.45 * (rng.random((SIZE, SIZE)) < 0.1)
            + 0.1 * rng.random((SIZE, SIZE))
        )
        maps.append((m - m.min()) / np.ptp(m))
        shift = rng.integers(0, 3)
        boxes.append(in_fractions(y, x + shift, min(SIZE, y + h + shift), x + w))
    maps, boxes = np.array(maps), np.array(boxes)
    figures = box_score(maps, boxes)
    assert figures == pytest.approx(by_definition(maps, boxes))
    assert 0 < figures["max_box_acc_v2"] < 1
    order = np.array([2, 5, 0, 1, 4, 3])
    assert box_score(maps[order], boxes[order]) == pytest.approx(figures)


def test_box_scores_of_perfect_and_hopeless_maps():
    maps = np.array([rectangle(2, 3, 9, 12), rectangle(0, 0, 20, 5)])
    assert box_score(maps, np.array([in_fractions(2, 3, 9, 12), in_fractions(0, 0, 20, 5)])) == {
        "max_box_acc_v2": 1,
        "corloc": 1,
    }
    # At threshold 0 the box is the whole image, which overlaps a small box by little.
    assert box_score(maps, np.array([in_fractions(15, 15, 18, 18), in_fractions(15, 15, 18, 18)])) == {
        "max_box_acc_v2": 0,
        "corloc": 0,
    }


def test_max_box_accuracy_takes_any_region_and_corloc_the_largest():
    both = rectangle(0, 0, 10, 10) + rectangle(15, 15, 19, 19)
    figures = box_score(both[None], in_fractions(15, 15, 19, 19)[None])
    assert figures == {"max_box_acc_v2": 1, "corloc": 0}


def test_regions_touching_at_a_corner_are_connected():
    stairs = rectangle(0, 0, 10, 10) + rectangle(10, 10, 20, 20)
    assert box_score(stairs[None], in_fractions(0, 0, 20, 20)[None])["corloc"] == 1


def test_max_box_accuracy_uses_one_threshold_for_all_images():
    # Image 0 needs a threshold above 0.2, image 1 one below 0.2 and above 0.
    first = np.maximum(rectangle(0, 0, 4, 4), 0.2)
    second = np.maximum(rectangle(0, 0, 10, 20, 0.1), rectangle(0, 0, 1, 1))
    boxes = np.array([in_fractions(0, 0, 4, 4), in_fractions(0, 0, 10, 20)])
    assert box_score(np.array([first, second]), boxes)["max_box_acc_v2"] == pytest.approx(0.5)


def test_box_of_an_image_is_the_sources_or_else_that_around_the_mask():
    without = memory_source([b"image"])
    mask = np.zeros((4, 8), bool)
    mask[1:3, 2] = True
    np.testing.assert_array_equal(true_box(without, 0, mask), [1 / 4, 2 / 8, 3 / 4, 3 / 8])
    assert true_box(without, 0, None) is None and true_box(without, 0, np.zeros((4, 8), bool)) is None
    boxed = dataclasses.replace(without, box=lambda i: np.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_array_equal(true_box(boxed, 0, mask), [0.1, 0.2, 0.3, 0.4])
