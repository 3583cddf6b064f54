import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from support import small_sources
from support.comparing import squares

from cvsa_jax.data import pixels
from cvsa_jax.data.boxes import to_pixels
from cvsa_jax.data.resample import placed_masks
from cvsa_jax.data.saliency_maps import cover_heights, object_integral, saliency_maps, search
from cvsa_jax.data.saliency_swap import SWAP_DRAWS, Swap, background_indices, swap_boxes

GRID = 64
SIZE = 64


def boxes_of(u: np.ndarray, shape, saliency: np.ndarray, background_saliency: np.ndarray, spec) -> Swap:
    """Of n swaps of the same two maps, (n, SWAP_DRAWS) draws."""
    cells = np.stack([saliency, background_saliency]).astype(np.uint8)
    heights = np.stack([cover_heights(i, spec.cover) for i in object_integral(cells, spec.threshold, np)])
    maps = saliency_maps(cells, heights, spec.threshold, np)
    own, lent = (np.full(len(u), k, np.int32) for k in (0, 1))
    ratio = np.full(len(u), shape[0] / shape[1], np.float32)
    return swap_boxes(u, ratio, maps, own, lent, spec, np, search)


def sums_of_all_positions(saliency: np.ndarray, rows: int, cols: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(saliency.astype(int), (rows, cols)).sum((2, 3))


# Pictures that say of each pixel where it comes from: (x, y, blue), the blue channel naming the picture.
SOURCE, BACKGROUND, BACKGROUND_OBJECT = 255, 0, 128


def coded(height: int, width: int, blue: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, blue)], -1).astype(np.uint8)


def rectangle_map(y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    saliency = np.zeros((GRID, GRID), np.uint8)
    saliency[y0:y1, x0:x1] = 255
    return saliency


def background_with_object(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    image = coded(height, width, BACKGROUND)
    y0, x0, y1, x1 = 30, 8, 44, 22
    image[y0 * height // GRID : -(-y1 * height // GRID), x0 * width // GRID : -(-x1 * width // GRID)] = (
        0,
        0,
        BACKGROUND_OBJECT,
    )
    # The map is a little wider than the object, as the resize smears the object's edge over a pixel.
    return image, rectangle_map(y0 - 3, x0 - 3, y1 + 3, x1 + 3)


SPEC = dataclasses.replace(small_sources.SWAP, size=SIZE, group=4, paste_area=(0.2, 0.8), crop_area=(0.08, 1.0))


def run_swap(image, saliency, background, background_saliency, u, **options):
    """View and mask, float."""
    spec = dataclasses.replace(SPEC, **options)
    boxes = boxes_of(u[None], image.shape, saliency, background_saliency, spec)
    target = to_pixels(boxes.hole, SIZE, np)
    behind = pixels.cut_out(background, boxes.window[0], (SIZE, SIZE))
    part = pixels.cut_out(image, boxes.crop[0], tuple((target[0, 2:] - target[0, :2]).tolist()))
    view = pixels.pasted(*map(tf.constant, (behind, part, pixels.frames(target, SIZE)[0])), SIZE)
    (mask,) = placed_masks(saliency[None].astype(np.uint8), boxes.crop, target, SIZE, np)
    return view.numpy().astype(float), mask


def bounding_box(on: np.ndarray) -> np.ndarray:
    rows, cols = np.flatnonzero(on.any(1)), np.flatnonzero(on.any(0))
    return np.array([rows[0], cols[0], rows[-1] + 1, cols[-1] + 1])


def line_through(pixels: np.ndarray, codes: np.ndarray, interior: np.ndarray) -> tuple[float, float]:
    """Origin (pixel edge coordinates) = a + b · place in the view, fitted where no image border bends it."""
    b, a = np.polyfit(pixels[interior] + 0.5, codes[interior] + 0.5, 1)
    return a, b


def origin_box(view: np.ndarray, where: np.ndarray, target: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The box, in fractions of the coded image, that fills `target`; asserts that the codes are its linear map."""
    size = np.array(shape)
    box = np.zeros(4)
    pixels = np.indices(where.shape)
    for axis, channel in ((0, 1), (1, 0)):
        codes = view[..., channel]
        inner = where & (codes > 3) & (codes < size[axis] - 4)
        a, b = line_through(pixels[axis], codes, inner)
        error = np.abs(a + b * (pixels[axis] + 0.5) - 0.5 - codes)[where]
        assert error.max() < 1.5
        box[[axis, axis + 2]] = (a + b * target[[axis, axis + 2]]) / size[axis]
    return box


def assert_best_position(saliency: np.ndarray, box: np.ndarray, slack: float):
    """No other position of the box's size holds more of the map. `slack`: the box's error, in cells."""
    corners = np.round(box * GRID).astype(int)
    assert np.abs(box * GRID - corners).max() < slack
    y0, x0, y1, x1 = corners
    sums = sums_of_all_positions(saliency, y1 - y0, x1 - x0)
    assert saliency[y0:y1, x0:x1].astype(int).sum() == sums.max()


SOURCE_SHAPES = [(120, 200), (230, 96), (64, 64)]
BACKGROUND_SHAPES = [(96, 150), (180, 75), (200, 240)]
SHAPES = list(zip(SOURCE_SHAPES, BACKGROUND_SHAPES, strict=True))
DRAWS = np.random.default_rng(5).random((4, SWAP_DRAWS)).astype(np.float32)


@pytest.mark.parametrize("paste", ["stretch", "keep_aspect"])
@pytest.mark.parametrize("shape, background_shape", SHAPES, ids=["wide on wide", "tall on tall", "square"])
def test_swap_pastes_the_salient_box_into_the_background(shape, background_shape, paste):
    saliency = rectangle_map(18, 33, 40, 50)
    background, background_map = background_with_object(*background_shape)
    for u in DRAWS:
        view, _ = run_swap(
            coded(*shape, SOURCE), saliency, background, background_map, u, paste=paste, paste_area=(0.2, 0.5)
        )
        blue = view[..., 2]
        pasted = blue > 200
        hole = bounding_box(pasted)
        # Nothing in between, and the pasted part is a whole rectangle: no seam, nothing of the background's object.
        np.testing.assert_allclose(blue[pasted], SOURCE, atol=0.01)
        np.testing.assert_allclose(blue[~pasted], BACKGROUND, atol=0.01)
        height, width = hole[2:] - hole[:2]
        assert pasted.sum() == height * width
        assert 0.2 - 0.03 <= pasted.mean() <= 0.5 + 0.03

        crop = origin_box(view, pasted, hole, shape)
        assert_best_position(saliency, crop, 0.3)
        crop_pixels = (crop[2:] - crop[:2]) * shape
        assert 0.1 - 0.03 <= np.prod(crop[2:] - crop[:2]) <= 0.6 + 0.03
        assert_best_position(background_map, hole / SIZE, 1e-6)
        np.testing.assert_allclose(
            origin_box(view, ~pasted, np.array([0, 0, SIZE, SIZE]), background_shape), [0, 0, 1, 1], atol=0.02
        )
        rounding = 0.6 / height + 0.6 / width
        expected_range = [crop_pixels[1] / crop_pixels[0]] * 2 if paste == "keep_aspect" else [3 / 4, 4 / 3]
        assert expected_range[0] * (1 - rounding) <= width / height <= expected_range[1] * (1 + rounding)


@pytest.mark.parametrize("shape, background_shape", SHAPES, ids=["wide on wide", "tall on tall", "square"])
def test_canvas_window_keeps_the_pasted_box_in_the_view(shape, background_shape):
    background, background_map = background_with_object(*background_shape)
    sides = []
    for u in DRAWS:
        view, _ = run_swap(
            coded(*shape, SOURCE),
            rectangle_map(18, 33, 40, 50),
            background,
            background_map,
            u,
            paste_area=(0.2, 0.4),
            canvas_min=0.6,
        )
        blue = view[..., 2]
        pasted = blue > 200
        hole = bounding_box(pasted)
        np.testing.assert_allclose(blue[~pasted], BACKGROUND, atol=0.01)
        assert pasted.sum() == np.prod(hole[2:] - hole[:2])
        window = origin_box(view, ~pasted, np.array([0, 0, SIZE, SIZE]), background_shape)
        assert window.min() > -0.02
        assert window.max() < 1.02
        side = window[2:] - window[:2]
        assert side[0] == pytest.approx(side[1], abs=0.03)
        assert side[0] > 0.6 - 0.02
        sides.append(side[0])
        # Carried back to the whole background, the box has an allowed size and lies on the object.
        hole_there = window[[0, 1, 0, 1]] + hole / SIZE * side[0]
        assert 0.2 - 0.03 <= np.prod(hole_there[2:] - hole_there[:2]) <= 0.4 + 0.03
        assert_best_position(background_map, hole_there, 0.9)
    assert min(sides) < 0.9


def test_mask_moves_with_the_pixels_of_the_source():
    rng = np.random.default_rng(3)
    # Red is the map itself, so wherever red goes the mask must go; the background has no red.
    image = np.zeros((GRID, GRID, 3), np.uint8)
    image[..., 0] = rng.integers(0, 256, (GRID, GRID))
    image[..., 2] = SOURCE
    background, background_map = background_with_object(100, 140)
    background[..., 0] = 0
    for u in DRAWS:
        for canvas_min in (1.0, 0.5):
            view, mask = run_swap(image, image[..., 0], background, background_map, u, canvas_min=canvas_min)
            np.testing.assert_allclose(mask, squares(view[..., 0]), atol=1.01)
            assert mask.max() > 100
            assert not mask[squares(view[..., 2] > 200) == 0].any()


@pytest.mark.parametrize("shape, background_shape", SHAPES, ids=["wide on wide", "tall on tall", "square"])
def test_mask_is_full_on_the_object_and_zero_outside_the_pasted_box(shape, background_shape):
    y0, x0, y1, x1 = 18, 33, 40, 50
    background, background_map = background_with_object(*background_shape)
    for u in DRAWS:
        view, mask = run_swap(
            coded(*shape, SOURCE), rectangle_map(y0, x0, y1, x1), background, background_map, u, source_area=(0.3, 0.6)
        )
        pasted = view[..., 2] > 200
        assert not mask[squares(pasted) == 0].any()
        x = (view[..., 0] + 0.5) / shape[1] * GRID
        y = (view[..., 1] + 0.5) / shape[0] * GRID
        # The kernel reaches two cells at the strongest shrinking met here.
        reach = 3
        object_ = pasted & (y > y0 + reach) & (y < y1 - reach) & (x > x0 + reach) & (x < x1 - reach)
        away = (y < y0 - reach) | (y > y1 + reach) | (x < x0 - reach) | (x > x1 + reach)
        assert object_.sum() > 50
        assert (squares(object_) == 1).any()
        np.testing.assert_allclose(mask[squares(object_) == 1], 255, atol=1e-3)
        np.testing.assert_allclose(mask[squares(pasted & away) == 1], 0, atol=1e-3)


def blob(seed: int) -> np.ndarray:
    """A soft ellipse anywhere, over a haze."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:GRID, :GRID] / GRID
    (cy, cx), (ry, rx) = rng.uniform(0.2, 0.8, 2), rng.uniform(0.1, 0.5, 2)
    return (40 + 215 * np.exp(-(((y - cy) / ry) ** 2) - ((x - cx) / rx) ** 2)).astype(np.uint8)


MANY = np.random.default_rng(6).random((40, SWAP_DRAWS)).astype(np.float32)


@pytest.mark.parametrize(("box", "area", "aspect"), [("crop", 0, 1), ("hole", 3, 4)])
def test_area_and_aspect_of_a_box_have_draws_of_their_own(box, area, aspect):
    spec = dataclasses.replace(SPEC, source_area=(0.1, 0.3), paste_area=(0.1, 0.3), paste="stretch")

    def sides(draw: int) -> np.ndarray:
        """(height, width) of the boxes while one draw goes from 0 to 1."""
        u = np.full((9, SWAP_DRAWS), 0.5, np.float32)
        u[:, draw] = np.linspace(0, 0.999, 9)
        found = getattr(boxes_of(u, (GRID, GRID), blob(1), blob(2), spec), box)
        return found[:, 2:] - found[:, :2]

    by_area, by_aspect = sides(area), sides(aspect)
    cell = 1 / GRID
    np.testing.assert_allclose(by_area.prod(1)[[0, -1]], [0.1, 0.3], atol=cell)
    np.testing.assert_allclose(by_area[:, 1], by_area[:, 0], atol=cell)
    np.testing.assert_allclose(by_aspect.prod(1), 0.2, atol=cell)
    np.testing.assert_allclose((by_aspect[:, 1] / by_aspect[:, 0])[[0, -1]], [3 / 4, 4 / 3], rtol=2.5 * cell / 0.4)


@pytest.mark.parametrize("paste", ["bounded", "keep_aspect", "stretch"])
def test_covering_hole_is_the_smallest_of_its_aspect_that_holds_the_object(paste):
    spec, grew = dataclasses.replace(SPEC, hole="cover", paste=paste), 0
    for saliency in map(blob, range(5)):
        seen = np.where(saliency >= 127.5, saliency, 0).astype(int)
        smallest = MANY.copy()
        smallest[:, 3] = 0  # of the range
        drawn = boxes_of(smallest, (70, 100), blob(99), saliency, dataclasses.replace(spec, hole="size"))
        found = boxes_of(smallest, (70, 100), blob(99), saliency, spec)
        np.testing.assert_array_equal(found.crop, drawn.crop)
        for before, after, residual in zip(drawn.hole, found.hole, found.residual, strict=True):
            y0, x0, y1, x1 = np.round(after * GRID).astype(int)
            held = seen[y0:y1, x0:x1].sum() / seen.sum()
            assert residual == pytest.approx(1 - held, abs=1e-6)
            assert held >= 0.95 - 1e-6
            (high, wide), (least_high, least_wide) = (y1 - y0, x1 - x0), np.round((before[2:] - before[:2]) * GRID)
            assert high >= least_high and wide >= least_wide
            if wide > least_wide + 1:  # two columns less, at the same aspect, hold less wherever they lie
                grew += 1
                aspect = (before[3] - before[1]) / (before[2] - before[0])
                lower = int(np.clip(np.floor((wide - 2) / aspect + 0.501), least_high, GRID)) - 1
                assert sums_of_all_positions(seen, max(lower, 1), wide - 2).max() < 0.95 * seen.sum()
    assert grew > 10


def test_covering_hole_is_enlarged_at_random_up_to_the_range():
    saliency, spec = rectangle_map(10, 20, 42, 50), dataclasses.replace(SPEC, hole="cover", paste_area=(0.1, 0.6))
    areas = np.prod(
        [(b := boxes_of(MANY, (80, 80), blob(1), saliency, spec).hole)[:, k + 2] - b[:, k] for k in (0, 1)], 0
    )
    # The object takes 32 × 30 cells, .23 of the map, and with the aspects drawn at most a third more.
    assert 0.2 < areas.min() < 0.35 and 0.5 < areas.max() < 0.63
    np.testing.assert_allclose(np.corrcoef(areas, MANY[:, 3])[0, 1], 1, atol=0.1)


def test_covering_hole_removes_more_of_the_object_than_one_of_random_size():
    # A large object in a corner: the old rule's box is often too small for it.
    saliency = rectangle_map(0, 0, 45, 50)
    old = boxes_of(MANY, (80, 80), blob(1), saliency, SPEC).residual
    new = boxes_of(MANY, (80, 80), blob(1), saliency, dataclasses.replace(SPEC, hole="cover")).residual
    assert (old > 0.2).mean() > 0.3
    assert new.max() <= 0.05 + 1e-6 and np.median(new) == 0
    blank = boxes_of(MANY, (80, 80), blob(1), np.full((GRID, GRID), 100), dataclasses.replace(SPEC, hole="cover"))
    assert not blank.residual.any()
    np.testing.assert_allclose(blank.hole[:, :2] + blank.hole[:, 2:], 1, atol=1.01 / GRID)


@pytest.mark.parametrize("shape", [(60, 100), (100, 100), (300, 90)], ids=["wide", "square", "tall"])
@pytest.mark.parametrize("hole", ["cover", "size"])
def test_bounded_paste_distorts_no_more_than_random_resized_crop(shape, hole):
    worst = {}
    for paste in ("bounded", "keep_aspect", "stretch"):
        spec = dataclasses.replace(SPEC, paste=paste, hole=hole)
        boxes = boxes_of(MANY, shape, blob(3), blob(4), spec)
        cut, put = ((b[:, 2:] - b[:, :2]) for b in (boxes.crop, boxes.hole))
        cells = np.minimum(cut, put).min(1) * GRID  # a side is a whole number of them
        distortion = (put[:, 1] / put[:, 0]) / (cut[:, 1] * shape[1] / (cut[:, 0] * shape[0]))
        excess = np.exp(np.abs(np.log(distortion)) - 1.5 / cells)
        worst[paste] = excess.max()
        assert paste != "bounded" or np.exp(np.abs(np.log(distortion))).max() > 1.15
    assert worst["bounded"] <= 4 / 3
    assert worst["keep_aspect"] <= 1.02
    assert worst["stretch"] > 1.4


def test_backgrounds_avoid_images_whose_object_is_too_large():
    spec = dataclasses.replace(SPEC, group=4)
    examples = np.array([5, 6, 7, 8, 1, 2, 1, 3])
    too_large = np.array([False, True, False, False, True, True, True, True])
    expected = [[2, 3], [2, 3], [3, 0], [0, 2], [5, 7], [6, 7], [7, 5], [4, 5]]
    assert background_indices(examples, too_large, spec, np).tolist() == expected
    common = background_indices(examples, too_large, dataclasses.replace(spec, background="common"), np)
    assert common.tolist() == [[first, first] for first, _ in expected]
