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

# Red, green and blue apart: each is contiguous, and the arithmetic vectorises.
Planes = tuple[Float[Array, "b h w"], Float[Array, "b h w"], Float[Array, "b h w"]]
Number = float | Float[Array, " b"]


class Photometric(NamedTuple):
    """Strengths and probabilities for one of the two views (BYOL, table 6 of arXiv 2006.07733), or for each image."""

    brightness: Number
    contrast: Number
    saturation: Number
    hue: Number
    jitter_prob: Number
    grayscale_prob: Number
    blur_prob: Number
    solarize_prob: Number


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
    """Draws the parameters of each image from its own key; the fields of `spec` are numbers, or (b,) arrays."""

    def one(key: jax.Array, spec: Photometric) -> Parameters:
        u = jax.random.uniform(key, (13,))
        centred = 2 * u - 1
        return Parameters(
            jitter=u[0] < spec.jitter_prob,
            order=jnp.argsort(u[9:]),
            brightness=centred[1] * spec.brightness,
            contrast=1 + centred[2] * spec.contrast,
            saturation=1 + centred[3] * spec.saturation,
            hue=centred[4] * spec.hue,
            grayscale=u[5] < spec.grayscale_prob,
            blur=u[6] < spec.blur_prob,
            sigma=SIGMA_RANGE[0] + u[7] * (SIGMA_RANGE[1] - SIGMA_RANGE[0]),
            solarize=u[8] < spec.solarize_prob,
        )

    return jax.vmap(one)(keys, Photometric(*(jnp.broadcast_to(field, keys.shape) for field in spec)))


def adjust_brightness(x: Planes, delta: Float[Array, " b"]) -> Planes:
    return tuple(plane + _each(delta) for plane in x)


def adjust_contrast(x: Planes, factor: Float[Array, " b"]) -> Planes:
    means = [plane.mean((1, 2), keepdims=True) for plane in x]
    return tuple((plane - mean) * _each(factor) + mean for plane, mean in zip(x, means, strict=True))


def adjust_saturation(x: Planes, factor: Float[Array, " b"]) -> Planes:
    """Scales HSV's saturation, clipped at 1. With the value V and the hue fixed, each channel's distance from V is
    proportional to the saturation, so no conversion is needed."""
    value, low = _extremes(x)
    saturation = (value - low) / jnp.maximum(value, 1e-12)
    ratio = jnp.minimum(_each(factor), 1 / jnp.maximum(saturation, 1e-12))
    return tuple(value - (value - plane) * ratio for plane in x)


def adjust_hue(x: Planes, delta: Float[Array, " b"]) -> Planes:
    """Turns HSV's hue by `delta` (1 = full circle)."""
    red, green, blue = x
    value, low = _extremes(x)
    chroma = value - low
    inverse = 1 / jnp.where(chroma > 0, chroma, 1)
    # No comparison with `value`: compiled code may compute it a second time, rounded otherwise. The sextant is
    # continuous across ties.
    sextant = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) * inverse,
        jnp.where(green >= blue, (blue - red) * inverse + 2, (red - green) * inverse + 4),
    )

    def channel(offset: float) -> jax.Array:  # Smith 1978, branch-free form
        k = sextant + 6 * _each(delta) + offset
        k = k - 6 * jnp.floor(k / 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return channel(5.0), channel(3.0), channel(1.0)


def to_grayscale(x: Planes) -> Planes:
    gray = sum(weight * plane for weight, plane in zip(LUMA, x, strict=True))
    return gray, gray, gray


def gaussian_blur(x: Planes, sigma: Float[Array, " b"]) -> Planes:
    """Separable Gaussian of 2·(size // 20) + 1 taps (23 at 224 px), zeros beyond the border as in BYOL.

    Written as a product with a banded matrix from either side: one kernel an example makes a grouped convolution,
    which is slow, and a sum of shifted copies was several times slower on a CPU.
    """
    size = x[0].shape[1]
    radius = size // 20
    distance = jnp.abs(jnp.arange(size)[:, None] - jnp.arange(size))
    scale = 2 * sigma[:, None] ** 2
    weights = jnp.exp(-(distance**2) / scale[..., None]) * (distance <= radius)
    weights = weights / _each(jnp.exp(-(jnp.arange(-radius, radius + 1) ** 2) / scale).sum(-1))
    return tuple(jnp.einsum("bij,bjk,blk->bil", weights, plane, weights, precision="high") for plane in x)


def solarize(x: Planes) -> Planes:
    return tuple(jnp.where(plane < SOLARIZE_THRESHOLD, plane, 1 - plane) for plane in x)


def apply(images: Float[Array, "b h w 3"], p: Parameters) -> Float[Array, "b h w 3"]:
    """Applies drawn parameters to images in [0, 1]; the result is in [0, 1]."""
    x = (images[..., 0], images[..., 1], images[..., 2])
    jittered = x
    for slot in range(4):
        candidates = (
            adjust_brightness(jittered, p.brightness),
            adjust_contrast(jittered, p.contrast),
            adjust_saturation(jittered, p.saturation),
            adjust_hue(jittered, p.hue),
        )
        chosen = [_each(p.order[:, slot]) == k for k in range(4)]
        jittered = tuple(jnp.clip(jnp.select(chosen, planes), 0, 1) for planes in zip(*candidates, strict=True))
    x = _where(p.jitter, jittered, x)
    x = _where(p.grayscale, to_grayscale(x), x)
    x = _where(p.blur, gaussian_blur(x, p.sigma), x)
    x = _where(p.solarize, solarize(x), x)
    return jnp.clip(jnp.stack(x, -1), 0, 1)


def to_float(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """uint8 -> float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def normalize(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Subtracts ImageNet's mean and divides by its standard deviation, per channel."""
    return (x - jnp.array(MEAN)) / jnp.array(STD)


def augment(images: UInt8[Array, "b h w 3"], keys: Key[Array, " b"], spec: Photometric) -> Float[Array, "b h w 3"]:
    """uint8 views -> augmented, normalised network input."""
    return normalize(apply(to_float(images), draw(keys, spec)))


def _each(values: Shaped[Array, " b"]) -> Shaped[Array, "b 1 1"]:
    return values[:, None, None]


def _where(condition: Shaped[Array, " b"], x: Planes, y: Planes) -> Planes:
    return tuple(jnp.where(_each(condition), a, b) for a, b in zip(x, y, strict=True))


def _extremes(x: Planes) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"]]:
    return jnp.maximum(jnp.maximum(x[0], x[1]), x[2]), jnp.minimum(jnp.minimum(x[0], x[1]), x[2])
