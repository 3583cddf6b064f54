"""The random draws of the views, a pure function of (seed, number), in operations that NumPy and JAX share: so host and
device draw the same.

Philox 4×32 with ten rounds (Salmon et al. 2011), keyed as `tf.random.stateless_uniform` keys it for the seed
[seed, number]."""

from types import ModuleType

import numpy as np

_MULTIPLIERS, _INCREMENTS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
_SCRAMBLE = (0x3EC8F720, 0x02461E29)  # the key with which TensorFlow turns a seed into key and counter


def uniforms(seed: int, high, low, count: int, xp: ModuleType):
    """Uniform draws in [0, 1) for each of n numbers, (n, count) float32.

    Args:
        high, low: (n,) uint32, the two words of each number.
        xp: numpy or jax.numpy.
    """
    of_seed = [xp.full_like(low, np.uint32(word)) for word in (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)]
    key0, key1, *counter = _philox([*of_seed, low, high], [xp.full_like(low, np.uint32(word)) for word in _SCRAMBLE])
    block = xp.arange(-(-count // 4), dtype=xp.uint32)
    words = [word[:, None] + 0 * block for word in (xp.zeros_like(low), *counter)]
    bits = xp.stack(_philox([block + words[0], *words], [key0[:, None], key1[:, None]]), -1)
    return (bits.reshape(len(low), -1)[:, :count] & 0x7FFFFF).astype(xp.float32) * xp.float32(2**-23)


def numbers(words, view: int) -> tuple:
    """High and low words, (n,) uint32, of 2·position + view: no two views of a run share a number. `words`: (n, 2)
    uint32 of the positions, as `index.position_words` gives them."""
    high, low = words[:, 0], words[:, 1]
    return high << 1 | low >> 31, low << 1 | view


def _philox(counter: list, key: list) -> list:
    """Four words of a counter and two of a key -> four random words; all uint32 arrays."""
    a, b, c, d = counter
    for number in range(10):
        first, second = _product(_MULTIPLIERS[0], a), _product(_MULTIPLIERS[1], c)
        keys = [word + np.uint32(number * step & 0xFFFFFFFF) for word, step in zip(key, _INCREMENTS, strict=True)]
        a, b, c, d = second[0] ^ b ^ keys[0], second[1], first[0] ^ d ^ keys[1], first[1]
    return [a, b, c, d]


def _product(factor: int, words) -> tuple:
    """High and low word of a product with uint32 words, by halves, because JAX has no 64 bits."""
    (high, low), (top, bottom) = divmod(factor, 2**16), (words >> 16, words & 0xFFFF)
    first = high * bottom + (low * bottom >> 16)
    second = low * top + (first & 0xFFFF)
    return high * top + (first >> 16) + (second >> 16), words * np.uint32(factor)
