"""What watches a pre-training and gives nothing back: figures of collapse, and a linear classifier."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from cvsa_jax import losses
from cvsa_jax.runtime.distributed import AXIS

_PROBE_OPTIMIZER = optax.adam(1e-3)


def collapse_figures(projection: jax.Array, query: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """Collapse indicators of the global batch; rows are (2b, D) on each device, `key` that of the other view.

    `projection_std`: standard deviation of the normalised projections per dimension, averaged and times sqrt(D): 1
    when they fill the sphere, 0 when collapsed. `effective_rank`: participation ratio (tr C)² / tr C² of their
    covariance, 1 to D. `target_cosine`: mean cosine of a view's query (BYOL: the prediction) and the other view's key.
    """
    unit = losses.unit(projection)
    mean = jax.lax.pmean(unit.mean(0), AXIS)
    second = jax.lax.pmean(unit.T @ unit / len(unit), AXIS)
    covariance = second - jnp.outer(mean, mean)
    variances = jnp.maximum(jnp.diagonal(covariance), 0)
    return {
        "projection_std": jnp.sqrt(variances).mean() * jnp.sqrt(len(variances)),
        "effective_rank": jnp.trace(covariance) ** 2 / jnp.maximum((covariance**2).sum(), 1e-20),
        "target_cosine": 1 - jax.lax.pmean(losses.regression(query, key).mean(), AXIS) / 2,
    }


class OnlineProbe(NamedTuple):
    """A linear classifier that learns from the online network's features; (C + 1, classes) weights, biases in the last
    row."""

    weights: jax.Array
    opt_state: optax.OptState


def init_probe(channels: int, classes: int) -> OnlineProbe:
    """A probe of zeros."""
    weights = jnp.zeros((channels + 1, classes))
    return OnlineProbe(weights, _PROBE_OPTIMIZER.init(weights))


def probe_step(probe: OnlineProbe, pooled: jax.Array, labels: jax.Array) -> tuple[OnlineProbe, jax.Array]:
    """One step of the probe on features (v, C) of this device, standardised by the global batch; and its accuracy on
    them before the step."""
    pooled = jax.lax.stop_gradient(pooled)
    mean = jax.lax.pmean(pooled.mean(0), AXIS)
    variance = jax.lax.pmean(((pooled - mean) ** 2).mean(0), AXIS)
    x = (pooled - mean) * jax.lax.rsqrt(variance + 1e-6)

    def loss_fn(weights):
        logits = x @ weights[:-1] + weights[-1]
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jax.lax.pmean(cross_entropy.mean(), AXIS), (logits.argmax(-1) == labels).mean()

    (_, hits), grads = jax.value_and_grad(loss_fn, has_aux=True)(probe.weights)
    updates, opt_state = _PROBE_OPTIMIZER.update(grads, probe.opt_state)
    return OnlineProbe(optax.apply_updates(probe.weights, updates), opt_state), jax.lax.pmean(hits, AXIS)
