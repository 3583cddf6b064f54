import numpy as np
import pytest
from PIL import Image
from support.comparing import squares

from cvsa_jax.data.pixels import cut_out
from cvsa_jax.data.resample import axis_weights, placed_masks

GRID = 64


def f32(x) -> np.ndarray:
    return np.asarray(x, np.float32)


def by_matrices(image: np.ndarray, source, target, size: int) -> np.ndarray:
    """The box of an image (H, W), resized over a box of zeros, float."""
    down, across = (
        axis_weights(f32([source[k]]), f32([source[k + 2]]), *np.array([[target[k]], [target[k + 2]]]), n, size, np)[0]
        for k, n in enumerate(image.shape)
    )
    return down @ image.astype(np.float32) @ across.T


def test_whole_image_at_its_own_size_is_itself():
    image = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    np.testing.assert_allclose(by_matrices(image, [0, 0, 1, 1], [0, 0, 32, 32], 32), image, atol=1e-3)
    same = cut_out(np.stack([image] * 3, -1), f32([0, 0, 1, 1]), (32, 32))
    np.testing.assert_array_equal(same[..., 0], image)


def test_box_of_whole_pixels_at_scale_one_is_an_exact_crop():
    image = np.random.default_rng(0).integers(0, 256, (50, 80)).astype(np.uint8)
    source = f32([10 / 50, 16 / 80, 30 / 50, 46 / 80])
    expected = np.zeros((48, 48))
    expected[5:25, 7:37] = image[10:30, 16:46]
    np.testing.assert_allclose(by_matrices(image, source, [5, 7, 25, 37], 48), expected, atol=1e-2)
    crop = cut_out(np.stack([image] * 3, -1), source, (20, 30))
    np.testing.assert_array_equal(crop[..., 0], image[10:30, 16:46])


@pytest.mark.parametrize("height, width", [(90, 150), (20, 33), (64, 21)])
@pytest.mark.parametrize("source", [[0, 0, 1, 1], [0.13, 0.2, 0.71, 0.94]], ids=["whole", "box"])
def test_matrices_resize_as_pillow_does(height, width, source):
    # Pillow itself, in floating point.
    image = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8)
    edges = [source[1] * width, source[0] * height, source[3] * width, source[2] * height]
    expected = Image.fromarray(f32(image)).resize((40, 30), Image.Resampling.BILINEAR, edges)
    found = by_matrices(image, source, [0, 0, 30, 40], 40)[:30]
    np.testing.assert_allclose(found, np.asarray(expected), atol=0.05)
    # The host's views are rounded once.
    coloured = cut_out(np.stack([image] * 3, -1), f32(source), (30, 40))
    np.testing.assert_allclose(coloured[..., 0], found, atol=0.51)


@pytest.mark.parametrize(
    ("source", "target"),
    [([0, 0, 1, 1], [0, 0, 48, 48]), ([0.2, 0.1, 0.9, 0.4], [3, 10, 30, 41]), ([0.4, 0.5, 0.6, 0.55], [1, 0, 48, 7])],
    ids=["whole", "box", "narrow box"],
)
def test_placed_mask_is_the_placed_map_averaged_over_squares(source, target):
    cells = np.random.default_rng(0).integers(0, 256, (GRID, GRID)).astype(np.uint8)
    y0, x0, y1, x1 = target
    edges = [source[1] * GRID, source[0] * GRID, source[3] * GRID, source[2] * GRID]
    whole = np.zeros((48, 48))
    whole[y0:y1, x0:x1] = Image.fromarray(f32(cells)).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, edges)
    (mask,) = placed_masks(cells[None], f32([source]), np.array([target]), 48, np)
    np.testing.assert_allclose(mask, squares(whole), atol=0.01)
