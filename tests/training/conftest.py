"""The step in small, compiled, for the tests of objectives, queue and probe."""

import functools
from collections.abc import Callable

import jax
import numpy as np
import pytest
from support.comparing import numpy_of
from support.compiling import quick
from support.small_step import MODEL, OPTIMIZER, WEIGHT, batch, normalized, spec_of, start

from cvsa_jax import losses
from cvsa_jax.runtime import distributed
from cvsa_jax.training import photometric
from cvsa_jax.training.state import TrainState
from cvsa_jax.training.step import make_train_step


@pytest.fixture
def still_views(monkeypatch):
    monkeypatch.setattr(photometric, "augment", normalized)


@pytest.fixture(scope="session")
def run(mesh_of) -> Callable:
    """run(objective, devices, …): the state and the metrics after one step, as NumPy."""

    @functools.cache
    def compiled(name: str, devices: int, weight: float):
        mesh = mesh_of(devices)
        return mesh, quick(make_train_step(MODEL, OPTIMIZER, mesh, spec_of(losses.OBJECTIVES[name], weight)))

    def one(
        name: str,
        devices: int,
        state: TrainState | None = None,
        rows: dict | None = None,
        weight: float = WEIGHT,
    ) -> tuple[TrainState, dict]:
        mesh, step_fn = compiled(name, devices, weight)
        # A copy, as the step donates its state's buffers, which on the CPU may be those of the NumPy arrays.
        state = jax.tree.map(np.copy, start(name) if state is None else state)
        state = jax.device_put(state, distributed.replicated(mesh))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(photometric, "augment", normalized)  # read while the step is traced
            return numpy_of(step_fn(state, distributed.to_mesh(batch() if rows is None else rows, mesh)))

    return one
