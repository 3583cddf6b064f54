"""Trained for 200 steps, each objective keeps its projections apart; BYOL without what keeps them apart collapses, and
the health figures of the log show it.

The figure that shows it is `projection_std`. `effective_rank` does not: what is left of the projections about their
common point has directions enough, more than those of the objectives that have not collapsed.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import demo
from cvsa_jax import losses, settings
from cvsa_jax.data import pipeline
from cvsa_jax.data.index import Order
from cvsa_jax.runtime import distributed
from cvsa_jax.training import photometric
from cvsa_jax.training.state import init_state
from cvsa_jax.training.step import Alignment, StepSpec, make_train_step

STEPS = 200
DISTINCT = 15  # batches, shown again and again; they show each of the 240 images twice
# The same for all, so that only the objectives differ.
OPTIMIZER = optax.adamw(2e-3)
COLLAPSING = losses.OBJECTIVES["byol"]._replace(predictor=False)

# Measured with seeds 0 to 3: projection_std 0.75 to 0.98 where healthy, 0.03 to 0.05 where collapsed; effective_rank
# 3.2 to 9.1 where healthy, 11 to 13 where collapsed; `nearness` 0.19 to 0.59 where healthy, 0.00 where collapsed.
HEALTHY_STD, COLLAPSED_STD, HEALTHY_RANK, HEALTHY_NEARNESS = 0.5, 0.1, 2.0, 0.1


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config():
    config = demo.get_config("byol")
    config.data.procedural.update(classes=6, train_per_class=40, test_per_class=1, size=32)
    config.views.size, config.batch_size = 32, 32
    config.model.update(width=8, head_hidden=64, head_out=32)
    return config


@pytest.fixture(scope="module")
def batches(config, mesh_of) -> list[dict[str, jax.Array]]:
    """Batches of random resized crops, augmented once and for all: this takes longer than a step."""
    source = settings.load_source(config.data)
    spec = settings.view_spec(config, settings.model(config.model).stride)
    order = Order(config.batch_size, range(DISTINCT), seed=0)
    augmented = jax.jit(photometric.augment)

    def augment(rows: dict, view: int) -> np.ndarray:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(view), rows["position"][0, 1]), config.batch_size)
        strengths = settings.photometric(config.augment[f"view{view}"])
        return np.asarray(augmented(jnp.asarray(rows[f"view{view}"]), keys, strengths))

    return [
        distributed.to_mesh(rows | {f"view{view}": augment(rows, view) for view in (1, 2)}, mesh_of(1))
        for rows in pipeline.train_batches(source, source.split("train"), None, spec, order)
    ]


@pytest.fixture(scope="module")
def trained(config, batches, mesh_of) -> Callable:
    """trained(objective, tau): the metrics of the first and of the last step."""
    model, mesh = settings.model(config.model), mesh_of(1)
    # Compiling takes as long as the steps: with this level the sum is least.
    compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    initialize = functools.partial(init_state, model, OPTIMIZER, config.views.size, queue=8 * 2 * config.batch_size)
    initial = jax.device_put(compiled(initialize)(jax.random.key(0)), distributed.replicated(mesh))

    def train(objective: losses.Objective, tau: float) -> tuple[dict[str, float], dict[str, float]]:
        strengths = settings.photometric(config.augment.view1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(photometric, "augment", lambda views, keys, strengths: views)
            align, decay = Alignment(0.0, "kl", 0.2), lambda step: jnp.float32(tau)
            spec = StepSpec(objective, 0.2, align, (strengths, strengths), decay, seed=0)
            step = make_train_step(model, OPTIMIZER, mesh, spec)
            state = jax.tree.map(jnp.copy, initial)
            state = state.replace(
                target=state.target if objective.target else None,
                queue=state.queue if objective.queue else None,
            )
            step = compiled(step, donate_argnums=0).lower(state, batches[0]).compile()
        figures = []
        for number in range(STEPS):
            state, metrics = step(state, batches[number % DISTINCT])
            if number in (0, STEPS - 1):
                figures.append({name: float(value) for name, value in metrics.items()})
        return tuple(figures)

    return train


def nearness(figures: dict[str, float]) -> float:
    """How much nearer a view is to the other view of its image than to any view: the mean cosine of two unit vectors
    is 1 less the sum of their variances, so at most 1 − projection_std²."""
    return figures["target_cosine"] - (1 - figures["projection_std"] ** 2)


@pytest.mark.parametrize("name", losses.OBJECTIVES)
def test_objective_separates_images_without_collapse(trained, name):
    first, last = trained(losses.OBJECTIVES[name], tau=0.99)
    assert last["projection_std"] > HEALTHY_STD
    assert last["effective_rank"] > HEALTHY_RANK
    # A network that learns nothing would not collapse either.
    assert nearness(first) < HEALTHY_NEARNESS < nearness(last)


def test_byol_without_predictor_and_average_collapses_visibly(trained):
    first, last = trained(COLLAPSING, tau=0.0)
    assert first["projection_std"] > HEALTHY_STD
    assert last["projection_std"] < COLLAPSED_STD
    # The loss could hardly be better, and means nothing.
    assert last["loss"] < 0.05 and last["target_cosine"] > 0.99
    assert abs(nearness(last)) < 0.01
