import numpy as np
import pytest

from cvsa_jax.data.index import Order, example_order, position_words


def order(positions, n: int, seed: int) -> np.ndarray:
    return example_order(np.asarray(positions, np.int64), n, seed)


def simon(value: int, keys: list[int], bits: int) -> int:
    """The block cipher of Beaulieu et al. 2013, section 3, on one block, as the paper writes it."""
    left, right, mask = value >> bits, value & ((1 << bits) - 1), (1 << bits) - 1
    turn = lambda word, by: (word << by % bits | word >> (bits - by % bits)) & mask  # noqa: E731
    for key in keys:
        left, right = right, left ^ (turn(right, 1) & turn(right, 8)) ^ turn(right, 2) ^ key
    return left << bits | right


def splitmix(value: int) -> int:
    """Java's SplittableRandom, whose first number from the seed 0 is E220A8397B1DCDAF."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


@pytest.mark.parametrize(("n", "bits"), [(2, 8), (65_536, 8), (70_000, 9), (1_281_167, 11)])
def test_order_is_the_cipher_with_keys_of_seed_and_epoch(n, bits):
    assert splitmix(0) == 0xE220A8397B1DCDAF
    for position in (0, 1, n - 1, n, 3 * n + 1, 300 * n - 1):
        epoch, value = divmod(position, n)
        state = splitmix(splitmix(42) + epoch)
        keys = [splitmix(state + k * 0x9E3779B97F4A7C15) % 2**bits for k in range(1, 9)]
        value = simon(value, keys, bits)
        while value >= n:
            value = simon(value, keys, bits)
        assert order([position], n, 42) == [value]


def test_no_two_epochs_or_seeds_share_an_order():
    n = 557
    places = np.arange(n)
    orders = [order(epoch * n + places, n, 0) for epoch in (*range(300), 512, 1000, 65_536, 2**32)]
    orders += [order(places, n, seed) for seed in (1, 255, 256, 257, 65_536, 2**32, 2**40, -1)]
    assert len({tuple(one) for one in orders}) == len(orders)
    # Nor nearly: two independent orders agree in one place on average.
    agreeing = [np.sum(orders[0] == other) for other in orders[1:]]
    assert np.mean(agreeing) < 1.5 and max(agreeing) < 10


@pytest.mark.parametrize("n", [1, 2, 97, 256, 65_537])
def test_epoch_holds_each_example_once(n):
    epochs = order(np.arange(4 * n), n, 7).reshape(4, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (4, 1)))


def test_order_does_not_depend_on_batch_borders():
    n, batch = 13, 8
    whole = order(np.arange(5 * batch), n, 3)
    parts = [order(np.arange(s * batch, (s + 1) * batch), n, 3) for s in range(5)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_epochs_of_a_set_in_class_order_mix_the_classes():
    # Butterflies: 557 images of 10 classes. With 4 rounds of the cipher instead of 8, neighbours of one class are four
    # times as frequent in some epochs as by chance.
    labels = np.arange(557) * 10 // 557
    epochs = [labels[order(e * 557 + np.arange(557), 557, 0)] for e in range(40)]
    same_class = max((epoch[1:] == epoch[:-1]).mean() for epoch in epochs)
    chance, noise = ((np.bincount(labels) / 557) ** 2).sum(), (0.1 * 0.9 / 556) ** 0.5
    assert same_class < chance + 5 * noise


def test_position_words_round_trip_beyond_32_bits():
    positions = np.array([0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 5 * 2**32 + 123, 2**52 + 7])
    words = position_words(positions)
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(words[:, 0].astype(np.int64) * 2**32 + words[:, 1], positions)


def test_processes_take_contiguous_shares_of_a_global_batch():
    orders = [Order(12, range(9), seed=3, process_index=p, process_count=3) for p in range(3)]
    # Step 4 begins at place 48.
    assert [order.positions(4).tolist() for order in orders] == [[48, 49, 50, 51], [52, 53, 54, 55], [56, 57, 58, 59]]


def test_examples_are_images_of_the_pool():
    pool, order = np.array([5, 3, 11, 2]), Order(4, range(2), seed=0)
    assert sorted(order.examples(pool, order.positions(0))) == sorted(pool)
    np.testing.assert_array_equal(order.examples(pool, order.positions(1)), pool[example_order(np.arange(4, 8), 4, 0)])
