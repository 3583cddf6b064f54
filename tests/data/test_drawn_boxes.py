import numpy as np
import pytest

from cvsa_jax.data.boxes import ASPECT_RANGE, box_shape, draw_area, draw_aspect, to_pixels, window_around


def f32(x) -> np.ndarray:
    return np.asarray(x, np.float32)


def drawn(u: np.ndarray, area_range: tuple[float, float], ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths in fractions of an image of so much height / width."""
    return box_shape(draw_area(u[0], area_range), draw_aspect(u[1], ASPECT_RANGE, np) * f32(ratio), np)


@pytest.mark.parametrize("height, width", [(100, 100), (100, 250), (300, 90)])
def test_box_shape_keeps_area_and_pixel_aspect_of_non_square_images(height, width):
    u = np.random.default_rng(0).random((2, 500)).astype(np.float32)
    h, w = drawn(u, (0.02, 0.2), height / width)
    assert h.dtype == w.dtype == np.float32
    np.testing.assert_allclose(h * w, 0.02 + u[0] * 0.18, rtol=1e-4)
    aspect = (w * width) / (h * height)
    assert aspect.min() >= 3 / 4 - 1e-4
    assert aspect.max() <= 4 / 3 + 1e-4
    # Log-uniform: the middle draw is a square.
    np.testing.assert_allclose(np.log(aspect), np.log(3 / 4) + u[1] * np.log(16 / 9), atol=1e-4)


def test_box_shape_never_leaves_the_image():
    u = np.random.default_rng(1).random((2, 200)).astype(np.float32)
    for ratio in (0.025, 1.0, 40.0):
        h, w = drawn(u, (0.5, 1.0), ratio)
        assert max(h.max(), w.max()) <= 1


@pytest.mark.parametrize("smallest", [0.3, 1.0], ids=["at least 0.3", "whole"])
def test_window_is_a_square_in_the_image_around_the_box(smallest):
    rng = np.random.default_rng(2)
    sides = []
    for _ in range(60):
        corners = np.sort(rng.random((2, 2)), axis=0)
        (window,) = window_around(f32([corners.ravel()]), smallest, f32(rng.random((1, 3))), np)
        sides.append(window[2] - window[0])
        assert window[3] - window[1] == pytest.approx(sides[-1], abs=1e-6)
        assert sides[-1] >= smallest - 1e-6
        assert window.min() >= -1e-6
        assert window.max() <= 1 + 1e-6
        assert (window[:2] <= corners[0] + 1e-6).all()
        assert (window[2:] >= corners[1] - 1e-6).all()
    assert (min(sides) < 0.95) == (smallest < 1)


def test_to_pixels_rounds_and_keeps_at_least_one_pixel():
    boxes = to_pixels(f32([[0.0, 0.26, 0.74, 1.0], [0.999, 0.5, 1.0, 0.501]]), 10, np)
    assert boxes.tolist() == [[0, 3, 7, 10], [9, 5, 10, 6]]
