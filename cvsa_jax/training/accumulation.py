"""Gradient accumulation: a batch in equal micro-batches, one in memory at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Stats(NamedTuple):
    """Batch statistics of both networks."""

    online: dict
    target: dict | None


class Vectors(NamedTuple):
    """(2b, D) of each kind, view 1 before view 2."""

    pooled: jax.Array
    projection: jax.Array
    query: jax.Array
    key: jax.Array


class Pass(NamedTuple):
    """What a pass over rows gives besides its gradient."""

    stats: Stats
    metrics: dict[str, jax.Array]
    vectors: Vectors


def accumulated(
    one: Callable[[Stats, dict], tuple[dict, Pass]], params: Any, stats: Stats, batch: dict, parts: int
) -> tuple[dict, Pass]:
    """What `one` (batch statistics, rows) -> (gradient by `params`, `Pass`) gives for the batch in `parts` equal parts,
    one after the other: means of gradients and metrics, the vectors in the order of the whole, the last statistics."""
    if parts == 1:
        return one(stats, batch)

    def body(carry, rows):
        total, stats = carry
        grads, done = one(stats, rows)
        return (jax.tree.map(jnp.add, total, grads), done.stats), done._replace(stats=None)

    def in_order(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(parts, 2, -1, x.shape[-1]), 0, 1).reshape(-1, x.shape[-1])

    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    (total, stats), done = jax.lax.scan(body, (jax.tree.map(jnp.zeros_like, params), stats), split)
    metrics = jax.tree.map(lambda x: x.mean(0), done.metrics)
    vectors = jax.tree.map(in_order, done.vectors)
    return jax.tree.map(lambda x: x / parts, total), Pass(stats, metrics, vectors)
