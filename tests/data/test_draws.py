import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from cvsa_jax.data.draws import numbers, uniforms
from cvsa_jax.data.index import position_words

POSITIONS = np.array([0, 1, 5, 2**31 - 1, 2**31, 2**32 + 7, 2**40 + 3])


@pytest.mark.parametrize(("seed", "count"), [(0, 51), (2**31 + 5, 1)], ids=["51 draws", "a seed beyond 31 bits"])
def test_uniforms_equal_tensorflows_stateless_uniform(seed, count):
    on_device = jax.jit(lambda high, low: uniforms(seed, high, low, count, jnp))
    for view in (0, 1):
        high, low = numbers(position_words(POSITIONS), view)
        expected = np.stack([tf.random.stateless_uniform([count], [seed, int(2 * p + view)]) for p in POSITIONS])
        drawn = uniforms(seed, high, low, count, np)
        assert drawn.dtype == np.float32
        np.testing.assert_array_equal(drawn, expected)
        np.testing.assert_array_equal(on_device(high, low), expected)


def test_numbers_are_twice_the_position_plus_the_view():
    for view in (0, 1):
        high, low = numbers(position_words(POSITIONS), view)
        assert high.dtype == low.dtype == np.uint32
        np.testing.assert_array_equal(high.astype(np.int64) * 2**32 + low, 2 * POSITIONS + view)
