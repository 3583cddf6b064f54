"""Compilation that takes little time, and devices and sums over them."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType

import jax
import jax.extend as jex
import pytest
from jax.sharding import PartitionSpec

from cvsa_jax.runtime.distributed import AXIS, make_mesh

# Takes half the time to compile.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@contextlib.contextmanager
def quickly_compiled() -> Iterator[None]:
    """Programs of whole runs compile without optimisation, and even the small ones are kept on disk."""
    changes = {"jax_disable_most_optimizations": True, "jax_persistent_cache_min_compile_time_secs": 0}
    usual = {name: jax.config.values[name] for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    yield
    for name, value in usual.items():
        jax.config.update(name, value)


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
