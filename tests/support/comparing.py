"""Trees of arrays compared, and arrays as tests like to have them."""

import functools
from pathlib import Path

import jax
import numpy as np

from cvsa_jax.data.view_spec import MASK_STRIDE

numpy_of = functools.partial(jax.tree.map, np.asarray)
assert_equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)


def assert_close(got, expected, rtol: float = 1e-5, atol: float = 1e-5):
    """Two trees of arrays agree."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, expected)


def assert_equal_trees(a, b):
    """Two trees of arrays are equal; the first leaf that differs is named."""
    for (path, x), (_, y) in zip(jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def assert_moved(got, old):
    """Every leaf of rank > 1 has changed (the bias before a normalisation has no gradient)."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(old), strict=True):
        assert a.ndim == 1 or np.any(a != b)


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors of length 1 along the last axis."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file."""
    with np.load(path) as arrays:
        return dict(arrays)


def squares(pixels: np.ndarray) -> np.ndarray:
    """Averages over squares of MASK_STRIDE pixels."""
    side = len(pixels) // MASK_STRIDE
    return pixels.reshape(side, MASK_STRIDE, side, MASK_STRIDE).mean((1, 3))
