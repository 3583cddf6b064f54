import dataclasses

import numpy as np
import pytest
import small_sources
import tensorflow as tf
from helpers import squares

from cvsa_jax.data import saliency_swap as swap

GRID = 64
SIZE = 64
ALMOST_ONE = np.nextafter(np.float32(1), np.float32(0))


def f32(x) -> tf.Tensor:
    return tf.constant(x, tf.float32)


def map_of(saliency: np.ndarray, threshold: float = 1 / 255) -> swap.SaliencyMap:
    """A map that is blank where no cell is at the threshold; by default where all are 0."""
    maps = swap.saliency_maps(tf.constant(saliency[None], tf.uint8), threshold)
    return swap.SaliencyMap(*(field[0] for field in maps))


def sums_of_all_positions(saliency: np.ndarray, rows: int, cols: int) -> np.ndarray:
    h, w = saliency.shape
    ys, xs = range(h - rows + 1), range(w - cols + 1)
    return np.array([[saliency[y : y + rows, x : x + cols].astype(int).sum() for x in xs] for y in ys])


def cells(box: tf.Tensor, grid: int) -> tuple[int, int, int, int]:
    scaled = box.numpy() * grid
    np.testing.assert_allclose(scaled, np.round(scaled), atol=1e-4)
    return tuple(int(v) for v in np.round(scaled))


def test_integral_image_holds_sums_of_full_uint8_maps():
    saliency = np.full((GRID, GRID), 255, np.uint8)
    integral = map_of(saliency).integral.numpy()
    assert integral[-1, -1] == 255 * GRID * GRID
    assert not integral[0].any()
    assert not integral[:, 0].any()


@pytest.mark.parametrize("rows, cols", [(1, 1), (1, 12), (12, 1), (3, 5), (7, 2), (11, 11), (12, 12)])
def test_most_salient_box_against_brute_force(rows, cols):
    grid = 12
    rng = np.random.default_rng([rows, cols])
    for trial in range(6):
        # Few levels make ties, many make none.
        saliency = rng.integers(0, 3 if trial % 2 else 256, (grid, grid)).astype(np.uint8)
        sums = sums_of_all_positions(saliency, rows, cols)
        box = swap.most_salient_box(map_of(saliency), f32(rows / grid), f32(cols / grid), f32(rng.random()))
        y0, x0, y1, x1 = cells(box, grid)
        assert (y1 - y0, x1 - x0) == (rows, cols)
        assert 0 <= y0 <= y1 <= grid
        assert 0 <= x0 <= x1 <= grid
        assert sums[y0, x0] == sums.max()


def test_box_has_at_least_one_and_at_most_all_cells():
    saliency = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
    y0, x0, y1, x1 = cells(swap.most_salient_box(map_of(saliency), f32(0.001), f32(1.0), f32(0.5)), 8)
    assert (y1 - y0, x0, x1) == (1, 0, 8)
    assert y0 == saliency.sum(1, dtype=int).argmax()


def test_ties_are_spread_over_all_positions():
    grid, rows, cols = 8, 3, 5
    level = map_of(np.full((grid, grid), 9, np.uint8))
    positions = (grid - rows + 1) * (grid - cols + 1)
    draws = (np.arange(5 * positions) + 0.5) / (5 * positions)
    found = [cells(swap.most_salient_box(level, f32(rows / grid), f32(cols / grid), f32(u)), grid) for u in draws]
    counts = {box: found.count(box) for box in set(found)}
    assert set(counts.values()) == {5}
    assert {box[:2] for box in counts} == {(y, x) for y in range(grid - rows + 1) for x in range(grid - cols + 1)}


@pytest.mark.parametrize("u_tie", [ALMOST_ONE, 1.0])
@pytest.mark.parametrize("rows", [1, 30, GRID])
def test_the_last_tie_is_a_valid_position(u_tie, rows):
    box = swap.most_salient_box(
        map_of(np.full((GRID, GRID), 1, np.uint8)), f32(rows / GRID), f32(rows / GRID), f32(u_tie)
    )
    assert cells(box, GRID) == (GRID - rows, GRID - rows, GRID, GRID)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (5, 8), (12, 12), (7, 2)])
def test_a_map_with_nothing_at_the_threshold_gives_the_box_of_the_centre(rows, cols):
    grid = 12
    saliency = np.random.default_rng(0).integers(0, 127, (grid, grid)).astype(np.uint8)
    saliency[0, 0] = 127  # the highest of all, and below 0.5 · 255
    for u in (0.0, 0.5, 0.99):
        box = swap.most_salient_box(map_of(saliency, 0.5), f32(rows / grid), f32(cols / grid), f32(u))
        y0, x0, y1, x1 = cells(box, grid)
        # As much room above as below and left as right, but for half a cell.
        assert (y1 - y0, x1 - x0) == (rows, cols)
        assert 0 <= (grid - y1) - y0 <= 1 and 0 <= (grid - x1) - x0 <= 1
    saliency[0, 0] = 128
    at_corner = swap.most_salient_box(map_of(saliency, 0.5), f32(1 / grid), f32(1 / grid), f32(0.5))
    assert cells(at_corner, grid)[:2] == (0, 0)


@pytest.mark.parametrize("height, width", [(100, 100), (100, 250), (300, 90)])
def test_box_shape_keeps_area_and_pixel_aspect_of_non_square_images(height, width):
    u = np.random.default_rng(0).random((2, 500)).astype(np.float32)
    h, w = (x.numpy() for x in swap.draw_box_shape(f32(u[0]), f32(u[1]), (0.02, 0.2), f32(height / width)))
    np.testing.assert_allclose(h * w, 0.02 + u[0] * 0.18, rtol=1e-4)
    aspect = (w * width) / (h * height)
    assert aspect.min() >= 3 / 4 - 1e-4
    assert aspect.max() <= 4 / 3 + 1e-4
    # Log-uniform: the middle draw is a square.
    np.testing.assert_allclose(np.log(aspect), np.log(3 / 4) + u[1] * np.log(16 / 9), atol=1e-4)


def test_box_shape_never_leaves_the_image():
    u = np.random.default_rng(1).random((2, 200)).astype(np.float32)
    for ratio in (0.025, 1.0, 40.0):
        h, w = swap.draw_box_shape(f32(u[0]), f32(u[1]), (0.5, 1.0), f32(ratio))
        assert float(tf.reduce_max(h)) <= 1
        assert float(tf.reduce_max(w)) <= 1


@pytest.mark.parametrize("smallest", [0.3, 0.7, 1.0])
def test_window_is_a_square_in_the_image_around_the_box(smallest):
    rng = np.random.default_rng(2)
    sides = []
    for _ in range(60):
        corners = np.sort(rng.random((2, 2)), axis=0)
        window = swap.window_around(f32(corners.ravel()), smallest, f32(rng.random(3))).numpy()
        sides.append(window[2] - window[0])
        assert window[3] - window[1] == pytest.approx(sides[-1], abs=1e-6)
        assert sides[-1] >= smallest - 1e-6
        assert window.min() >= -1e-6
        assert window.max() <= 1 + 1e-6
        assert (window[:2] <= corners[0] + 1e-6).all()
        assert (window[2:] >= corners[1] - 1e-6).all()
    assert (min(sides) < 0.95) == (smallest < 1)


def test_to_pixels_rounds_and_keeps_a_pixel():
    assert swap.to_pixels(f32([0.0, 0.26, 0.74, 1.0]), 10).numpy().tolist() == [0, 3, 7, 10]
    assert swap.to_pixels(f32([0.999, 0.5, 1.0, 0.501]), 10).numpy().tolist() == [9, 5, 10, 6]


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
    spec = dataclasses.replace(SPEC, **options)
    source, lender = (map_of(s, spec.threshold) for s in (saliency, background_saliency))
    view, mask = swap.swap(tf.constant(image), source, swap.canvas(tf.constant(background), spec), lender, f32(u), spec)
    return view.numpy(), mask.numpy()


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
        assert error.max() < 1.0
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
DRAWS = np.random.default_rng(5).random((4, swap.SWAP_DRAWS)).astype(np.float32)


@pytest.mark.parametrize("paste", ["stretch", "keep_aspect"])
@pytest.mark.parametrize("shape, background_shape", SHAPES)
def test_swap_shows_the_sources_box_in_the_backgrounds_surroundings(shape, background_shape, paste):
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


@pytest.mark.parametrize("shape, background_shape", SHAPES)
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


def test_mask_is_the_sources_saliency_under_the_same_map():
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
            np.testing.assert_allclose(mask, squares(view[..., 0]), atol=0.01)
            assert mask.max() > 100
            assert not mask[squares(view[..., 2] > 200) == 0].any()


@pytest.mark.parametrize("shape, background_shape", SHAPES)
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
