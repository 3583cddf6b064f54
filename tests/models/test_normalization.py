"""BatchNorm and the end of a block, whose gradients are written by hand, against float64 and automatic ones."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cvsa_jax.models.normalization import BatchNorm, joined

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(1.0, 2.0, size=(8, 3, 2, 5)), jnp.float32)
COTANGENT = jnp.asarray(RNG.normal(size=X.shape), jnp.float32)
SCALE, BIAS = (jnp.asarray(RNG.normal(size=5), jnp.float32) for _ in range(2))
VARIABLES = {
    "params": {"scale": SCALE, "bias": BIAS},
    "batch_stats": {"mean": jnp.asarray(RNG.normal(size=5)), "var": jnp.asarray(RNG.uniform(1, 2, 5))},
}
close = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5))


def of_flax(params, x, relu: bool):
    module = nn.BatchNorm(False, momentum=0.9, epsilon=1e-5)
    y, mutated = module.apply(VARIABLES | {"params": params}, x, mutable=["batch_stats"])
    return nn.relu(y) if relu else y, mutated["batch_stats"]


def ours(params, x, relu: bool, axis_name: str | None = None, dtype=jnp.float32):
    module = BatchNorm(True, axis_name, relu, dtype)
    y, mutated = module.apply(VARIABLES | {"params": params}, x, mutable=["batch_stats"])
    return y, mutated["batch_stats"]


def gradients(forward, params, x, cotangent):
    return jax.grad(lambda p, x: (forward(p, x)[0] * cotangent).sum(), (0, 1))(params, x)


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("shape", [X.shape, (48, 5)], ids=["maps", "vectors"])
def test_batch_norm_matches_flax(relu, shape):
    x, cotangent = X.reshape(shape), COTANGENT.reshape(shape)
    close(ours(VARIABLES["params"], x, relu), of_flax(VARIABLES["params"], x, relu))
    expected = gradients(functools.partial(of_flax, relu=relu), VARIABLES["params"], x, cotangent)
    close(gradients(functools.partial(ours, relu=relu), VARIABLES["params"], x, cotangent), expected)
    np.testing.assert_array_less(1e-3, np.abs(expected[1]).max())


def test_batch_norm_variables_match_flax():
    for module in (BatchNorm(True), nn.BatchNorm(False)):
        close(
            module.init(jax.random.key(0), X),
            {
                "params": {"scale": np.ones(5), "bias": np.zeros(5)},
                "batch_stats": {"mean": np.zeros(5), "var": np.ones(5)},
            },
        )


def test_batch_norm_evaluation_uses_running_averages():
    x, mean, var, scale, bias = (
        np.asarray(value, np.float64) for value in (X, *VARIABLES["batch_stats"].values(), SCALE, BIAS)
    )
    expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    close(BatchNorm(False).apply(VARIABLES, X), expected)
    close(BatchNorm(False, relu=True).apply(VARIABLES, X), np.maximum(expected, 0))


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
def test_sharded_batch_norm_matches_the_whole_batch(mesh_of, relu):
    def step(params, x, cotangent):
        def loss(params, x):
            y, stats = ours(params, x, relu, "data")
            return jax.lax.psum((y * cotangent).sum(), "data"), (y, stats)

        (by_params, by_x), (y, stats) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        return by_params, by_x, y, stats

    rows, same = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(step, mesh=mesh_of(4), in_specs=(same, rows, rows), out_specs=(same, rows, rows, same))
    by_params, by_x, y, stats = jax.jit(sharded)(VARIABLES["params"], X, COTANGENT)
    expected = of_flax(VARIABLES["params"], X, relu)
    close((y, stats), expected)
    close((by_params, by_x), gradients(functools.partial(of_flax, relu=relu), VARIABLES["params"], X, COTANGENT))


def test_bfloat16_batch_norm_rounds_only_inputs_and_outputs():
    x = jnp.asarray(X, jnp.bfloat16)
    y, stats = ours(VARIABLES["params"], x, True, dtype=jnp.bfloat16)
    expected = of_flax(VARIABLES["params"], x.astype(jnp.float32), True)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), expected[0], rtol=2**-8)
    close(stats, expected[1])


def test_joined_is_the_rectified_sum():
    y, backward = jax.vjp(joined, X, COTANGENT)
    np.testing.assert_array_equal(y, np.maximum(X + COTANGENT, 0))
    for gradient in backward(jnp.ones_like(y)):
        np.testing.assert_array_equal(gradient, X + COTANGENT > 0)
