"""Training images kept decoded on disk: views cut out of them, and what is refused."""

import dataclasses
import io
import shutil
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image
from support import small_sources

from cvsa_jax.data.index import Order
from cvsa_jax.data.pipeline import crop_batches, train_batches
from cvsa_jax.data.resample import PLACES
from cvsa_jax.data.sources import Source
from cvsa_jax.data.stored import Squares
from cvsa_jax.runtime.errors import UserError

N, SIDE, SIZE, BATCH, SEED = 17, 64, 32, 8, 3
POOL = np.arange(N - 1, 0, -1)  # in an order of its own, and without image 0
LABELS = np.arange(N, dtype=np.int32) % 4
SWAP = dataclasses.replace(small_sources.SWAP, size=SIZE, group=4, hole="cover", paste="bounded")
ORDER = Order(BATCH, range(1, 5), SEED)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cvsa_jax"


def images_of(height: int, width: int) -> Source:
    """Smooth pictures, each of its own colours."""
    down, across = np.linspace(0, 3, height)[:, None], np.linspace(0, 3, width)
    waves = [[np.sin(k * down + c) + np.cos(across * (c + 1) - k) for c in range(3)] for k in range(N)]
    encoded = []
    for image in np.moveaxis(np.array(waves), 1, -1):
        file = io.BytesIO()
        Image.fromarray(np.uint8(image * 63 + 127)).save(file, "PNG")
        encoded.append(file.getvalue())
    names = tuple(f"{i}.png" for i in range(N))
    return Source(
        "memory", names, LABELS, tuple("abcd"), {}, encoded.__getitem__, None, lambda kind: f"{height}x{width}"
    )


def maps() -> np.ndarray:
    grid, rng = np.linspace(-1, 1, 64), np.random.default_rng(0)
    places = rng.uniform(-0.5, 0.5, (N, 2, 1, 1))
    return np.uint8(255 * np.exp(-((grid[:, None] - places[:, 0]) ** 2 + (grid - places[:, 1]) ** 2) / 0.1))


def unread(source: Source) -> Source:
    return dataclasses.replace(source, read=lambda i: pytest.fail("a file was read"))


def test_squares_of_the_images_size_give_the_same_batches():
    source, saliency = images_of(SIDE, SIDE), maps()
    squares = Squares(source, POOL, SIDE)
    expected = list(train_batches(source, POOL, saliency, SWAP, ORDER, LABELS))
    found = list(train_batches(unread(source), POOL, saliency, SWAP, ORDER, LABELS, squares))
    expected += list(crop_batches(source, POOL, ORDER, area=(0.2, 1.0), size=SIZE))
    found += list(crop_batches(unread(source), POOL, ORDER, area=(0.2, 1.0), size=SIZE, squares=squares))
    assert len(found) == len(expected) == 8
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            np.testing.assert_array_equal(ours[key], value)


def test_squares_of_other_shapes_are_cut_at_the_same_places():
    source, saliency = images_of(96, 160), maps()
    squares = Squares(source, POOL, 160)
    expected = list(train_batches(source, POOL, saliency, SWAP, ORDER))
    found = list(train_batches(unread(source), POOL, saliency, SWAP, ORDER, squares=squares))
    for ours, theirs in zip(found, expected, strict=True):
        for key in (*PLACES, "residual", "position"):
            np.testing.assert_array_equal(ours[key], theirs[key])
        for key in ("view1", "view2"):
            difference = np.abs(ours[key].astype(int) - theirs[key])
            assert difference.mean() < 1 and difference.max() < 24  # at the edge of a box


def test_image_that_is_not_stored_is_an_error():
    with pytest.raises(IndexError, match="image 0 is none"):
        Squares(images_of(SIDE, SIDE), POOL, SIDE).of(np.array([3, 0]))


def test_small_disk_is_refused_before_an_image_is_read(monkeypatch, cache):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 9999))
    needed = len(POOL) * 3 * SIDE**2
    with pytest.raises(UserError, match=rf"as squares of 64 px, need {needed:,} bytes, and 9,999 are free"):
        Squares(unread(images_of(SIDE, SIDE)), POOL, SIDE)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_incomplete_cache_is_made_again(cache):
    source = images_of(SIDE, SIDE)
    before = Squares(source, POOL, SIDE).images[:].copy()
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    (folder / "images.npy").unlink()
    # What a killed command had begun goes as well.
    (folder.with_name(f"{folder.name}-killed")).mkdir()
    np.testing.assert_array_equal(Squares(source, POOL, SIDE).images, before)
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]
