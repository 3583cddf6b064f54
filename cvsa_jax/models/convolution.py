"""Convolution and max-pooling as XLA's own, but on a CPU, where some of their gradients are slow, in forms that it runs
faster. Values are equal up to float32's rounding; `benchmarks/convolution.py` measures both, layer by layer.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Map = Float[Array, "b h w c"]
Strided = Float[Array, "b h2 w2 o"]


def conv_general_dilated(x: Map, kernel: Float[Array, "k k2 c o"], window_strides, padding, **options) -> Strided:
    """`jax.lax.conv_general_dilated` of maps, for `nn.Conv`. A 1x1 convolution, which pads nothing, is a matrix product
    on a CPU."""
    if kernel.shape[:2] != (1, 1) or jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)
    x = x[:, :: window_strides[0], :: window_strides[1]]
    # Of two axes each: with four, XLA copies the map to turn it for the kernel's gradient.
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def max_pool(x: Map) -> Float[Array, "b h2 w2 c"]:
    """Maximum in 3x3 windows, stride 2, with a row or column of padding on each side. Where cells of a window share its
    maximum, the first has the gradient, or on a CPU all of them a part."""
    pad = ((0, 0), (1, 1), (1, 1), (0, 0))
    if jax.default_backend() != "cpu":
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pad)
    height, width = x.shape[1:3]
    # The barrier keeps XLA from computing what comes before the pooling anew for each of the nine.
    x = jnp.pad(lax.optimization_barrier(x), pad, constant_values=-jnp.inf)
    return functools.reduce(
        jnp.maximum, (x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3))
    )
