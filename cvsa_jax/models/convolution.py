"""Convolution and max-pooling as XLA's own, but in forms that run faster on a GPU, and the pooling on a CPU, where
XLA's are slow. Values are equal up to float32's rounding; `benchmarks/convolution.py` measures those of a CPU."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Map = Float[Array, "b h w c"]
Strided = Float[Array, "b h2 w2 o"]
_NEVER = 9  # no row or column of a window


def conv_general_dilated(x: Map, kernel: Float[Array, "k k2 c o"], window_strides, padding, **options) -> Strided:
    """`jax.lax.conv_general_dilated` of maps, for `nn.Conv`. On a GPU an image's convolution with stride 2 is one of
    its blocks of 2x2 pixels."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], window_strides, padding)
    halved = tuple(window_strides) == (2, 2) and not any(side % 2 for side in x.shape[1:3])
    if halved and x.shape[-1] <= 4 and jax.default_backend() == "gpu":
        x, kernel, padding = in_blocks(x, kernel, padding)
        window_strides = (1, 1)
    return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)


Blocks = tuple[Float[Array, "b h2 w2 c2"], Float[Array, "k2 k2 c2 o"], tuple]


def in_blocks(x: Map, kernel: Float[Array, "k k c o"], padding) -> Blocks:
    """Images of even sides, kernel and padding of a convolution with stride 2, as blocks of 2x2 pixels, the kernel on
    them and their padding, for stride 1. cuDNN's kernels for three channels are several times slower than for 16, to
    which the 12 are filled up with zeros."""
    (b, height, width, c), (k, _, _, o) = x.shape, kernel.shape
    before = padding[0][0]
    left = -(-before // 2)
    first = 2 * left - before  # pixels between the first block's edge and the kernel's
    blocks = -(-(first + k) // 2)
    fill = ((0, 0),) * 2 + ((0, -4 * c % 16), (0, 0))
    kernel = jnp.pad(kernel, ((first, 2 * blocks - first - k),) * 2 + ((0, 0), (0, 0)))
    kernel = kernel.reshape(blocks, 2, blocks, 2, c, o).transpose(0, 2, 1, 3, 4, 5).reshape(blocks, blocks, 4 * c, o)
    x = x.reshape(b, height // 2, 2, width // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    x = jnp.pad(x.reshape(b, height // 2, width // 2, 4 * c), (*fill[:2], (0, 0), fill[2]))
    return x, jnp.pad(kernel, fill), ((left, blocks - 1 - left),) * 2


@jax.custom_vjp
def max_pool(x: Map) -> Float[Array, "b h2 w2 c"]:
    """Maximum in 3x3 windows, stride 2, with a row or column of padding on each side. Where cells of a window share its
    maximum, the first has the gradient."""
    return functools.reduce(jnp.maximum, _window_cells(x))


def _max_pool_forward(x):
    highest, *others = _window_cells(x)
    # Which of the nine it is, in a byte: the gradient then reads neither the map nor its maxima.
    place = jnp.zeros(highest.shape, jnp.uint8)
    for k, cell in enumerate(others, 1):
        place = jnp.where(cell > highest, jnp.uint8(k), place)
        highest = jnp.maximum(highest, cell)
    return highest, (place, x[:0])


def _max_pool_backward(kept, gradient):
    place, like = kept
    height, width = like.shape[1:3]

    # A cell sums over the windows that it lies in: in an even row or column it is the middle of one, in an odd one the
    # end of that and the start of the next. XLA's own form adds atomically on a GPU.
    total = 0
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        pad = ((0, 0), (0, down), (0, right), (0, 0))
        moved, at = (jnp.pad(z, pad)[:, down:, None, right:, None] for z in (gradient, place))
        rows, columns = (jnp.array([_NEVER, 0] if next_one else [1, 2]) for next_one in (down, right))
        cell = 3 * rows[:, None, None, None] + columns[:, None]
        total += jnp.where(at == cell.astype(jnp.uint8), moved, 0)
    b, h2, w2, c = gradient.shape
    return (total.reshape(b, 2 * h2, 2 * w2, c)[:, :height, :width],)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _window_cells(x: Map) -> list[Strided]:
    height, width = x.shape[1:3]
    if jax.default_backend() == "cpu":
        x = lax.optimization_barrier(x)  # else XLA computes what comes before the pooling anew for each of the nine
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
