import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from scipy.ndimage import convolve1d

from cvsa_jax.training import photometric
from cvsa_jax.training.photometric import Parameters, Photometric

tf.config.set_visible_devices([], "GPU")

SPEC = Photometric(
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    jitter_prob=0.8,
    grayscale_prob=0.2,
    blur_prob=0.5,
    solarize_prob=0.3,
)
# The specification is traced like the images, so that one compilation serves all specifications.
augment, draw, apply = jax.jit(photometric.augment), jax.jit(photometric.draw), jax.jit(photometric.apply)


def random_images(count: int, size: int = 12, seed: int = 0) -> np.ndarray:
    """Images in [0, 1] whose first rows hold the special colours: black, white, grey, pure and tied channels."""
    x = np.random.default_rng(seed).uniform(size=(count, size, size, 3)).astype(np.float32)
    corners = np.array(list(itertools.product((0.0, 0.5, 1.0), repeat=3)), np.float32)
    flat = x.reshape(count, -1, 3)
    flat[:, : len(corners)] = corners
    return flat.reshape(x.shape)


def random_bytes(count: int, size: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8))


def parameters(count: int, **given) -> Parameters:
    """Parameters that change nothing, but for those given."""
    off, zero, one = np.zeros(count, bool), np.zeros(count, np.float32), np.ones(count, np.float32)
    defaults = {
        "jitter": off,
        "order": np.tile(np.arange(4), (count, 1)),
        "brightness": zero,
        "contrast": one,
        "saturation": one,
        "hue": zero,
        "grayscale": off,
        "blur": off,
        "sigma": one,
        "solarize": off,
    }
    return Parameters(**{name: jnp.asarray(value) for name, value in (defaults | given).items()})


def tf_each(function, x: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.stack([function(image, float(value)).numpy() for image, value in zip(x, values, strict=True)])


def on_images(function, x: np.ndarray, *arguments) -> np.ndarray:
    """Calls an operation on colour planes with images."""
    planes = jax.jit(function)(tuple(jnp.asarray(x[..., channel]) for channel in range(3)), *arguments)
    return np.stack(planes, -1)


def reference_blur(x: np.ndarray, sigmas: np.ndarray, radius: int) -> np.ndarray:
    out = []
    for image, sigma in zip(x.astype(np.float64), sigmas, strict=True):
        kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * float(sigma) ** 2))
        kernel /= kernel.sum()
        for axis in (0, 1):
            image = convolve1d(image, kernel, axis=axis, mode="constant")
        out.append(image)
    return np.stack(out)


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (photometric.adjust_brightness, tf.image.adjust_brightness, (-0.8, -0.3, 0.0, 0.1, 0.4, 0.9)),
        (photometric.adjust_contrast, tf.image.adjust_contrast, (0.0, 0.5, 0.9, 1.0, 1.4, 2.5)),
        (photometric.adjust_saturation, tf.image.adjust_saturation, (0.0, 0.5, 0.9, 1.0, 1.4, 4.0)),
        (photometric.adjust_hue, tf.image.adjust_hue, (-0.7, -0.1, 0.0, 0.1, 0.33, 0.9)),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_jitter_operation_equals_tensorflow(ours, theirs, values):
    x, values = random_images(len(values)), np.array(values, np.float32)
    np.testing.assert_allclose(on_images(ours, x, jnp.asarray(values)), tf_each(theirs, x, values), atol=2e-6)


def test_grayscale_is_the_luma_in_all_channels():
    x = random_images(2)
    luma = 0.2989 * x[..., 0] + 0.5870 * x[..., 1] + 0.1140 * x[..., 2]
    np.testing.assert_allclose(on_images(photometric.to_grayscale, x), luma[..., None].repeat(3, -1), atol=1e-6)


def test_blur_is_a_zero_padded_separable_gaussian():
    x, sigmas = random_images(4, size=48), np.array([0.1, 0.5, 1.0, 2.0], np.float32)
    blurred = on_images(photometric.gaussian_blur, x, jnp.asarray(sigmas))
    np.testing.assert_allclose(blurred, reference_blur(x, sigmas, radius=2), atol=2e-6)


def test_blur_has_23_taps_at_224_pixels():
    x = np.zeros((1, 224, 224, 3), np.float32)
    x[0, 100, 120] = 1
    blurred = on_images(photometric.gaussian_blur, x, jnp.array([2.0]))[0, ..., 0]
    rows, columns = np.nonzero(blurred.sum(1))[0], np.nonzero(blurred.sum(0))[0]
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (89, 111, 109, 131)


def test_solarize_inverts_values_from_one_half():
    x = np.array([0.0, 0.25, 0.499, 0.5, 0.75, 1.0], np.float32)[None, :, None, None].repeat(3, -1)
    expected = np.array([0, 0.25, 0.499, 0.5, 0.25, 0])[:, None].repeat(3, -1)
    np.testing.assert_allclose(on_images(photometric.solarize, x)[0, :, 0], expected, atol=1e-7)


def test_jitter_follows_each_images_order_and_clips_after_each_operation():
    orders = np.array(list(itertools.permutations(range(4))))
    count = len(orders)
    x = random_images(1).repeat(count, 0)
    # Strong enough that a missing clip or another order shows.
    strengths = {"brightness": 0.5, "contrast": 1.8, "saturation": 1.6, "hue": 0.2}
    drawn = {name: np.full(count, value, np.float32) for name, value in strengths.items()}
    got = np.asarray(apply(jnp.asarray(x), parameters(count, jitter=np.ones(count, bool), order=orders, **drawn)))

    for result, image, order in zip(got, x, orders, strict=True):
        for operation in order:
            name = tuple(strengths)[operation]
            image = np.clip(getattr(tf.image, f"adjust_{name}")(image, strengths[name]).numpy(), 0, 1)
        np.testing.assert_allclose(result, image, atol=5e-6)
    # Saturation and hue commute: of the 24 orders, the 12 with the two side by side give 6 results, the others 12.
    distances = np.abs(got[:, None] - got[None]).max((2, 3, 4))
    assert np.all((distances > 0.01).sum(1) >= 22)


def test_grayscale_blur_and_solarize_follow_jitter_in_order():
    x, on, sigmas = random_images(2, size=24), np.ones(2, bool), np.array([0.7, 1.5], np.float32)
    got = apply(
        jnp.asarray(x),
        parameters(
            2, jitter=on, brightness=np.full(2, 0.2, np.float32), grayscale=on, blur=on, sigma=sigmas, solarize=on
        ),
    )
    expected = np.clip(x + 0.2, 0, 1) @ np.array([0.2989, 0.5870, 0.1140])
    expected = reference_blur(expected[..., None].repeat(3, -1), sigmas, radius=1)
    expected = np.where(expected < 0.5, expected, 1 - expected)
    np.testing.assert_allclose(got, expected, atol=5e-6)


@pytest.mark.parametrize("flag", ["jitter", "grayscale", "blur", "solarize"])
def test_flag_changes_only_flagged_images(flag):
    x = random_images(4, size=24)
    on = np.array([True, False, False, True])
    got = np.asarray(apply(jnp.asarray(x), parameters(4, brightness=np.full(4, 0.3, np.float32), **{flag: on})))
    np.testing.assert_array_equal(got[~on], x[~on])
    assert np.all(np.abs(got[on] - x[on]).max((1, 2, 3)) > 0.1)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, False), (1.0, True)], ids=["never", "always"])
def test_probability_0_is_never_and_1_is_always(probability, expected):
    spec = SPEC._replace(**{f"{name}_prob": probability for name in ("jitter", "grayscale", "blur", "solarize")})
    drawn = draw(jax.random.split(jax.random.key(1), 2000), spec)
    for flag in (drawn.jitter, drawn.grayscale, drawn.blur, drawn.solarize):
        assert np.all(np.asarray(flag) == expected)


def test_zero_probabilities_only_normalise_views():
    spec = SPEC._replace(jitter_prob=0.0, grayscale_prob=0.0, blur_prob=0.0, solarize_prob=0.0)
    images = random_bytes(16, 24)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    got = augment(images, jax.random.split(jax.random.key(0), 16), spec)
    np.testing.assert_allclose(got, (np.asarray(images) / 255 - mean) / std, atol=5e-6)


def test_drawn_parameters_have_specified_ranges_and_frequencies():
    count = 2000
    keys = jax.random.split(jax.random.key(2), count)
    drawn = jax.tree.map(np.asarray, draw(keys, SPEC))
    ranges = {
        "brightness": (-0.4, 0.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
        "sigma": (0.1, 2.0),
    }
    for name, (low, high) in ranges.items():
        share = (getattr(drawn, name) - low) / (high - low)
        assert -1e-6 <= share.min() < 0.01 and 0.99 < share.max() <= 1 + 1e-6, name
        # Uniform: mean 1/2 and standard deviation 1/sqrt(12), whose errors here are 0.006 and 0.003.
        assert abs(share.mean() - 0.5) < 0.03 and abs(share.std() - 12**-0.5) < 0.015, name
    for name in ("jitter", "grayscale", "blur", "solarize"):
        # The standard error is at most 0.011.
        assert abs(getattr(drawn, name).mean() - getattr(SPEC, f"{name}_prob")) < 0.045, name
    np.testing.assert_array_equal(np.sort(drawn.order, -1), np.tile(np.arange(4), (count, 1)))
    for slot in range(4):
        np.testing.assert_allclose(np.bincount(drawn.order[:, slot], minlength=4) / count, 0.25, atol=0.045)
    # Parameters are drawn independently of each other; the standard error of a correlation is 0.022.
    columns = [np.asarray(column, np.float64) for name, column in drawn._asdict().items() if name != "order"]
    correlations = np.corrcoef([*columns, *drawn.order[:, :3].T.astype(np.float64)[:1]])
    assert np.abs(correlations - np.eye(len(correlations))).max() < 0.1


def test_specification_may_differ_per_image():
    keys, late = jax.random.split(jax.random.key(7), 2000), jnp.arange(2000) >= 1000
    spec = SPEC._replace(hue=jnp.where(late, 0.1, 0.0), blur_prob=jnp.where(late, 1.0, 0.0))
    drawn, plain = (jax.tree.map(np.asarray, draw(keys, one)) for one in (spec, SPEC))
    late = np.asarray(late)
    np.testing.assert_array_equal(drawn.blur, late)
    np.testing.assert_allclose(drawn.hue, np.where(late, plain.hue, 0), atol=1e-7)
    np.testing.assert_array_equal(drawn.brightness, plain.brightness)


def test_augmentation_of_an_image_depends_only_on_its_own_key():
    images, keys = random_bytes(16, 24), jax.random.split(jax.random.key(3), 16)
    plain = np.asarray(augment(images, keys, SPEC))
    order = np.random.default_rng(4).permutation(16)
    np.testing.assert_allclose(augment(images[order], keys[order], SPEC), plain[order], atol=1e-5)

    others = jnp.arange(16) >= 5
    new_images = jnp.where(others[:, None, None, None], random_bytes(16, 24, seed=5), images)
    new_keys = jnp.where(others, jax.random.split(jax.random.key(6), 16), keys)
    changed = np.asarray(augment(new_images, new_keys, SPEC))
    np.testing.assert_allclose(changed[:5], plain[:5], atol=1e-5)
    assert np.all(np.abs(changed[5:] - plain[5:]).max((1, 2, 3)) > 0.1)


def test_fused_augmentation_equals_its_parts():
    # Fused, a value may be computed twice with different rounding: an equality of floats that decides over a colour
    # (which channel is the greatest) then goes wrong in some images.
    spec = SPEC._replace(jitter_prob=1.0)
    images, keys = random_bytes(16, 24), jax.random.split(jax.random.key(0), 16)
    parts = photometric.normalize(apply(photometric.to_float(images), draw(keys, spec)))
    np.testing.assert_allclose(augment(images, keys, spec), parts, atol=5e-5)
