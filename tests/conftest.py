"""What all tests share: eight simulated CPU devices, whatever machine they run on."""

import os

# Read when a backend starts, so before the first use of jax. A GPU would give too few devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import cvsa_jax  # noqa: F401  sets the quiet variables, so before jax and tensorflow

# isort: split
import signal

import jax
import pytest
from launch_site import Site

from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.training.monitor import read_metrics

# Files of minutes come first: side by side with others, the last to begin would be alone at the end.
LONGEST = ("test_run.py", "test_finetune.py", "test_network_detectors.py", "test_processes.py", "test_demo.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


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


@pytest.fixture(scope="session")
def mesh_of():
    """mesh_of(n): a mesh of the first n devices."""
    return lambda n: make_mesh(jax.devices()[:n])


@pytest.fixture
def site(tmp_path):
    """A copy of the launch scripts among stand-ins."""
    # Where SIGINT is ignored, as in a background job, the scripts would ignore it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Site(tmp_path)
    signal.signal(signal.SIGINT, before)
