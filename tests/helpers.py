"""What several test modules share: comparing trees, quick compilation, stand-ins, and small data on disk."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import jax
import jax.extend as jex
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cvsa_jax.data.view_spec import MASK_STRIDE
from cvsa_jax.runtime.distributed import AXIS, make_mesh
from cvsa_jax.training.log import read_metrics

# Takes half the time to compile.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

numpy_of = functools.partial(jax.tree.map, np.asarray)
assert_equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)


def assert_close(got, expected, rtol: float = 1e-5, atol: float = 1e-5):
    """Two trees of arrays agree."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, expected)


def assert_equal_trees(a, b):
    """Two trees of arrays are equal; the first leaf that differs is named."""
    for (path, x), (_, y) in zip(jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def assert_moved(got, old):
    """Every leaf of rank > 1 has changed (the bias before a normalisation has no gradient)."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(old), strict=True):
        assert a.ndim == 1 or np.any(a != b)


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors of length 1 along the last axis."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file."""
    with np.load(path) as arrays:
        return dict(arrays)


def on_mesh(function: Callable, mesh) -> Callable:
    """`function` of rows that are split over the mesh, with the same result on all devices."""
    split = PartitionSpec(AXIS)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=PartitionSpec()))


def kernels_summed(function: Callable, params, *arguments) -> tuple[list, list]:
    """(shape, dtype) of each sum over the mesh of values in the shape of a kernel of `params`, once in a call, and in
    its loops."""
    shapes = {leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim > 1}
    once, in_loops = [], []

    def look(jaxpr, found):
        for equation in jaxpr.eqns:
            if equation.primitive.name.startswith("psum"):
                found += [(v.aval.shape, str(v.aval.dtype)) for v in equation.invars if v.aval.shape in shapes]
            for inner in jex.core.jaxprs_in_params(equation.params):
                look(inner, in_loops if equation.primitive.name == "scan" else found)

    look(jax.make_jaxpr(function)(*arguments).jaxpr, once)
    return once, in_loops


@contextlib.contextmanager
def few_devices(count: int, *modules: ModuleType) -> Iterator[None]:
    """In these modules a mesh has so many devices: whole runs on eight would spend their time in rendezvous."""
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "make_mesh", lambda devices=None: make_mesh(jax.devices()[:count]))
        yield


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


def logged(workdir) -> list[dict]:
    """The rows of a run's metrics without those of its speed, which two equal runs do not share."""
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(workdir)]


def squares(pixels: np.ndarray) -> np.ndarray:
    """Averages over squares of MASK_STRIDE pixels."""
    side = len(pixels) // MASK_STRIDE
    return pixels.reshape(side, MASK_STRIDE, side, MASK_STRIDE).mean((1, 3))
