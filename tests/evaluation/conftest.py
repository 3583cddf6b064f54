import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def unoptimized_compilation():
    """Programs compile without optimisation: compiling would take nearly all the time of these tests."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
