import dataclasses

import numpy as np
import pytest

from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.boxes import box_overlap, true_box
from cvsa_jax.saliency.quality import measure
from cvsa_jax.saliency.store import GRID, make_record


def source_of(masks: list[np.ndarray] | None = None, boxes: list[list[float]] | None = None) -> Source:
    n = len(masks or boxes or [0])
    return Source(
        name="memory",
        names=tuple(f"image{i}.png" for i in range(n)),
        labels=None,
        classes=(),
        splits={},
        read=lambda i: b"",
        mask=masks and (lambda i: np.where(masks[i], 255, 0).astype(np.uint8)),
        identify=lambda kind: "0",
        box=boxes and (lambda i: np.array(boxes[i])),
    )


def band(start: int, end: int, value: float = 1.0, shape: tuple[int, int] = (GRID, GRID)) -> np.ndarray:
    """Rows `start` to `end` of a map have the value."""
    values = np.zeros(shape, np.float32)
    values[start:end] = value
    return values


def figures_of(source: Source, maps: list[np.ndarray], threshold: float = 0.5, indices=None) -> dict[str, float]:
    records = [make_record(m, float(m.max()), threshold)[()] for m in maps]
    return measure(source, np.arange(len(maps)) if indices is None else indices, lambda i: records[i], threshold)


def stretched(saliency: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Stored levels interpolated with a triangle as wide as the coarser of the two grids, in float64."""
    result = saliency.astype(float)
    for length in shape:
        step = result.shape[0] / length
        distance = np.abs(np.arange(result.shape[0]) + 0.5 - step * (np.arange(length)[:, None] + 0.5))
        weights = np.maximum(1 - distance / max(step, 1), 0)
        result = (weights / weights.sum(1, keepdims=True) @ result).T
    return result


def highest_f(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Of (levels, mask): means over the images at each of 256 thresholds, then F, then the highest."""
    best = 0.0
    for level in range(256):
        at = [(np.round(levels) >= level, mask) for levels, mask in pairs]
        precision = np.mean([(on & mask).sum() / on.sum() if on.any() else 0 for on, mask in at])
        recall = np.mean([(on & mask).sum() / mask.sum() for on, mask in at])
        if precision:
            best = max(best, 1.3 * precision * recall / (0.3 * precision + recall))
    return best


def test_figures_by_hand():
    # The mask is the upper half; the map has 0.8 on the middle half, so 16 rows are hit, 16 missed and 16 too many.
    figures = figures_of(source_of([band(0, 32) > 0]), [band(16, 48, 0.8)])
    assert figures == pytest.approx(
        {
            "mae": (16 * 0.2 + 16 * 1 + 16 * 0.8) / 64,
            "iou": 16 / 48,
            "box_iou": 16 / 48,
            "pointing_game": 1 / 2,
            "max_f": 1.3 * 0.5 * 1 / (0.3 * 0.5 + 1),  # the whole image; at 0.8 it is 1/2
        },
        abs=1e-6,
    )


def test_a_perfect_map_has_perfect_figures():
    masks = [band(0, 32) > 0, band(5, 21).T > 0, np.ones((GRID, GRID), bool)]
    figures = figures_of(source_of(masks), [mask.astype(np.float32) for mask in masks])
    assert figures == {"mae": 0, "iou": 1, "box_iou": 1, "pointing_game": 1, "max_f": 1}


@pytest.mark.parametrize(
    "threshold, iou",
    [(0.4, 32 / 64), (0.45, 1), (0.8, 1), (0.81, 0)],
    ids=["at the lower", "between", "at the higher", "above"],
)
def test_iou_is_of_the_map_at_or_above_the_threshold(threshold, iou):
    saliency = np.maximum(band(0, 32, 0.8), band(0, 64, 0.4))
    assert figures_of(source_of([band(0, 32) > 0]), [saliency], threshold)["iou"] == pytest.approx(iou)


@pytest.mark.parametrize(
    "shapes",
    [[(64, 64)] * 3, [(128, 64), (64, 256), (32, 128)], [(50, 96), (131, 40), (64, 64), (7, 300)]],
    ids=["the grid", "multiples of the grid", "any"],
)
def test_figures_are_those_of_brute_force_on_full_size_masks(shapes):
    rng = np.random.default_rng(len(shapes))
    rows, cols = np.mgrid[:GRID, :GRID] / GRID
    maps, masks = [], []
    for shape in shapes:
        y, x, sharpness = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(5, 25)
        blob = np.exp(-sharpness * ((rows - y) ** 2 + 2 * (cols - x) ** 2))
        maps.append((rng.uniform(0.6, 1) * blob * rng.uniform(0.7, 1, blob.shape)).astype(np.float32))
        height, width = shape
        inside = np.abs(np.mgrid[:height, :width] / np.reshape(shape, (2, 1, 1)) - [[[y]], [[x]]])
        masks.append((inside[0] < 0.2) & (inside[1] < 0.25) & (rng.random(shape) < 0.9))
    figures = figures_of(source_of(masks), maps, 0.4)

    levels = [stretched(np.round(m * 255), shape) for m, shape in zip(maps, shapes, strict=True)]
    pairs = list(zip(levels, masks, strict=True))
    assert figures["mae"] == pytest.approx(np.mean([np.abs(v / 255 - mask).mean() for v, mask in pairs]), abs=1e-6)
    overlaps = [((v >= 102) & mask).sum() / ((v >= 102) | mask).sum() for v, mask in pairs]
    assert figures["iou"] == pytest.approx(np.mean(overlaps), abs=1e-4)
    assert figures["max_f"] == pytest.approx(highest_f(pairs), abs=1e-4)
    # The data can tell F of the means from the mean of the images' highest F.
    assert abs(figures["max_f"] - np.mean([highest_f([pair]) for pair in pairs])) > 1e-3
    hits = [mask[v > v.max() - 1e-4].mean() for v, mask in pairs]
    assert figures["pointing_game"] == pytest.approx(np.mean(hits))


def test_stored_maps_are_interpolated_not_repeated():
    # Between a row of 0 and one of 1, four times finer, there are 1/8, 3/8, 5/8 and 7/8; the mask begins at 5/8.
    mask = band(128, 256, shape=(256, 64)) > 0
    figures = figures_of(source_of([mask]), [band(32, 64)])
    assert figures["mae"] == pytest.approx(2 * (1 / 8 + 3 / 8) / 256, abs=1e-6)
    assert figures["iou"] == 1
    # Just one row more is in.
    assert figures_of(source_of([mask]), [band(32, 64)], 0.3)["iou"] == pytest.approx(128 / 129)


def test_f_is_over_means_at_all_256_thresholds():
    # At level 1 of 255 the first map is exact, at level 255 the second, below it is everything.
    first, second = band(0, 8, 1 / 255), np.maximum(band(0, 16), band(0, 64, 254 / 255))
    masks = [band(0, 8) > 0, band(0, 16) > 0]

    def f(precision: float, recall: float) -> float:
        return 1.3 * precision * recall / (0.3 * precision + recall)

    assert figures_of(source_of(masks[:1]), [first])["max_f"] == pytest.approx(1)
    assert figures_of(source_of(masks[1:]), [second])["max_f"] == pytest.approx(1)
    # Level 0: 8/64 and 16/64, both recalled; 1: 1 and 16/64; 255: the first has nothing left, which counts as 0.
    both = max(f((1 / 8 + 1 / 4) / 2, 1), f((1 + 1 / 4) / 2, 1), f(1 / 2, 1 / 2))
    assert figures_of(source_of(masks), [first, second])["max_f"] == pytest.approx(both)


def test_equal_maxima_share_the_image():
    saliency = np.zeros((GRID, GRID), np.float32)
    saliency[3, 4] = saliency[50, 60] = saliency[51, 60] = saliency[10, 40] = 0.7
    assert figures_of(source_of([band(50, 52) > 0]), [saliency])["pointing_game"] == pytest.approx(2 / 4)
    # A constant map points as often as the object is large.
    blank = np.zeros((GRID, GRID), np.float32)
    assert figures_of(source_of([band(0, 5, shape=(20, 30)) > 0]), [blank])["pointing_game"] == pytest.approx(5 / 20)


@pytest.mark.parametrize("boxes", [None, [[0.0, 0.0, 0.5, 1.0]] * 3], ids=["masks", "masks and boxes"])
def test_image_with_an_empty_mask_counts_for_mae_only(boxes):
    masks = [band(0, 32) > 0, band(0, 0) > 0, band(0, 32) > 0]
    maps = [band(0, 32), band(0, 64, 0.6), band(0, 32)]
    figures = figures_of(source_of(masks, boxes), maps)
    assert figures.pop("mae") == pytest.approx(0.6 / 3)
    assert figures == {"iou": 1, "box_iou": 1, "pointing_game": 1, "max_f": 1}
    assert figures_of(source_of(masks, boxes), maps, indices=np.array([1])) == {"mae": pytest.approx(0.6)}


def test_only_the_images_asked_for_are_measured():
    masks = [band(0, 32) > 0] * 4
    source = source_of(masks)
    maps = {1: band(0, 16), 3: band(0, 8)}
    records = {i: make_record(m, 1.0, 0.5)[()] for i, m in maps.items()}
    figures = measure(source, np.array([3, 1]), records.__getitem__, 0.5)
    assert figures["iou"] == pytest.approx((16 / 32 + 8 / 32) / 2)
    # Once for each time it is asked for.
    figures = measure(source, np.array([3, 1, 1]), records.__getitem__, 0.5)
    assert figures["iou"] == pytest.approx((2 * 16 / 32 + 8 / 32) / 3)


def test_boxes_of_the_source_come_before_those_of_its_masks():
    # The box is twice as high as the mask; the pointing game still asks for the mask.
    figures = figures_of(source_of([band(0, 16) > 0], [[0, 0, 0.5, 1]]), [band(0, 32)])
    assert figures["box_iou"] == 1
    assert figures["iou"] == pytest.approx(1 / 2)
    assert figures["pointing_game"] == pytest.approx(1 / 2)


def test_box_iou_is_of_the_stored_box():
    # The box around the cells at the threshold is the left half; the mask is the upper half of a wide image.
    figures = figures_of(source_of([band(0, 10, shape=(20, 90)) > 0]), [band(0, 32).T + 0.4 * band(0, 1)])
    assert figures["box_iou"] == pytest.approx(1 / 3)
    # A map without a cell at the threshold has the centre box: a quarter of the image, half of it in the upper half.
    figures = figures_of(source_of([band(0, 10, shape=(20, 90)) > 0]), [band(0, 32, 0.3)])
    assert figures["box_iou"] == pytest.approx(0.125 / (0.25 + 0.5 - 0.125))


def test_sources_with_boxes_only():
    saliency = np.zeros((GRID, GRID), np.float32)
    saliency[16:32, 8:16] = 0.9
    quarter = [0.25, 0.125, 0.5, 0.25]
    assert figures_of(source_of(boxes=[quarter]), [saliency]) == {"box_iou": 1, "pointing_game": 1}
    # Cells count by their centres: rows from 20 (0.32 = 20.48 cells) to 27 (0.43 = 27.52), 8 of 16; columns from 13
    # (0.2 = 12.8 cells) to 15, 3 of 8.
    box = [0.32, 0.2, 0.43, 0.6]
    figures = figures_of(source_of(boxes=[quarter, box]), [saliency, saliency])
    assert figures["pointing_game"] == pytest.approx((1 + 8 * 3 / (16 * 8)) / 2)
    inner = (0.43 - 0.32) * (0.25 - 0.2)
    overlap = inner / (0.25 * 0.125 + 0.11 * 0.4 - inner)
    assert figures["box_iou"] == pytest.approx((1 + overlap) / 2, abs=1e-6)
    assert figures_of(source_of(boxes=[[0.6, 0.6, 1, 1]]), [saliency]) == {"box_iou": 0, "pointing_game": 0}


def test_sources_without_masks_and_boxes_have_no_figures():
    def record_of(i: int):
        raise AssertionError("nothing to look at")

    assert measure(source_of(), np.arange(1), record_of, 0.5) == {}


def test_overlap_of_boxes():
    def cells(box: np.ndarray) -> np.ndarray:
        on = np.zeros((12, 12), bool)
        on[box[0] : box[2], box[1] : box[3]] = True
        return on

    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (np.sort(rng.permuted(np.tile(np.arange(13), (2, 1)), axis=1)[:, :2]).T.ravel() for _ in range(2))
        expected = (cells(a) & cells(b)).sum() / (cells(a) | cells(b)).sum()
        assert box_overlap(a / 12, b / 12) == pytest.approx(expected, abs=1e-12)
    # Apart on both axes, so that two negative sides must not make an area.
    assert box_overlap(np.array([0, 0, 0.2, 0.2]), np.array([0.5, 0.6, 1, 1])) == 0


def test_true_box_is_the_source_box_or_that_of_the_mask():
    mask = np.zeros((10, 40), bool)
    mask[2:5, 8] = mask[4, 8:20] = True
    around = [2 / 10, 8 / 40, 5 / 10, 20 / 40]
    np.testing.assert_allclose(true_box(source_of([mask]), 0, mask), around)
    assert true_box(source_of([mask]), 0, np.zeros_like(mask)) is None
    assert true_box(source_of([mask]), 0, None) is None
    boxes = [[0, 0, 1, 0.5], [0.1, 0.2, 0.3, 0.4]]
    assert true_box(source_of([mask] * 2, boxes), 1, mask).tolist() == boxes[1]
    assert true_box(dataclasses.replace(source_of(boxes=boxes)), 0, None).tolist() == boxes[0]
