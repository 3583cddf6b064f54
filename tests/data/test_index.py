import numpy as np
import pytest
import tensorflow as tf

from cvsa_jax.data.index import example_order, position_words


def order(positions, n: int, seed: int) -> np.ndarray:
    return example_order(tf.constant(positions, tf.int64), n, seed).numpy()


@pytest.mark.parametrize("n", [2, 7, 100])
def test_agrees_with_index_shuffle_for_single_positions(n):
    positions = np.array([0, 1, n - 1, n, 3 * n + 1, 10 * n - 1, 10**12 + 5])
    expected = [
        int(tf.random.experimental.index_shuffle(tf.constant(p % n, tf.int64), seed=[42, p // n], max_index=n - 1))
        for p in positions
    ]
    np.testing.assert_array_equal(order(positions, n, 42), expected)


@pytest.mark.parametrize("n", [1, 2, 3, 13, 97, 256])
def test_each_example_once_per_epoch(n):
    epochs = order(np.arange(4 * n), n, 7).reshape(4, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (4, 1)))


def test_order_does_not_depend_on_how_positions_are_cut():
    n, batch = 13, 8
    whole = order(np.arange(5 * batch), n, 3)
    parts = [order(np.arange(s * batch, (s + 1) * batch), n, 3) for s in range(5)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_epochs_and_seeds_have_different_orders():
    n = 97
    orders = [order(epoch * n + np.arange(n), n, seed) for seed in (0, 1, 2) for epoch in range(4)]
    assert len({tuple(o) for o in orders}) == len(orders)
    # Two independent orders agree in one place on average.
    agreeing = [np.sum(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert np.mean(agreeing) < 3
    assert max(agreeing) < 10


def test_position_words_round_trip_beyond_32_bits():
    positions = np.array([0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 5 * 2**32 + 123, 2**52 + 7])
    words = position_words(tf.constant(positions, tf.int64)).numpy()
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(words[:, 0].astype(np.int64) * 2**32 + words[:, 1], positions)
