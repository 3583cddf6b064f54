"""The device's views against the host's: each is the other's oracle."""

import dataclasses
import io
import os

import jax
import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy import ndimage
from support import small_sources

from cvsa_jax.data.index import Order
from cvsa_jax.data.pipeline import train_batches
from cvsa_jax.data.resample import with_masks
from cvsa_jax.data.sources import Source
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import device_views

N, STORED, SIZE, BATCH, SEED = 21, 64, 32, 16, 3
POOL = np.arange(1, N)
LABELS = np.arange(N, dtype=np.int32) % 4
SPEC = dataclasses.replace(
    small_sources.SWAP,
    size=SIZE,
    group=4,
    hole="cover",
    paste="bounded",
    paste_area=(0.2, 0.8),
    crop_area=(0.08, 1.0),
    where="device",
    stored=STORED,
)
SPECS = {
    "swap": SPEC,
    "crop": dataclasses.replace(SPEC, kind="random_resized_crop"),
    "old swap": dataclasses.replace(SPEC, hole="size", paste="stretch"),
    "windows": dataclasses.replace(SPEC, canvas_min=0.5, paste="keep_aspect"),
    "one view, at times": dataclasses.replace(SPEC, swap_prob=0.5, swapped_views=1, background="common"),
}


def smooth(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random pictures or maps, each over all levels."""
    waves = ndimage.gaussian_filter(rng.random((N, *shape)), (0, 4, 4, *[0] * (len(shape) - 2)))
    axes = tuple(range(1, waves.ndim))
    waves -= waves.min(axes, keepdims=True)
    return (waves / waves.max(axes, keepdims=True) * 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, quick_compilation):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cvsa_jax"


@pytest.fixture(scope="module")
def data() -> tuple[Source, np.ndarray]:
    """Squares of the stored size, so that both sides begin with the same pixels; and maps."""
    rng = np.random.default_rng(0)
    encoded = []
    for image in smooth(rng, STORED, STORED, 3):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        encoded.append(file.getvalue())
    names = tuple(f"{i}.png" for i in range(N))
    source = Source("memory", names, LABELS, tuple("abcd"), {}, encoded.__getitem__, None, lambda kind: "f")
    return source, smooth(rng, 64, 64)


def on_device(source, saliency, spec, mesh, order, labels=LABELS) -> list[dict[str, np.ndarray]]:
    resident = device_views.load(source, POOL, saliency, spec, mesh)
    batches = device_views.device_batches(resident, len(POOL), order, None if labels is None else labels[POOL])
    return [device_views.render_views(batch, spec, SEED, mesh) for batch in batches]


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("swap", 4),
        *(pytest.param(name, 4, marks=pytest.mark.slow) for name in SPECS if name != "swap"),
        pytest.param("swap", 1, marks=pytest.mark.slow),
    ],
)
def test_device_views_equal_host_views(data, mesh_of, name, devices):
    source, saliency = data
    spec, order = SPECS[name], Order(BATCH, range(2, 5), SEED)
    found = on_device(source, saliency, spec, mesh_of(devices), order)
    made = train_batches(source, POOL, saliency, spec, order, LABELS)
    expected = [with_masks(batch, SIZE, np) for batch in made]
    assert len(found) == len(expected) == 3
    odd = 0  # views
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key].dtype == value.dtype
            if key.startswith("view"):
                difference = np.abs(ours[key].astype(int) - value).reshape(BATCH, -1)
                equal = difference.max(1) <= 1
                assert difference[equal].mean(1).max() < 0.5
                odd += (~equal).sum()
                masks = (batch[key.replace("view", "mask")][equal].astype(int) for batch in (ours, theirs))
                np.testing.assert_allclose(*masks, atol=1)
            elif key == "residual":
                np.testing.assert_allclose(ours[key], value, atol=1e-6)
            elif not key.startswith("mask"):
                np.testing.assert_array_equal(ours[key], value)
    # Where a window is drawn, the last bit may move an edge that lies between two pixels.
    assert odd <= (1 if name == "windows" else 0)


@pytest.mark.parametrize(("name", "size"), [pytest.param("swap", 224, marks=pytest.mark.slow), ("crop", 48)])
def test_device_views_of_photographs_match_host_views(mesh_of, size, name):
    photograph, rng, files = Image.fromarray(skimage.data.chelsea()), np.random.default_rng(0), []
    for _ in range(N):
        corner, side = rng.uniform(0, 0.5, 2) * photograph.size, rng.uniform(0.4, 0.5)
        box = (*corner, *(corner + side * np.array(photograph.size)))
        file = io.BytesIO()
        photograph.resize((689, 500), Image.Resampling.BICUBIC, box).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    source, saliency = small_sources.memory_source(files), smooth(rng, 64, 64)
    spec, order = dataclasses.replace(SPECS[name], size=size, stored=448), Order(8, range(1), SEED)
    (found,) = on_device(source, saliency, spec, mesh_of(1), order, None)
    (expected,) = train_batches(source, POOL, saliency, spec, order)
    for view in ("view1", "view2"):
        assert np.abs(found[view].astype(int) - expected[view]).mean() < 1


def test_crops_do_not_depend_on_maps(data, mesh_of):
    source, saliency = data
    order, spec = Order(BATCH, range(1), SEED), SPECS["crop"]
    (with_maps,), (without,) = (on_device(source, maps, spec, mesh_of(2), order) for maps in (saliency, None))
    assert with_maps.keys() - without.keys() == {"mask1", "mask2"}
    np.testing.assert_array_equal(with_maps["view1"], without["view1"])


def test_crops_of_wide_images_keep_their_original_aspect(data, mesh_of):
    # Red tells the column, green the row: a crop shows where it lies in the image before it was squeezed.
    wide = np.zeros((40, 160, 3), np.uint8)
    wide[..., 0], wide[..., 1] = np.linspace(0, 255, 160)[None], np.linspace(0, 255, 40)[:, None]
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "PNG")
    source = dataclasses.replace(data[0], read=lambda i: file.getvalue(), identify=lambda kind: "wide")
    spec = dataclasses.replace(SPECS["crop"], crop_area=(0.05, 0.15))
    (batch,) = on_device(source, None, spec, mesh_of(1), Order(BATCH, range(1), SEED))
    for view in (*batch["view1"], *batch["view2"]):
        across, down = (
            np.ptp(view[..., channel].astype(float).mean(axis)[[3, -4]]) / (SIZE - 7) * SIZE
            for channel, axis in ((0, 0), (1, 1))
        )
        width, height = across / 255 * 160, down / 255 * 40
        assert 0.7 < width / height < 1.42
        assert 0.04 < across * down / 255**2 < 0.17


def test_decoded_images_are_cached_by_selection(data, mesh_of, cache):
    source, saliency = data
    first = device_views.load(source, POOL, saliency, SPEC, mesh_of(1))
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    unread = dataclasses.replace(source, read=lambda i: pytest.fail("read again"))
    again = device_views.load(unread, POOL, saliency, SPEC, mesh_of(4))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b)[: len(POOL)])
    # Other images of the same set are not taken for these, nor what a killed command left.
    device_views.load(source, POOL[::-1], saliency, SPEC, mesh_of(1))
    (folder / "identity.json").unlink(missing_ok=True)
    device_views.load(source, POOL, saliency, SPEC, mesh_of(1))
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2 and folder.is_dir()


def test_set_larger_than_free_memory_is_refused(data, mesh_of, monkeypatch):
    monkeypatch.setattr(device_views, "available_memory", lambda: 81_920)
    needed = 10 * (3 * STORED**2 + 64 * 65)
    message = rf"where=device: .* need {needed:,} bytes on each device, where 40,960 are free.*config.views.stored"
    with pytest.raises(UserError, match=message):
        device_views.load(*(data[0], POOL, data[1]), SPEC, mesh_of(2))


def test_undecodable_image_is_named(data, mesh_of, cache):
    source = dataclasses.replace(
        data[0], read=lambda i: b"no image" if i == 5 else data[0].read(i), identify=lambda kind: "b"
    )
    with pytest.raises(UserError, match=r"1 of 21 images of memory cannot be decoded: 5\.png"):
        device_views.load(source, POOL, data[1], SPEC, mesh_of(1))
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_resident_images_are_step_arguments_not_constants(mesh_of, data):
    # A set that is a constant of the program would be folded into it, for minutes.
    resident = device_views.load(data[0], POOL, data[1], SPEC, mesh_of(1))
    (batch,) = device_views.device_batches(resident, len(POOL), Order(BATCH, range(1), SEED), None)
    assert isinstance(batch["resident_images"], jax.Array)
    assert {key for key in batch if not key.startswith("resident_")} == {"row", "position"}


def test_available_memory_includes_the_page_cache():
    free = device_views.available_memory()
    if free is None:
        pytest.skip("this system has no /proc/meminfo")
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 0.5 < free <= whole
