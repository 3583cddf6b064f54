"""BYOL's photometric augmentation on the device, each image of a batch with its own random parameters.

Formulas and order: deepmind-research/byol `utils/augmentations.py` (additive brightness, contrast about the mean of
each channel, saturation and hue in HSV, the four in random order, clipped after each; grayscale; Gaussian blur with
zero padding; solarize). Images are float32 in [0, 1] until `normalize`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped, UInt8

# Mean and standard deviation of ImageNet's RGB values in [0, 1], as used by torchvision and BYOL.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.5870, 0.1140)
SIGMA_RANGE = (0.1, 2.0)  # of the blur, in pixels of the view
SOLARIZE_THRESHOLD = 0.5


class Photometric(NamedTuple):
    """Strengths and probabilities for one of the two views (BYOL, table 6 of arXiv 2006.07733)."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    jitter_prob: float
    grayscale_prob: float
    blur_prob: float
    solarize_prob: float


class Parameters(NamedTuple):
    """What was drawn for each image of a batch; `order` is a permutation of the four jitter operations."""

    jitter: Shaped[Array, " b"]
    order: Int[Array, "b 4"]
    brightness: Float[Array, " b"]
    contrast: Float[Array, " b"]
    saturation: Float[Array, " b"]
    hue: Float[Array, " b"]
    grayscale: Shaped[Array, " b"]
    blur: Shaped[Array, " b"]
    sigma: Float[Array, " b"]
    solarize: Shaped[Array, " b"]


def draw(keys: Key[Array, " b"], spec: Photometric) -> Parameters:
    """Draws the parameters of each image from its own key."""

    def one(key: jax.Array) -> Parameters:
        order_key, uniform_key = jax.random.split(key)
        u = jax.random.uniform(uniform_key, (9,))
        centred = 2 * u - 1
        return Parameters(
            jitter=u[0] < spec.jitter_prob,
            order=jax.random.permutation(order_key, 4),
            brightness=centred[1] * spec.brightness,
            contrast=1 + centred[2] * spec.contrast,
            saturation=1 + centred[3] * spec.saturation,
            hue=centred[4] * spec.hue,
            grayscale=u[5] < spec.grayscale_prob,
            blur=u[6] < spec.blur_prob,
            sigma=SIGMA_RANGE[0] + u[7] * (SIGMA_RANGE[1] - SIGMA_RANGE[0]),
            solarize=u[8] < spec.solarize_prob,
        )

    return jax.vmap(one)(keys)


def adjust_brightness(x: Float[Array, "b h w 3"], delta: Float[Array, " b"]) -> Float[Array, "b h w 3"]:
    return x + _each(delta)


def adjust_contrast(x: Float[Array, "b h w 3"], factor: Float[Array, " b"]) -> Float[Array, "b h w 3"]:
    mean = x.mean((1, 2), keepdims=True)
    return (x - mean) * _each(factor) + mean


def adjust_saturation(x: Float[Array, "b h w 3"], factor: Float[Array, " b"]) -> Float[Array, "b h w 3"]:
    """Scales HSV's saturation, clipped at 1. With the value V and the hue fixed, each channel's distance from V is
    proportional to the saturation, so no conversion is needed."""
    value = x.max(-1, keepdims=True)
    saturation = (value - x.min(-1, keepdims=True)) / jnp.maximum(value, 1e-12)
    ratio = jnp.minimum(_each(factor), 1 / jnp.maximum(saturation, 1e-12))
    return value - (value - x) * ratio


def adjust_hue(x: Float[Array, "b h w 3"], delta: Float[Array, " b"]) -> Float[Array, "b h w 3"]:
    """Turns HSV's hue by `delta` (1 = full circle)."""
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    value, low = x.max(-1), x.min(-1)
    chroma = value - low
    safe = jnp.where(chroma > 0, chroma, 1)
    sextant = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    turned = sextant[..., None] + 6 * _each(delta) + jnp.array([5.0, 3.0, 1.0])  # Smith 1978, branch-free form
    k = turned - 6 * jnp.floor(turned / 6)
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def to_grayscale(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    gray = x[..., :1] * LUMA[0] + x[..., 1:2] * LUMA[1] + x[..., 2:] * LUMA[2]
    return jnp.broadcast_to(gray, x.shape)


def gaussian_blur(x: Float[Array, "b h w 3"], sigma: Float[Array, " b"]) -> Float[Array, "b h w 3"]:
    """Separable Gaussian of 2·(size // 20) + 1 taps (23 at 224 px), zeros beyond the border as in BYOL. Written as a
    sum of shifted copies: a convolution with one kernel an example is grouped and slow on every backend."""
    size = x.shape[1]
    radius = size // 20
    taps = jnp.arange(-radius, radius + 1)
    weights = jnp.exp(-(taps**2) / (2 * sigma[:, None] ** 2))
    weights = weights / weights.sum(-1, keepdims=True)
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (radius, radius)
        padded = jnp.pad(x, pad)
        shifted = (jax.lax.slice_in_dim(padded, t, t + size, axis=axis) for t in range(2 * radius + 1))
        x = sum(_each(weights[:, t]) * part for t, part in enumerate(shifted))
    return x


def solarize(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    return jnp.where(x < SOLARIZE_THRESHOLD, x, 1 - x)


def apply(x: Float[Array, "b h w 3"], p: Parameters) -> Float[Array, "b h w 3"]:
    """Applies drawn parameters to images in [0, 1]; the result is in [0, 1]."""
    jittered = x
    for slot in range(4):
        candidates = (
            adjust_brightness(jittered, p.brightness),
            adjust_contrast(jittered, p.contrast),
            adjust_saturation(jittered, p.saturation),
            adjust_hue(jittered, p.hue),
        )
        which = _each(p.order[:, slot])
        jittered = jnp.select([which == k for k in range(4)], candidates)
        jittered = jnp.clip(jittered, 0, 1)
    x = jnp.where(_each(p.jitter), jittered, x)
    x = jnp.where(_each(p.grayscale), to_grayscale(x), x)
    x = jnp.where(_each(p.blur), gaussian_blur(x, p.sigma), x)
    x = jnp.where(_each(p.solarize), solarize(x), x)
    return jnp.clip(x, 0, 1)


def to_float(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """uint8 -> float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def normalize(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Subtracts ImageNet's mean and divides by its standard deviation, per channel."""
    return (x - jnp.array(MEAN)) / jnp.array(STD)


def augment(images: UInt8[Array, "b h w 3"], keys: Key[Array, " b"], spec: Photometric) -> Float[Array, "b h w 3"]:
    """uint8 views -> augmented, normalised network input."""
    return normalize(apply(to_float(images), draw(keys, spec)))


def _each(values: Shaped[Array, " b"]) -> Shaped[Array, "b 1 1 1"]:
    return values[:, None, None, None]
