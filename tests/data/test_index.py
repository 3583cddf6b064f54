import numpy as np
import pytest
import tensorflow as tf

from cvsa_jax.data.index import example_order, position_words

ROUNDS = 8


def order(positions, n: int, seed: int, rounds: int = ROUNDS) -> np.ndarray:
    return example_order(np.asarray(positions, np.int64), n, seed, rounds)


@pytest.mark.parametrize("rounds", [4, 8])
@pytest.mark.parametrize("n", [2, 7, 100, 5994, 65536, 70_000, 1_281_167])
def test_order_is_that_of_tensorflows_index_shuffle(n, rounds):
    positions = np.array([0, 1, n - 1, n, 3 * n + 1, 10 * n - 1])
    expected = [
        int(
            tf.raw_ops.RandomIndexShuffle(
                index=tf.constant(p % n, tf.int64),
                seed=tf.constant([498247692, 42, p // n], tf.int64),
                max_index=tf.constant(n - 1, tf.int64),
                rounds=rounds,
            )
        )
        for p in positions
    ]
    np.testing.assert_array_equal(order(positions, n, 42, rounds), expected)
    if rounds == 4:  # what the public function takes
        public = tf.random.experimental.index_shuffle(tf.constant(1, tf.int64), seed=[42, 0], max_index=n - 1)
        assert int(public) == expected[1]


@pytest.mark.parametrize("n", [1, 2, 3, 13, 97, 256, 65_537])
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


def test_neighbours_of_a_small_set_in_class_order_are_no_neighbours_in_an_epoch():
    # Butterflies: 557 images of 10 classes. With 4 rounds some epochs have four times as many as chance.
    labels = np.arange(557) * 10 // 557

    def worst(rounds: int) -> float:
        epochs = [labels[order(e * 557 + np.arange(557), 557, 0, rounds)] for e in range(40)]
        return max((epoch[1:] == epoch[:-1]).mean() for epoch in epochs)

    chance = (np.bincount(labels) / 557) ** 2
    assert worst(ROUNDS) < chance.sum() + 5 * (0.1 * 0.9 / 556) ** 0.5
    assert worst(4) > chance.sum() + 10 * (0.1 * 0.9 / 556) ** 0.5


def test_position_words_round_trip_beyond_32_bits():
    positions = np.array([0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 5 * 2**32 + 123, 2**52 + 7])
    words = position_words(positions)
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(words[:, 0].astype(np.int64) * 2**32 + words[:, 1], positions)
