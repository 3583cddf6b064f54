"""The training step of the U-Net detector: augmentation on the device, loss, update."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key, UInt8

from cvsa_jax.models.unet import UNet
from cvsa_jax.runtime import checks
from cvsa_jax.runtime.distributed import AXIS, replicated
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import photometric

MARGIN = 0.25  # of the image's side: what is repeated beyond each border, for windows larger than the image
MAX_SIDE = 1 + 2 * MARGIN


@flax.struct.dataclass
class UNetState:
    """Everything that a step changes; `step` counts the steps done."""

    step: Any  # () int32; abstract where the state is a pattern to restore into
    params: dict
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Geometry:
    """`config.augment`: ranges of the random window, and composites.

    Attributes:
        side: the window's side as a fraction of the image's; above 1 zooms out, over repeated border pixels.
        aspect: by which factor it may be wider than high or higher than wide; side · √aspect at most MAX_SIDE.
        composite_prob: share of images whose object is laid over another image of the batch.
    """

    side: tuple[float, ...]
    aspect: float
    composite_prob: float

    def __post_init__(self):
        checks.probability("config.augment.composite_prob", self.composite_prob)
        if len(self.side) != 2:
            raise UserError(f"config.augment.side={self.side} is not a range of two numbers")
        low, high = self.side
        if self.aspect < 1 or not 0 < low <= high <= MAX_SIDE / self.aspect**0.5:
            raise UserError(
                f"config.augment.side={(low, high)} must be a range within (0, {MAX_SIDE:g} / √aspect], with "
                f"config.augment.aspect={self.aspect:g} at least 1"
            )


def make_unet_step(
    model: UNet,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    geometry: Geometry,
    colour: photometric.Photometric,
    seed: int,
) -> Callable[[UNetState, dict[str, jax.Array]], tuple[UNetState, dict[str, jax.Array]]]:
    """One step of the U-Net on a batch of `image` (B, S, S, 3) and `mask` (B, S, S), both uint8.

    The loss is the mean over the batch of the sum over the scales of binary cross-entropy and soft IoU. What is drawn
    depends on (seed, step) alone. The compiler splits the batch over the mesh, so that an image can be laid over one
    of another device, and the result does not depend on their number. The state's buffers are donated.
    """

    def loss_fn(params, images, masks):
        logits = model.apply({"params": params}, photometric.normalize(images))
        return sum(saliency_loss(scale, reduced(masks, scale.shape[1])).mean() for scale in logits)

    def step_fn(state: UNetState, batch: dict[str, jax.Array]) -> tuple[UNetState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        images, masks = augment(batch["image"], batch["mask"], key, geometry, colour)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, images, masks)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return UNetState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    rows, same = NamedSharding(mesh, PartitionSpec(AXIS)), replicated(mesh)
    return jax.jit(step_fn, in_shardings=(same, rows), out_shardings=same, donate_argnums=0)


def init_state(model: UNet, optimizer: optax.GradientTransformation, key: jax.Array) -> UNetState:
    """Random parameters, step 0."""
    params = model.init(key, jnp.zeros((1, model.stride, model.stride, 3)))["params"]
    return UNetState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def saliency_loss(logits: Float[Array, "b h w"], masks: Float[Array, "b h w"]) -> Float[Array, " b"]:
    """Binary cross-entropy per pixel plus 1 − soft IoU per image, Σ p·m / Σ (p + m − p·m) (Máttyus et al. 2017)."""
    cross_entropy = optax.sigmoid_binary_cross_entropy(logits, masks).mean((1, 2))
    probability = jax.nn.sigmoid(logits)
    both = (probability * masks).sum((1, 2))
    either = (probability + masks).sum((1, 2)) - both
    return cross_entropy + 1 - (both + 1) / (either + 1)


def reduced(masks: Float[Array, "b s s"], size: int) -> Float[Array, "b h h"]:
    """Masks averaged over blocks, down to (size, size)."""
    block = masks.shape[1] // size
    return masks.reshape(len(masks), size, block, size, block).mean((2, 4))


def augment(
    images: UInt8[Array, "b s s 3"],
    masks: UInt8[Array, "b s s"],
    key: Key[Array, ""],
    geometry: Geometry,
    colour: photometric.Photometric,
) -> tuple[Float[Array, "b s s 3"], Float[Array, "b s s"]]:
    """Random crops with their masks, some laid over the next image of the batch, and colour; all in [0, 1].

    The mask of a composite is the union of both: the object behind does not cease to be one.
    """
    crop_key, composite_key, colour_key = jax.random.split(key, 3)
    pixels = jnp.concatenate([photometric.to_float(images), masks[..., None] / jnp.float32(255)], -1)
    pixels = jax.vmap(functools.partial(_crop, geometry))(pixels, jax.random.split(crop_key, len(images)))
    images, masks = pixels[..., :3], pixels[..., 3]
    chosen = jax.random.bernoulli(composite_key, geometry.composite_prob, (len(images),))[:, None, None]
    alpha = jnp.where(chosen, masks, 1)[..., None]
    images = alpha * images + (1 - alpha) * jnp.roll(images, 1, 0)
    masks = jnp.where(chosen, jnp.maximum(masks, jnp.roll(masks, 1, 0)), masks)
    keys = jax.random.split(colour_key, len(images))
    return photometric.apply(images, photometric.draw(keys, colour)), masks


def _crop(geometry: Geometry, pixels: Float[Array, "s s 4"], key: Key[Array, ""]) -> Float[Array, "s s 4"]:
    """A random window of one image, resized back to its size, flipped half of the time."""
    u = jax.random.uniform(key, (5,))
    low, high = geometry.side
    stretch = geometry.aspect ** (u[1] - 0.5)
    window = (low + u[0] * (high - low)) * jnp.stack([1 / stretch, stretch])
    start = u[2:4] * (1 - window)
    size = pixels.shape[0]
    margin = int(size * MARGIN)
    padded = jnp.pad(pixels, [(margin, margin), (margin, margin), (0, 0)], "edge")
    scale = 1 / window
    translation = -(start * size + margin) * scale
    cut = jax.image.scale_and_translate(padded, pixels.shape, (0, 1), scale, translation, "linear", antialias=True)
    return jnp.where(u[4] < 0.5, cut[:, ::-1], cut)
