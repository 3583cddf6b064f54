import numpy as np
import pytest
import tensorflow as tf
from helpers import squares

from cvsa_jax.data import resample

GRID = 64


def f32(x) -> tf.Tensor:
    return tf.constant(x, tf.float32)


def test_place_whole_image_at_its_own_size_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    placed = resample.place(tf.constant(image), f32([0, 0, 1, 1]), [32, 32])
    np.testing.assert_allclose(placed.numpy(), image, atol=1e-3)


def test_place_at_scale_one_is_an_exact_crop():
    image = np.random.default_rng(0).integers(0, 256, (50, 80, 3)).astype(np.uint8)
    source = np.array([10 / 50, 16 / 80, 30 / 50, 46 / 80])
    placed = resample.place(tf.constant(image), f32(source), [20, 30]).numpy()
    np.testing.assert_allclose(placed, image[10:30, 16:46], atol=1e-2)


@pytest.mark.parametrize("height, width", [(90, 150), (20, 33), (64, 21)])
def test_place_of_the_whole_image_is_an_antialiased_resize(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    placed = resample.place(tf.constant(image), f32([0, 0, 1, 1]), [40, 40])
    resized = tf.image.resize(image, (40, 40), antialias=True)
    np.testing.assert_allclose(placed.numpy(), resized.numpy(), atol=0.05)


@pytest.mark.parametrize(
    ("source", "target"),
    [([0, 0, 1, 1], [0, 0, 48, 48]), ([0.2, 0.1, 0.9, 0.4], [3, 10, 30, 41]), ([0.4, 0.5, 0.6, 0.55], [1, 0, 48, 7])],
)
def test_placed_mask_is_the_placed_map_averaged_over_squares(source, target):
    cells = np.random.default_rng(0).integers(0, 256, (GRID, GRID)).astype(np.uint8)
    y0, x0, y1, x1 = target
    whole = np.zeros((48, 48))
    whole[y0:y1, x0:x1] = resample.place(tf.constant(cells)[..., None], f32(source), [y1 - y0, x1 - x0]).numpy()[..., 0]
    mask = resample.placed_mask(tf.constant(cells), f32(source), tf.constant(target), 48).numpy()
    np.testing.assert_allclose(mask, squares(whole), atol=0.01)
