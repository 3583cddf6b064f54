"""Where a backbone is active: maps read from its last feature map, alone or with a linear classifier on it."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def channel_mean(features: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h w"], Float[Array, " b"]]:
    """Mean over the channels, and its contrast (max − min) / max."""
    mean = features.mean(-1)
    high, low = mean.max((1, 2)), mean.min((1, 2))
    return mean, (high - low) / jnp.maximum(high, 1e-12)


def first_component(features: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h w"], Float[Array, " b"]]:
    """Projection of each image's cells on their first principal component, a map of length 1, negative on the border on
    average (of maps without an inside: where the channels are weak), and the share of the variance that it
    explains."""
    b, h, w, c = features.shape
    cells = features.reshape(b, h * w, c)
    cells = cells - cells.mean(1, keepdims=True)
    # The Gram matrix of the cells and that of the channels have the same spectrum: the smaller one is taken.
    if h * w <= c:
        values, vectors = _eigh(cells @ cells.swapaxes(1, 2))
        component = vectors[..., -1]
    else:
        values, vectors = _eigh(cells.swapaxes(1, 2) @ cells)
        component = jnp.einsum("bnc,bc->bn", cells, vectors[..., -1], precision="highest")
        component = component * jax.lax.rsqrt(jnp.maximum((component**2).sum(-1, keepdims=True), 1e-24))
    component = component.reshape(b, h, w)
    border = jnp.ones((h, w), bool).at[1:-1, 1:-1].set(False)
    # A map without an inside is nothing but border, over which a component sums to 0: there the object is what is
    # more active.
    outside = border if min(h, w) > 2 else -jnp.linalg.norm(features, axis=-1)
    sign = jnp.where((component * outside).sum((1, 2)) > 0, -1.0, 1.0)
    share = values[:, -1] / jnp.maximum(values.sum(-1), 1e-12)
    return component * sign[:, None, None], jnp.clip(share, 0, 1)


def _eigh(matrices: Float[Array, "b n n"]) -> tuple[Float[Array, "b n"], Float[Array, "b n n"]]:
    """Eigenvalues, rising, and eigenvectors of symmetric matrices."""
    # On a CPU one after the other: jaxlib's kernel spreads a batch over the threads of XLA and waits for them in one of
    # these threads, so that as many devices as there are threads wait for ever.
    one_by_one = functools.partial(jax.lax.map, lambda matrix: tuple(jnp.linalg.eigh(matrix)))
    return jax.lax.platform_dependent(matrices, cpu=one_by_one, default=lambda m: tuple(jnp.linalg.eigh(m)))


def pooled_by(weights: Float[Array, "b h w"], features: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """The cells' average with such weights, none negative; the plain one where all are 0."""
    weights = weights + 1e-6
    return jnp.einsum("bhw,bhwc->bc", weights / weights.sum((1, 2), keepdims=True), features, precision="highest")


def sharpened(maps: Float[Array, "b h w"], power: float | Float[Array, ""]) -> Float[Array, "b h w"]:
    """Weights in [0, 1]: each map over its maximum, to a power. What is below 0 counts as 0, as a map without anything
    above it does."""
    above = jnp.maximum(maps, 0)
    return (above / jnp.maximum(above.max((1, 2), keepdims=True), 1e-12)) ** power


def looked(features: Float[Array, "b h w c"], head: Float[Array, " c2"]) -> Float[Array, "b h w"]:
    """What a look head reads off each cell; `head` is `LookHead.vector`."""
    return jnp.einsum("bhwc,c->bhw", features, head[:-2], precision="highest") + head[-2]


def scaled(maps: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """Each map over [0, 1]; a constant one becomes 0."""
    low = maps.min((1, 2), keepdims=True)
    return (maps - low) / jnp.maximum(maps.max((1, 2), keepdims=True) - low, 1e-12)


# name -> map and confidence of a feature map
READOUTS = {"mean": channel_mean, "component": first_component}


def class_activation(
    features: Float[Array, "b h w c"], weights: Float[Array, "c1 k"], classes: Int[Array, " b"]
) -> Float[Array, "b h w"]:
    """CAM (Zhou et al. 2016): each cell's share of the logit of one class, for a linear classifier (biases in the last
    row) on the average of the cells."""
    return jnp.einsum("bhwc,bc->bhw", features, weights[:-1, classes].T, precision="highest")


def grad_cam(
    features: Float[Array, "b h w c"], weights: Float[Array, "c1 k"], classes: Int[Array, " b"]
) -> Float[Array, "b h w"]:
    """Grad-CAM (Selvaraju et al. 2017, eqs. 1 and 2): the channels, weighted with the averaged gradient of the class's
    logit, summed and rectified. For a linear classifier on the average of the last map it is the positive part of CAM,
    divided by the number of cells."""

    def logit(cells):
        pooled = cells.mean((1, 2))
        return (pooled @ weights[:-1] + weights[-1])[jnp.arange(len(cells)), classes].sum()

    importance = jax.grad(logit)(features).mean((1, 2))
    return jax.nn.relu(jnp.einsum("bhwc,bc->bhw", features, importance, precision="highest"))
