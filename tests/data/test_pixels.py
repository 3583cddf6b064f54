"""What TensorFlow decodes and resizes, against Pillow."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from skimage import data

from cvsa_jax.data import decode, pixels

PHOTOGRAPH = Image.fromarray(data.chelsea())


def jpeg(orientation: int = 1, size: tuple[int, int] = (161, 119), mode: str = "RGB", **options) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    PHOTOGRAPH.resize(size).convert(mode).save(file, "JPEG", exif=exif, **options)
    return file.getvalue()


def read(encoded: bytes, turn: int, ratio: int) -> np.ndarray:
    def never(encoded: tf.Tensor) -> tf.Tensor:
        return tf.zeros([0, 0, 3], tf.uint8)

    return pixels.decoded(tf.constant(encoded), tf.constant(turn), tf.constant(ratio), never).numpy()


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "L"}, {"progressive": True}, {"subsampling": 0, "quality": 30}],
    ids=["usual", "grey", "progressive", "without subsampling"],
)
def test_decoded_jpegs_equal_those_of_pillow(options):
    encoded = jpeg(**options)
    for place, ratio in enumerate(pixels.RATIOS):
        picture = Image.open(io.BytesIO(encoded))
        picture.draft("RGB", (161 // ratio, 119 // ratio))
        found = read(encoded, 1, place)
        np.testing.assert_array_equal(found, np.asarray(picture.convert("RGB")))
        assert pixels.read_shapes(np.array([[119, 161]]), np.array([place])).tolist() == [list(found.shape[:2])]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_jpeg_is_applied(orientation):
    encoded = jpeg(orientation)
    expected = np.asarray(decode.opened(encoded).pixels())
    np.testing.assert_array_equal(read(encoded, orientation, 0), expected)
    assert (expected.shape[0] > expected.shape[1]) == (orientation >= 5)


def test_halvings_give_the_size_that_pillow_reads():
    rng = np.random.default_rng(0)
    for _ in range(60):
        size, least = rng.integers(1, 700, 2), rng.uniform(0.5, 700, 2)
        file = io.BytesIO()
        Image.new("RGB", tuple(size[::-1].tolist())).save(file, "JPEG")
        expected = decode.opened(file.getvalue()).pixels(pixels.FINER * least).size[::-1]
        (ratio,) = pixels.halvings(size[None], least[None])
        assert tuple(pixels.read_shapes(size[None], np.array([ratio]))[0].tolist()) == expected


def test_cut_out_resizes_a_box_as_pillow_does():
    image = np.asarray(PHOTOGRAPH.resize((140, 100)))
    rng = np.random.default_rng(0)
    for _ in range(100):
        low, high = np.sort(rng.uniform(-0.05, 1.05, (2, 2)), 0)
        box, (rows, cols) = np.concatenate([low, high]), rng.integers(1, 200, 2).tolist()
        edges = np.clip(box, 0, 1) * [100, 140, 100, 140]
        if (edges[2:] - edges[:2]).min() < 1:
            continue
        expected = PHOTOGRAPH.resize((140, 100)).resize((cols, rows), Image.Resampling.BILINEAR, edges[[1, 0, 3, 2]])
        found = pixels.cut_out(image, box.astype(np.float32), (rows, cols))
        # Pillow rounds after each axis.
        difference = np.abs(found.astype(int) - np.asarray(expected))
        assert difference.max() <= 1 and difference.mean() < 0.3


@pytest.mark.parametrize(
    "box",
    [(11, 11, 12, 12), (3, 0, 9, 12), (0, 2, 12, 5), (0, 0, 12, 12)],
    ids=["last pixel", "all columns", "all rows", "everything"],
)
def test_pasted_part_changes_only_its_box(box):
    rng = np.random.default_rng(0)
    behind, (y0, x0, y1, x1) = rng.integers(0, 256, (12, 12, 3), np.uint8), box
    part = rng.integers(0, 256, (y1 - y0, x1 - x0, 3), np.uint8)
    expected = behind.copy()
    expected[y0:y1, x0:x1] = part
    (frame,) = pixels.frames(np.array([box]), 12)
    np.testing.assert_array_equal(pixels.pasted(*map(tf.constant, (behind, part, frame)), 12), expected)
