"""The state at the start, with other weights in it, and as a checkpoint."""

import functools
from collections.abc import Callable

import jax
import numpy as np
import optax
import pytest
from support.comparing import assert_equal, numpy_of
from support.compiling import quick
from support.small_step import CHANNELS, MODEL, SIZE

from cvsa_jax.runtime import distributed
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import checkpoint
from cvsa_jax.training.state import Network, TrainState, init_state, target_parts


@pytest.fixture(scope="module")
def initial() -> Callable:
    compiled = quick(
        functools.partial(init_state, MODEL, optax.adam(1e-3), SIZE),
        static_argnames=("target", "queue", "classes"),
    )
    return functools.cache(lambda **kwargs: numpy_of(compiled(jax.random.key(5), **kwargs)))


def test_initial_state_contains_only_requested_parts(initial):
    plain, full = initial(target=False), initial(target=True, queue=24, classes=3)
    assert plain.target is None and plain.queue is None and plain.probe is None
    assert_equal(full.target.params, target_parts(full.online.params))
    assert full.queue.keys.shape == (24, 8)
    np.testing.assert_allclose(np.linalg.norm(full.queue.keys, axis=1), 1, rtol=1e-5)
    # Random directions: as many different ones as keys, about half to either side of any axis.
    assert np.abs(full.queue.keys.mean(0)).max() < 0.3
    assert np.abs(np.tril(full.queue.keys @ full.queue.keys.T, -1)).max() < 1 - 1e-4
    assert full.probe.weights.shape == (CHANNELS + 1, 3) and not np.any(full.probe.weights)
    # The rest does not depend on what else was asked for.
    assert_equal(plain.online, full.online)


def saved(folder, state, mesh) -> None:
    checkpoints = checkpoint.Checkpointer(folder)
    checkpoints.save(jax.device_put(state, distributed.replicated(mesh)), {"images": 3})
    checkpoints.close()


def restored(folder, like, mesh) -> TrainState:
    checkpoints = checkpoint.Checkpointer(folder)
    state, meta = checkpoints.restore(like, mesh), checkpoints.meta()
    checkpoints.close()
    assert meta == {"images": 3}
    return state


def test_checkpoint_round_trip_restores_every_part(tmp_path, initial, mesh_of):
    for name, kwargs in {
        "simclr": {"target": False},
        "moco": {"target": True, "queue": 24, "classes": 3},
    }.items():
        blank = initial(**kwargs)
        state = jax.tree.map(lambda x: x + np.asarray(1, x.dtype), blank)
        saved(tmp_path / name, state, mesh_of(8))
        items = {path.name for path in (tmp_path / name / "ckpt" / "1").iterdir() if path.is_dir()}
        expected = {"online", "opt_state", "meta"} | ({"target", "queue", "probe"} if name == "moco" else set())
        assert items == expected
        back = restored(tmp_path / name, blank, mesh_of(2))
        assert jax.tree.structure(back) == jax.tree.structure(state)
        assert_equal(numpy_of(back), state)
    queue, step = checkpoint.restore_item(tmp_path / "moco", "queue", blank.queue, mesh_of(2))
    assert_equal(numpy_of(queue), state.queue)
    assert step == 1
    with pytest.raises(UserError, match=r"simclr/ckpt/1 holds no 'target'"):
        checkpoint.restore_item(tmp_path / "simclr", "target", state.target, mesh_of(2))


def test_starting_from_replaces_online_and_target(initial):
    simclr, moco = initial(target=False), initial(target=True, queue=24, classes=3)
    online = jax.tree.map(lambda x: x + 1, simclr.online)
    state = moco.starting_from(online)
    assert_equal(numpy_of(state.online), online)
    assert_equal(numpy_of(state.target.params), target_parts(online.params))
    assert_equal(numpy_of(state.target.batch_stats), target_parts(online.batch_stats))
    assert_equal((state.queue, state.probe, state.opt_state), (moco.queue, moco.probe, moco.opt_state))
    without_target = simclr.starting_from(online)
    assert_equal(numpy_of(without_target.online), online)
    assert without_target.target is None


def test_with_parts_replaces_only_the_named_parts(initial):
    online = initial(target=False).online
    backbone = jax.tree.map(
        lambda x: x + 1, Network(*({"backbone": t["backbone"]} for t in (online.params, online.batch_stats)))
    )
    mixed = online.with_parts(backbone)
    assert_equal(mixed.params["backbone"], backbone.params["backbone"])
    assert_equal(mixed.batch_stats["backbone"], backbone.batch_stats["backbone"])
    assert_equal(mixed.params["projector"], online.params["projector"])
