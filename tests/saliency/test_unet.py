import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvsa_jax.data import sources
from cvsa_jax.data.reading import load_image
from cvsa_jax.data.sources import procedural
from cvsa_jax.models.unet import UNet
from cvsa_jax.runtime.distributed import replicated, to_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.unet import step as unet_step
from cvsa_jax.saliency.unet.pairs import make_pairs, pair_batches
from cvsa_jax.saliency.unet.step import Geometry
from cvsa_jax.training import optim, photometric

SIZE = 32
NO_COLOUR = photometric.Photometric(0, 0, 0, 0, 0, 0, 0, 0)
STILL = Geometry((1.0, 1.0), 1.0, 0.0)


@pytest.fixture(scope="module")
def birds():
    spec = procedural.Spec(seed=0, classes=2, train_per_class=4, test_per_class=1, size=SIZE)
    return sources.load("procedural", "", spec)


@pytest.fixture(scope="module")
def eight(birds, tmp_path_factory):
    return make_pairs([(birds, birds.split("train"))], SIZE, tmp_path_factory.mktemp("pairs"))


pytestmark = pytest.mark.usefixtures("quick_compilation")


def augmented(images, masks, key: int, geometry: Geometry):
    out = jax.jit(unet_step.augment, static_argnums=(3, 4))(
        jnp.asarray(images), jnp.asarray(masks), jax.random.key(key), geometry, NO_COLOUR
    )
    return [np.asarray(a) for a in out]


@pytest.fixture
def without_colour(monkeypatch):
    """Colours take most of the time to compile, and have tests of their own."""
    monkeypatch.setattr(photometric, "apply", lambda images, drawn: images)


def setup(mesh, geometry=STILL, channels=(8, 16), rate=3e-3, steps=100):
    model = UNet(channels)
    optimizer = optim.make_optimizer(optim.learning_rate(rate, 256, 5, steps), optim.OptimizerSpec("adam", 0.0, 0.9))
    step = unet_step.make_unet_step(model, optimizer, mesh, geometry=geometry, colour=NO_COLOUR, seed=3)
    state = jax.jit(lambda key: unet_step.init_state(model, optimizer, key), out_shardings=replicated(mesh))(
        jax.random.key(0)
    )
    return model, state, step


def test_logits_at_every_scale_of_the_decoder():
    model = UNet((8, 16, 24))
    assert model.stride == 8
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 48, 48, 3)))
    assert [scale.shape for scale in logits] == [(2, 24, 24), (2, 12, 12), (2, 6, 6)]


def test_map_does_not_depend_on_the_other_images():
    model = UNet((8, 16))
    images = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
    logits, variables = jax.jit(model.init_with_output)(jax.random.key(0), images)
    for k in range(3):
        alone = jax.jit(model.apply)(variables, images[k : k + 1])
        for together, single in zip(logits, alone, strict=True):
            np.testing.assert_allclose(together[k], single[0], atol=1e-5)


def test_loss_against_float64():
    rng = np.random.default_rng(0)
    logits, masks = rng.normal(0, 3, (2, 5, 5)), rng.random((2, 5, 5))
    p = 1 / (1 + np.exp(-logits))
    expected = []
    for q, m in zip(p, masks, strict=True):
        both, either = (q * m).sum(), (q + m - q * m).sum()
        expected.append(-(m * np.log(q) + (1 - m) * np.log(1 - q)).mean() + 1 - (both + 1) / (either + 1))
    found = unet_step.saliency_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(masks, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_masks_are_averaged_over_blocks():
    masks = np.random.default_rng(0).random((2, 12, 12)).astype(np.float32)
    expected = [[[m[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean() for x in range(3)] for y in range(3)] for m in masks]
    np.testing.assert_allclose(unet_step.reduced(jnp.asarray(masks), 3), expected, rtol=1e-5)


def test_augmentation_without_strength_only_flips(eight):
    images, masks = (np.asarray(a) for a in eight)
    out_images, out_masks = augmented(images, masks, 0, STILL)
    flipped = 0
    for image, mask, out_image, out_mask in zip(images, masks, out_images, out_masks, strict=True):
        flip = np.abs(out_image[:, ::-1] * 255 - image).max() < 0.01
        flipped += flip
        side = slice(None, None, -1 if flip else 1)
        np.testing.assert_allclose(out_image[:, side] * 255, image, atol=0.01)
        np.testing.assert_allclose(out_mask[:, side] * 255, mask, atol=0.01)
    assert 0 < flipped < 8


@pytest.mark.parametrize("side", [(0.4, 0.6), (1.2, 1.4)], ids=["enlarged", "reduced"])
def test_masks_move_with_their_images(eight, side, without_colour):
    # Each image shows its own mask.
    masks = np.asarray(eight[1])
    shown = np.repeat(masks[..., None], 3, -1)
    geometry = Geometry(side, 1.1, 0.0)
    images, moved = augmented(shown, masks, 5, geometry)
    np.testing.assert_allclose(images[..., 1], moved, atol=1e-5)
    assert np.abs(moved * 255 - masks).mean() > 5
    # A window of half the side shows the object at four times its area, where it shows it whole; a large one, smaller.
    larger = moved.sum((1, 2)) > masks.sum((1, 2)) / 255
    assert larger.mean() > 0.7 if side[1] < 1 else not larger.any()


def test_windows_are_of_the_drawn_size_and_stay_inside(without_colour):
    # The image's values are its own coordinates.
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.uint8) * 4
    images = np.stack([np.stack([y, x, x], -1)] * 64)
    out, _ = augmented(images, images[..., 0], 2, Geometry((0.5, 0.5), 2.0, 0.0))
    values = out * 255 / 4
    heights = np.ptp(values[..., 0], axis=(1, 2)) + 1
    widths = np.ptp(values[..., 1], axis=(1, 2)) + 1
    # Interpolation takes up to one pixel at either end.
    np.testing.assert_allclose(np.sqrt(heights * widths), SIZE / 2, atol=1.2)
    ratio = widths / heights
    assert 0.45 < ratio.min() < 0.6
    assert 1.7 < ratio.max() < 2.2


def test_composites_show_both_objects(without_colour):
    images = np.zeros((4, SIZE, SIZE, 3), np.uint8)
    masks = np.zeros((4, SIZE, SIZE), np.uint8)
    for k in range(4):
        images[k] = 20 + 10 * k  # the background's grey
        rows = slice(8 * k, 8 * k + 8)
        images[k, rows] = 200 + 10 * k  # the object's
        masks[k, rows] = 255
    out, union = augmented(images, masks, 0, Geometry((1.0, 1.0), 1.0, 1.0))
    for k in range(4):
        behind = (k - 1) % 4
        expected = np.where(masks[k, :, 0] > 0, 200 + 10 * k, images[behind, :, 0, 0])
        np.testing.assert_allclose(out[k, :, 0, 0] * 255, expected, atol=0.01)
        np.testing.assert_array_equal(union[k, :, 0] > 0.5, (masks[k] | masks[behind])[:, 0] > 0)


def test_share_of_composites_is_their_probability(without_colour):
    masks = np.zeros((400, 8, 8), np.uint8)
    masks[::2, :4] = 255  # laid over an image without an object, or the other way round
    images = np.repeat(masks[..., None], 3, -1)
    _, union = augmented(images, masks, 0, Geometry((1.0, 1.0), 1.0, 0.3))
    # Only what had no object shows the change: the object of the image before it.
    changed = union[1::2].any((1, 2)).mean()
    assert changed == pytest.approx(0.3, abs=0.1)


@pytest.mark.slow
def test_steps_are_the_same_on_one_device_and_four(eight, mesh_of):
    batch = {"image": np.asarray(eight[0]), "mask": np.asarray(eight[1])}
    states = []
    for mesh in (mesh_of(1), mesh_of(4)):
        # Composites reach across devices.
        _, state, step = setup(mesh, Geometry((0.6, 1.2), 1.2, 0.7))
        for _ in range(2):
            state, metrics = step(state, to_mesh(batch, mesh))
        states.append((state.params, metrics))
    for one, four_devices in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, four_devices, atol=2e-5)


@pytest.mark.slow
def test_unet_overfits_eight_images(eight, mesh_of):
    mesh = mesh_of(1)
    steps = 400
    model, state, step = setup(mesh, channels=(16, 24, 32), rate=1e-2, steps=steps)
    images, masks = (np.asarray(a) for a in eight)
    for _ in range(steps):
        state, _ = step(state, to_mesh({"image": images, "mask": masks}, mesh))
    assert int(state.step) == steps
    normalized = photometric.normalize(photometric.to_float(jnp.asarray(images)))
    on = np.asarray(jax.jit(model.apply)({"params": state.params}, normalized)[0]) > 0
    true = masks.reshape(8, SIZE // 2, 2, SIZE // 2, 2).mean((2, 4)) > 127
    ious = (on & true).sum((1, 2)) / (on | true).sum((1, 2))
    # The outer cells of legs and beaks are a large part of such a small bird.
    assert ious.mean() > 0.93 and ious.min() > 0.8, ious


def test_pairs_are_the_squeezed_images_and_masks(birds, tmp_path):
    images, masks = make_pairs([(birds, np.array([3, 1]))], SIZE, tmp_path)
    # The pictures have this size already.
    np.testing.assert_array_equal(images, [load_image(birds, 3), load_image(birds, 1)])
    np.testing.assert_array_equal(masks, [birds.mask(3), birds.mask(1)])
    before = (tmp_path / "images.npy").stat().st_mtime_ns
    make_pairs([(birds, np.array([3, 1]))], SIZE, tmp_path)
    assert (tmp_path / "images.npy").stat().st_mtime_ns == before
    assert make_pairs([(birds, np.array([3, 1, 0]))], SIZE, tmp_path)[0].shape == (3, SIZE, SIZE, 3)
    assert make_pairs([(birds, np.array([3, 1]))], 16, tmp_path)[1].shape == (2, 16, 16)


def test_pairs_are_made_again_where_the_masks_have_changed(birds, tmp_path):
    make_pairs([(birds, np.arange(2))], SIZE, tmp_path)
    empty = dataclasses.replace(birds, mask=lambda i: np.zeros((SIZE, SIZE), np.uint8), annotation=lambda: "others")
    assert not make_pairs([(empty, np.arange(2))], SIZE, tmp_path)[1].any()


def test_pairs_need_masks(birds, tmp_path):
    with pytest.raises(UserError, match="procedural has no masks"):
        make_pairs([(dataclasses.replace(birds, mask=None), np.arange(2))], SIZE, tmp_path)


def numbered(n: int):
    """n pairs, each of which holds its own number."""
    return np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), np.arange(n, dtype=np.uint8).reshape(n, 1, 1)


def numbers(stream) -> np.ndarray:
    batches = list(stream)
    for batch in batches:
        np.testing.assert_array_equal(batch["image"].ravel(), batch["mask"].ravel())
    return np.stack([batch["image"].ravel() for batch in batches])


def test_epoch_holds_each_pair_once():
    drawn = numbers(pair_batches(numbered(10), 4, range(10), 0)).reshape(4, 10)
    for epoch in drawn:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in drawn}) == 4
    other = numbers(pair_batches(numbered(10), 4, range(10), 1)).reshape(4, 10)
    assert not np.array_equal(drawn, other)


def test_batches_are_a_function_of_the_step():
    def draw(steps):
        return numbers(pair_batches(numbered(10), 4, steps, 0))

    np.testing.assert_array_equal(draw(range(5, 8)), draw(range(8))[5:])
