"""Where an objective's negatives come from: the views of the whole batch, or a queue of earlier keys."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cvsa_jax import losses
from cvsa_jax.runtime.distributed import AXIS


class Queue(NamedTuple):
    """(K, D) unit keys of earlier batches, MoCo's negatives."""

    keys: jax.Array


def random_queue(length: int, channels: int, key: jax.Array) -> Queue:
    """`length` random unit keys."""
    return Queue(losses.unit(jax.random.normal(key, (length, channels))))


def objective_inputs(
    objective: losses.Objective, query: jax.Array, key: jax.Array, queue: Queue | None
) -> losses.ObjectiveInputs:
    """What the objective asks for; `query` and `key` are (2b, D) on each device, view 1 before view 2."""
    crossed = jnp.roll(key, len(key) // 2, 0)  # the query of one view meets the key of the other
    if objective.queue:
        return losses.ObjectiveInputs(query, crossed, queue=queue.keys)
    if not objective.whole_batch:
        return losses.ObjectiveInputs(query, crossed)
    shard, batch = len(query) // 2, gathered(query)
    within = jax.lax.axis_index(AXIS) * shard + jnp.arange(shard)
    return losses.ObjectiveInputs(query, crossed, batch=batch, row=jnp.concatenate([within, len(batch) // 2 + within]))


def gathered(rows: jax.Array) -> jax.Array:
    """(2b, D) on each device -> (2B, D) on all: view 1 of the global batch in its order, then view 2."""
    views = rows.reshape(2, len(rows) // 2, -1)
    shard, place = views.shape[1], jax.lax.axis_index(AXIS)
    # A sum of rows laid into zeros, and not an all-gather, whose result does not count as equal on all devices.
    empty = jnp.zeros((2, shard * jax.lax.axis_size(AXIS), views.shape[2]), views.dtype)
    laid = jax.lax.dynamic_update_slice(jax.lax.pcast(empty, AXIS, to="varying"), views, (0, place * shard, 0))
    return jax.lax.psum(laid, AXIS).reshape(-1, views.shape[2])


def enqueued(queue: Queue, keys: jax.Array, step: jax.Array) -> Queue:
    """The queue with the batch's keys, (2b, D) on each device, in the place of the oldest; its length is a multiple of
    the global batch's 2B."""
    keys = losses.unit(gathered(keys))
    turns = len(queue.keys) // len(keys)
    return Queue(jax.lax.dynamic_update_slice(queue.keys, keys, ((step % turns) * len(keys), 0)))
