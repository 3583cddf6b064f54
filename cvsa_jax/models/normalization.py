"""BatchNorm, and the sum at the end of a residual block, with gradients of their own. A GPU waits for its memory here,
so they read and write the maps as seldom as they can: the automatic gradient of `nn.BatchNorm` and ReLU takes three
passes where two suffice, and keeps masks and float32 maps for them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

EPSILON, MOMENTUM = 1e-5, 0.9  # torch's; its momentum is 1 − ours
Features = Float[Array, "*b c"]
PerChannel = Float[Array, " c"]


class BatchNorm(nn.Module):
    """BatchNorm over all axes but the last, then ReLU if `relu`; variables and values are those of `nn.BatchNorm` in
    float32 (so the running average is that of the biased variance).

    Attributes:
        train: take the batch's statistics, else the running averages.
        axis_name: mesh axis over which statistics are averaged, or None.
        dtype: of the output.
    """

    train: bool
    axis_name: str | None = None
    relu: bool = False
    dtype: DTypeLike = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Features) -> Features:
        channels = x.shape[-1]
        starts = {"mean": jnp.zeros, "var": jnp.ones}
        averages = [self.variable("batch_stats", name, start, channels) for name, start in starts.items()]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        if not self.train:
            return _output(x, averages[0].value, _multiplier(averages[1].value, scale), bias, self.relu, self.dtype)
        axis_name = None if self.is_initializing() else self.axis_name
        y, *statistics = normalized(x, scale, bias, axis_name, self.relu, self.dtype)
        if not self.is_initializing():
            for average, now in zip(averages, statistics, strict=True):
                average.value = MOMENTUM * average.value + (1 - MOMENTUM) * lax.stop_gradient(now)
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalized(
    x: Features, scale: PerChannel, bias: PerChannel, axis_name: str | None, relu: bool, dtype: DTypeLike
) -> tuple[Features, PerChannel, PerChannel]:
    """x normalised by its own statistics, scaled, shifted and rectified; mean and variance, which give no gradient."""
    return _forward(x, scale, bias, axis_name, relu, dtype)[0]


def _forward(x, scale, bias, axis_name, relu, dtype):
    # Without the barrier XLA takes two passes for the two sums where x is a matrix product.
    x = lax.optimization_barrier(x)
    wide, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    mean, square = _over_mesh(lax.pmean, axis_name, wide.mean(axes), (wide * wide).mean(axes))
    variance = jnp.maximum(square - mean * mean, 0)
    y = _output(x, mean, _multiplier(variance, scale), bias, relu, dtype)
    return (y, mean, variance), (x, scale, bias, mean, variance)


def _backward(axis_name, relu, dtype, kept, cotangents):
    # Without the barrier XLA would keep the forward pass's mask for here, a map more.
    x, (scale, bias, mean, variance) = kept[0], lax.optimization_barrier(kept[1:])
    multiplier = _multiplier(variance, scale)
    centred = x.astype(jnp.float32) - mean
    gradient = cotangents[0].astype(jnp.float32)
    if relu:
        # What was rectified is computed anew from x, which is read anyway.
        gradient = jnp.where(centred * multiplier + bias > 0, gradient, 0)
    # One pass for both sums, and one for what depends on them.
    axes = tuple(range(x.ndim - 1))
    total, product = _over_mesh(lax.psum, axis_name, gradient.sum(axes), (gradient * centred).sum(axes))
    count = x.size // x.shape[-1] * (1 if axis_name is None else lax.axis_size(axis_name))
    inverse = lax.rsqrt(variance + EPSILON)
    by_x = multiplier * (gradient - total / count - centred * (inverse * inverse * product / count))
    return by_x.astype(x.dtype), product * inverse, total


normalized.defvjp(_forward, _backward)


@jax.custom_vjp
def joined(x: Features, residual: Features) -> Features:
    """ReLU of the sum. The sum is not kept: its sign is the output's."""
    return _joined_forward(x, residual)[0]


def _joined_forward(x, residual):
    # XLA would keep the sum in float32 as well, for the next block, without the barrier.
    y = lax.optimization_barrier(nn.relu(x + residual))
    return y, y


def _joined_backward(y, cotangent):
    gradient = jnp.where(y > 0, cotangent, 0)
    return gradient, gradient


joined.defvjp(_joined_forward, _joined_backward)


def _output(x, mean, multiplier, bias, relu: bool, dtype):
    y = (x.astype(jnp.float32) - mean) * multiplier + bias
    return (nn.relu(y) if relu else y).astype(dtype)


def _multiplier(variance, scale):
    return lax.rsqrt(variance + EPSILON) * scale


def _over_mesh(collective, axis_name: str | None, *values: PerChannel) -> Float[Array, "2 c"]:
    stacked = jnp.stack(values)
    return stacked if axis_name is None else collective(stacked, axis_name)
