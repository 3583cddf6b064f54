"""The data order: which example stands at which place, as a pure function of (seed, position).

Position p counts examples from the start of the run: step s of global batch size B holds positions s·B … s·B + B − 1.
So a run resumes exactly at any step, and the global batch is the same for any number of processes.
"""

import functools

import numpy as np

_SEED_PREFIX = 498247692  # of `tf.random.experimental.index_shuffle`, whose permutations these are
_ROUND, _SEQUENCE = 0xFFFFFFFC, 0x7369F885192C0EF5  # constants of Simon's key schedule
_SMALLEST_WORD = 8  # bits; shorter ones leave patterns


def example_order(positions: np.ndarray, n: int, seed: int, rounds: int) -> np.ndarray:
    """Positions (k,) int64 -> examples (k,) int64 in [0, n): in each epoch every example once, in a new order."""
    epochs, places = np.divmod(np.asarray(positions, np.int64), n)
    examples = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        examples[here] = _epoch_order(n, seed, int(epoch), rounds)[places[here]]
    return examples


@functools.lru_cache(maxsize=2)
def _epoch_order(n: int, seed: int, epoch: int, rounds: int) -> np.ndarray:
    """(n,) uint32, the order of an epoch: a permutation by the block cipher Simon (Beaulieu et al. 2013), keyed by seed
    and epoch, of a block just large enough for n; what it puts outside of n is encrypted again. With 4 `rounds`,
    neighbours of a small set stay neighbours too often; 8 are TensorFlow's advice."""
    bits = max(-(-int(n - 1).bit_length() // 2), _SMALLEST_WORD)
    order = _encrypt(np.arange(4**bits, dtype=np.uint32), _round_keys([_SEED_PREFIX, seed, epoch], bits, rounds), bits)
    while (order[:n] >= n).any():
        order = np.where(order < n, order, order[order])  # each pass makes the steps twice as long
    return order[:n].copy()


def position_words(positions: np.ndarray) -> np.ndarray:
    """Positions (k,) int64 -> (k, 2) uint32, high and low word, as random keys take them."""
    return np.stack([positions >> 32, positions & 0xFFFFFFFF], -1).astype(np.uint32)


def _round_keys(parts: list[int], bits: int, rounds: int) -> list[int]:
    word = (1 << bits) - 1
    keys = [part & word for part in parts]
    for i in range(3, rounds):
        turned = _rotated(keys[-1], bits - 3, bits) ^ _rotated(keys[-1], bits - 4, bits)
        keys.append((_ROUND & word) ^ (_SEQUENCE >> (i - 3) & 1) ^ keys[i - 3] ^ turned)
    return keys[:rounds]


def _encrypt(values: np.ndarray, keys: list[int], bits: int) -> np.ndarray:
    left, right = values >> bits, values & ((1 << bits) - 1)
    for key in keys:
        mixed = _rotated(right, 1, bits) & _rotated(right, 8, bits) ^ _rotated(right, 2, bits)
        left, right = right, left ^ mixed ^ key
    return left << bits | right


def _rotated(words, by: int, bits: int):
    """Words of so many bits, rotated to the left."""
    by %= bits
    return (words << by | words >> (bits - by)) & ((1 << bits) - 1)
