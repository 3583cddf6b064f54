"""MoCo, SimCLR and SimSiam: their step on 8 simulated devices against 1 and against their papers' formulas written
without any collective (`small_step.define`). BYOL is the subject of `test_step.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.comparing import assert_close, assert_equal, assert_moved, numpy_of
from support.compiling import quick
from support.small_step import LEARNING_RATE, MODEL, OPTIMIZER, TAU, WEIGHT, batch, define, spec_of, start, without

from cvsa_jax import losses
from cvsa_jax.runtime import distributed
from cvsa_jax.training.state import target_parts
from cvsa_jax.training.step import make_train_step

NEW = ("moco", "simclr", "simsiam")


def assert_gradient(before, after, expected):
    """Gradient descent has made this step."""
    moved = jax.tree.map(lambda old, new: (old - new) / LEARNING_RATE, before, after)
    for (path, got), want in zip(jax.tree.leaves_with_path(moved), jax.tree.leaves(expected), strict=True):
        # By norms, as rounding can turn on a single unit of a head.
        assert np.linalg.norm(got - want) <= 1e-3 * np.linalg.norm(want) + 2e-5, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", NEW)
def test_gradient_on_8_devices_equals_whole_batch_gradient(run, name):
    gradients = define(name).gradients
    expected = jax.tree.map(lambda c, a: c + WEIGHT * a, gradients["contrastive"], gradients["align"])
    state, metrics = run(name, 8)
    assert_gradient(start(name).online.params, state.online.params, expected)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(expected)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-3)


@pytest.mark.parametrize("name", NEW)
def test_losses_on_8_devices_equal_whole_batch_losses(run, name):
    expected = define(name)
    _, metrics = run(name, 8)
    whole = expected.losses | {"loss": expected.losses["contrastive"] + WEIGHT * expected.losses["align"]}
    assert_close({key: metrics[key] for key in whole}, whole)
    assert metrics["align"] > 0.01
    # The query of one view and the key of the other.
    np.testing.assert_allclose(metrics["target_cosine"], expected.cosine, atol=1e-5)


@pytest.mark.parametrize("name", NEW)
def test_step_on_8_devices_equals_step_on_1(run, name):
    (on8, metrics8), (on1, metrics1) = run(name, 8), run(name, 1)
    assert_close(on8, on1, atol=2e-5)
    assert metrics8.keys() == metrics1.keys()
    assert_close(metrics8, metrics1, rtol=1e-4)
    assert on8.step == on1.step == 1


@pytest.mark.parametrize("name", NEW)
def test_step_returns_exactly_the_metrics_of_its_objective(run, name):
    _, metrics = run(name, 8)
    expected = {"loss", "contrastive", "grad_norm", "align", "align_hit", "usable_pairs", "online_top1"}
    expected |= {"projection_std", "effective_rank", "target_cosine"}
    expected |= {"objective_gradient", "align_gradient", "align_gradient_share", "align_weight"}
    assert metrics.keys() == expected | ({"tau"} if name == "moco" else set())


@pytest.mark.parametrize("name", ["simclr", "simsiam"])
def test_objectives_without_a_target_network(run, name):
    state, _ = run(name, 8)
    assert start(name).target is None and start(name).queue is None
    assert state.target is None and state.queue is None


def test_target_of_moco_follows_the_updated_online_network(run):
    state, metrics = run("moco", 8)
    assert metrics["tau"] == TAU
    new, old = target_parts(state.online.params), start("moco").target.params
    assert_close(state.target.params, jax.tree.map(lambda o, n: TAU * o + (1 - TAU) * n, old, new), atol=1e-6)


@pytest.mark.parametrize("name", NEW)
def test_step_trains_only_the_heads_of_its_objective(run, name):
    before, (state, _) = start(name).online, run(name, 8)
    expected = define(name).batch_stats
    trained = {"backbone", "projector", "conv_projector", "conv_predictor"} | (
        {"predictor"} if name == "simsiam" else set()
    )
    assert state.online.params.keys() == state.online.batch_stats.keys() == before.params.keys() >= trained
    for part in before.params:
        if part in trained:
            assert_moved(state.online.params[part], before.params[part])
            assert_close(state.online.batch_stats[part], expected[part])
        else:
            assert_equal(state.online.params[part], before.params[part])
            assert_equal(state.online.batch_stats[part], before.batch_stats[part])


def test_step_without_alignment_trains_the_objective_alone(run):
    before, expected = start("simsiam").online, define("simsiam")
    rows = without(batch(), "mask1", "mask2", "label")
    state, metrics = run("simsiam", 8, start("simsiam").replace(probe=None), rows, weight=0.0)
    assert_gradient(before.params, state.online.params, expected.gradients["contrastive"])
    assert metrics["loss"] == metrics["contrastive"]
    np.testing.assert_allclose(metrics["loss"], expected.losses["contrastive"], rtol=1e-5)
    assert not {"align", "align_hit", "usable_pairs", "online_top1"} & metrics.keys()
    for part in ("conv_projector", "conv_predictor"):
        assert_equal(state.online.params[part], before.params[part])
        assert_equal(state.online.batch_stats[part], before.batch_stats[part])


# An objective that somebody adds, as CONTRIBUTING.md shows it.


def vicreg(inputs: losses.ObjectiveInputs, temperature: float) -> jax.Array:
    """VICReg (arXiv 2105.04906): invariance, variance and covariance of the projections of the whole batch."""
    first, second = jnp.split(inputs.batch, 2)
    centred = jnp.stack([first - first.mean(0), second - second.mean(0)])
    deviation = jnp.sqrt((centred**2).sum(1) / (len(first) - 1) + 1e-4)
    covariance = jnp.einsum("vnd,vne->vde", centred, centred) / (len(first) - 1)
    off_diagonal = (covariance**2).sum() - (jnp.diagonal(covariance, axis1=1, axis2=2) ** 2).sum()
    spread = jax.nn.relu(1 - deviation).mean(1).sum()
    loss = 25 * ((first - second) ** 2).mean() + 25 * spread / 2 + off_diagonal / first.shape[1]
    return jnp.full(len(inputs.query), loss)


@pytest.mark.slow
def test_added_objective_steps_alike_on_1_and_4_devices(mesh_of, still_views):
    objective = losses.Objective(vicreg, predictor=False, target=False, whole_batch=True)
    state, ended = start("simclr"), {}
    for devices in (1, 4):
        mesh = mesh_of(devices)
        step = quick(make_train_step(MODEL, OPTIMIZER, mesh, spec_of(objective, 0.0)))
        placed = jax.device_put(jax.tree.map(np.copy, state), distributed.replicated(mesh))
        ended[devices] = numpy_of(step(placed, distributed.to_mesh(batch(), mesh)))
    assert_close(ended[4][0], ended[1][0], atol=2e-5)
    assert_close(ended[4][1], ended[1][1], rtol=1e-4)
    assert_moved(ended[1][0].online.params["projector"], state.online.params["projector"])
