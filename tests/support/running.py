"""A stand-in for a compiled step, programs that runs share, and what a run has logged."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvsa_jax import settings
from cvsa_jax.evaluation import evaluator
from cvsa_jax.runs import finetune, pretrain
from cvsa_jax.training.log import read_metrics


class Step:
    """A Python function in the place of a jitted step."""

    def __init__(self, function):
        self.function = function

    def __call__(self, state, batch):
        return self.function(state, batch)

    def lower(self, state, batch):
        return self

    def compile(self):
        return self

    def cost_analysis(self):
        return None

    memory_analysis = cost_analysis


def idle(state, batch):
    """A step that counts and learns nothing, for tests of what is around the steps: it is not compiled."""
    return state.replace(step=state.step + 1), {"loss": jnp.ones(()), "grad_norm": jnp.ones(())}


def drifting(state, batch):
    """A step that is not compiled either, and moves the two networks of a state, each by other noise."""
    rng = np.random.default_rng(int(state.step))

    # Upwards, as variances stay positive.
    def moved(leaf):
        return jax.device_put(np.asarray(leaf) + rng.uniform(0, 0.2, leaf.shape).astype(np.float32), leaf.sharding)

    networks = {"online": jax.tree.map(moved, state.online), "target": jax.tree.map(moved, state.target)}
    state, metrics = idle(state, batch)
    return state.replace(**networks), metrics


def _once_for_equal(make: Callable, *sections: str) -> Callable:
    """`make(config, images)`, once for configs that are equal in these sections."""
    made = {}

    def shared(config, images):
        key = json.dumps([{name: value for name, value in config.to_dict().items() if name in sections}, images])
        if key not in made:
            made[key] = make(config, images)
        return made[key]

    return shared


_LENGTH = ("mode", "objective", "align", "batch_size", "total_steps", "total_epochs")
_SHARED = [
    (settings, "optimizer", _once_for_equal(settings.optimizer, "optim", *_LENGTH)),
    (
        settings,
        "step_spec",
        _once_for_equal(
            settings.step_spec, "contrast", "augment", "target", "seed", "accumulate_steps", "views", *_LENGTH
        ),
    ),
]
_SHARED += [
    (module, name, functools.cache(getattr(module, name)))
    for module, names in (
        (pretrain, ["make_train_step"]),
        (finetune, ["make_finetune_step"]),
        (evaluator, [name for name in vars(evaluator) if name.startswith("make_")]),
    )
    for name in names
]


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Equal trainings and evaluations share one traced function: where compilation is quick, most of what is left is
    tracing."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, shared in _SHARED:
            patch.setattr(module, name, shared)
        yield


def logged(workdir) -> list[dict]:
    """The rows of a run's metrics without those of its speed, which two equal runs do not share."""
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(workdir)]
