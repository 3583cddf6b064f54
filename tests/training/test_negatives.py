"""MoCo's queue: what it holds, in which order, and when."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from support.comparing import assert_close, unit
from support.compiling import quick
from support.small_step import KEYS, MODEL, TURNS, batch, normalized, start

from cvsa_jax.runtime import distributed
from cvsa_jax.training.negatives import Queue, enqueued


@pytest.fixture(scope="module")
def keys_of() -> Callable:
    """(target network, batch) -> its unit projections, view 1 of all images and then view 2, without a mesh."""

    @quick
    def project(network, views):
        views = normalized(views)
        model = MODEL.clone(axis_name=None)
        return model.apply(network.variables, views, True, method="project", mutable=["batch_stats"])[0].projection

    return lambda network, rows: unit(np.asarray(project(network, np.concatenate([rows["view1"], rows["view2"]]))))


@pytest.mark.parametrize("devices", [8, 1])
def test_queue_holds_target_projections_of_the_last_batches_in_global_order(run, keys_of, devices):
    state = start("moco")
    slots = np.split(state.queue.keys, TURNS)
    for step in range(TURNS + 1):
        # Those of the target network that the step starts with.
        slots[step % TURNS] = keys_of(state.target, batch(step))
        state, _ = run("moco", devices, state, batch(step))
        np.testing.assert_allclose(state.queue.keys, np.concatenate(slots), atol=2e-6, err_msg=f"step {step}")
        if step == TURNS - 1:
            # Nothing is left of the keys that the queue began with.
            assert not np.any(np.all(state.queue.keys == start("moco").queue.keys, axis=1))


def test_moco_loss_uses_the_queue_before_its_update(run, keys_of):
    # Were the batch's own keys in the queue, a query would find its key there a second time, as a negative.
    _, plain = run("moco", 8)
    rows = batch()
    crowded = start("moco").queue.keys.copy()
    crowded[:KEYS] = keys_of(start("moco").target, rows)
    state, with_keys = run("moco", 8, start("moco").replace(queue=Queue(crowded)))
    assert abs(with_keys["contrastive"] - plain["contrastive"]) > 0.05
    # The slot is the one that the step writes, so the queue is afterwards the same.
    assert_close(state.queue.keys, run("moco", 8)[0].queue.keys, atol=2e-6)


def test_one_batch_queue_is_replaced_by_every_step(mesh_of):
    rng = np.random.default_rng(2)
    old, keys = rng.standard_normal((2, KEYS, 8)).astype(np.float32)
    keys[5] = 0
    split, whole = PartitionSpec(distributed.AXIS), PartitionSpec()
    enqueue = jax.jit(jax.shard_map(enqueued, mesh=mesh_of(8), in_specs=(whole, split, whole), out_specs=whole))
    # On each device view 1 of its images, then view 2.
    global_order = np.concatenate([keys.reshape(8, 2, -1, 8)[:, view].reshape(-1, 8) for view in (0, 1)])
    expected = global_order / np.maximum(np.linalg.norm(global_order, axis=1, keepdims=True), 1e-9)
    for step in (0, 1, 7):
        got = enqueue(Queue(unit(old)), keys, np.int32(step))
        np.testing.assert_allclose(got.keys, expected, atol=1e-6)
