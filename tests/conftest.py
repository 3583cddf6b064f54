"""What all tests share: eight simulated CPU devices, whatever machine they run on."""

import os
import shutil
import tempfile

# What the program keeps for its user goes when the tests end.
CACHE = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cvsa_jax-tests-")
# Read when a backend starts, so before the first use of jax. A GPU would give too few devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

# Compiled programs of this and earlier test runs. Side by side, each process has its own: JAX writes them in place.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    f"{os.path.dirname(__file__)}/../.pytest_cache/compiled/{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}",
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import cvsa_jax  # noqa: F401  sets the quiet variables, so before jax and tensorflow

# isort: split
import signal

import jax
import pytest
from support.compiling import quickly_compiled
from support.launch_site import Site
from support.small_store import SHARD

from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.saliency import compute, store

# Files that take longest come first: side by side with others, the last to begin would be alone at the end.
LONGEST = (
    "test_docs.py",
    "test_processes.py",
    "test_collapse.py",
    "test_small.py",
    "test_notebook.py",
    "test_wheel.py",
    "test_saliency_command.py",
    "test_demo.py",
    "test_pretrain.py",
    "test_recipes.py",
    "test_story.py",
    "test_study.py",
    "test_finetune.py",
    "test_before_the_work.py",
    "test_look.py",
    "test_step.py",
    "test_device_views.py",
    "test_network_detectors.py",
)


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items):
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="session")
def mesh_of():
    """mesh_of(n): a mesh of the first n devices."""
    return lambda n: make_mesh(jax.devices()[:n])


@pytest.fixture(scope="module")
def quick_compilation():
    """Programs are not compiled for speed: nearly all the time would go into compiling."""
    with quickly_compiled():
        yield


@pytest.fixture
def small_shards(monkeypatch):
    """Files of a store hold the maps of four images."""
    monkeypatch.setattr(compute, "SHARD_SIZE", SHARD)
    monkeypatch.setattr(store, "SHARD_SIZE", SHARD)


@pytest.fixture
def site(tmp_path):
    """A copy of the launch scripts among stand-ins."""
    # Where SIGINT is ignored, as in a background job, the scripts would ignore it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Site(tmp_path)
    signal.signal(signal.SIGINT, before)
