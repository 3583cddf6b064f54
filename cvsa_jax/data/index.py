"""The data order: which example stands at which place, as a pure function of (seed, position).

Position p counts examples from the start of the run: step s of global batch size B holds positions s·B … s·B + B − 1.
So a run resumes exactly at any step, and the global batch is the same for any number of processes.
"""

import dataclasses
import functools

import numpy as np

_SMALLEST_WORD = 8  # bits; shorter ones leave patterns
_ROUNDS = 8  # with 4, neighbours of a small set stay neighbours too often
_MASK, _GOLDEN, _FACTORS = 2**64 - 1, 0x9E3779B97F4A7C15, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of SplitMix64


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples come when: the global batches of `steps`, a pure function of (seed, step), of which this process
    gets the `process_index`-th of `process_count` equal contiguous shares."""

    batch_size: int  # global
    steps: range
    seed: int
    process_index: int = 0
    process_count: int = 1

    @property
    def share(self) -> int:
        """Rows of a batch that are this process's."""
        return self.batch_size // self.process_count

    def positions(self, step: int) -> np.ndarray:
        """(share,) int64 places in the data order of this process's rows of a step's batch."""
        return step * self.batch_size + self.process_index * self.share + np.arange(self.share)

    def examples(self, pool: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Which of the pool's images stand at these places."""
        return pool[example_order(positions, len(pool), self.seed)]


def example_order(positions: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Positions (k,) int64 -> examples (k,) int64 in [0, n): in each epoch every example once, in a new order."""
    epochs, places = np.divmod(np.asarray(positions, np.int64), n)
    examples = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        examples[here] = _epoch_order(n, seed, int(epoch))[places[here]]
    return examples


@functools.lru_cache(maxsize=2)
def _epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) uint32, the order of an epoch: a permutation by the block cipher Simon (Beaulieu et al. 2013), of a block
    just large enough for n; what it puts outside of n is encrypted again. Simon's own key schedule would cut seed and
    epoch down to the few bits of a small set's words, so that epoch 256 repeated epoch 0: each round has a key of its
    own from all bits of both."""
    bits = max(-(-int(n - 1).bit_length() // 2), _SMALLEST_WORD)
    order = _encrypt(np.arange(4**bits, dtype=np.uint32), _round_keys(seed, epoch, bits), bits)
    while (order[:n] >= n).any():
        order = np.where(order < n, order, order[order])  # each pass makes the steps twice as long
    return order[:n].copy()


def position_words(positions: np.ndarray) -> np.ndarray:
    """Positions (k,) int64 -> (k, 2) uint32, high and low word, as random keys take them."""
    return np.stack([positions >> 32, positions & 0xFFFFFFFF], -1).astype(np.uint32)


def _round_keys(seed: int, epoch: int, bits: int) -> list[int]:
    """Of each round, from the generator SplitMix64 (Steele et al. 2014) seeded with a mix of seed and epoch."""
    state = _mixed(_mixed(seed) + epoch)
    return [_mixed(state + k * _GOLDEN) & ((1 << bits) - 1) for k in range(1, _ROUNDS + 1)]


def _mixed(value: int) -> int:
    """64 bits, of which each depends on all of the value's."""
    value = (value + _GOLDEN) & _MASK
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        value = ((value ^ value >> shift) * factor) & _MASK
    return value ^ value >> 31


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
