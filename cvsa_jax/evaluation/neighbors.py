"""Exact nearest neighbours by cosine, on the device, block by block: no matrix of all pairs is ever made."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

QUERIES = 256  # rows of a chunk of queries
GALLERY = 65_536  # rows of a block of the gallery: with a chunk of queries 64 MiB of similarities


def nearest(
    queries: Float[np.ndarray, "m d"], gallery: Float[np.ndarray, "n d"], k: int, *, among_themselves: bool = False
) -> Iterator[tuple[slice, Float[np.ndarray, "c k2"], Int[np.ndarray, "c k2"]]]:
    """Cosines and rows of the k most similar rows of the gallery, in falling order; of equals the earlier row first.

    Yields them chunk by chunk, each with the slice of the queries that it is about, so that a million queries need no
    more memory than one chunk.

    Args:
        k: fewer are returned where the gallery holds fewer.
        among_themselves: query i is row i of the gallery, and not its own neighbour.
    """
    k = min(k, len(gallery) - among_themselves)
    size = min(GALLERY, len(gallery))
    blocks = [jnp.asarray(_padded(gallery[start : start + size], size)) for start in range(0, len(gallery), size)]
    for start in range(0, len(queries), QUERIES):
        rows = slice(start, min(start + QUERIES, len(queries)))
        own = start + np.arange(QUERIES) if among_themselves else np.full(QUERIES, -1)
        chunk = _padded(queries[rows], QUERIES)
        best = jnp.full((QUERIES, k), -jnp.inf), jnp.full((QUERIES, k), -1)
        for number, block in enumerate(blocks):
            best = _merged(best, block, number * size, len(gallery), chunk, own)
        similarity, found = (np.asarray(part)[: rows.stop - start] for part in best)
        yield rows, similarity, found


@jax.jit
def _merged(best: tuple[jax.Array, jax.Array], block: Float[Array, "s d"], first, rows, chunk, own):
    """The best of those found before and of a block, whose rows begin at `first`; from `rows` on they are padding."""
    row = first + jnp.arange(len(block))
    similarity = jnp.matmul(chunk, block.T, precision="highest")
    similarity = jnp.where((row < rows) & (row != own[:, None]), similarity, -jnp.inf)
    # What was found before stands first, and top_k keeps the order of equals.
    values = jnp.concatenate([best[0], similarity], 1)
    indices = jnp.concatenate([best[1], jnp.broadcast_to(row, similarity.shape)], 1)
    top, place = jax.lax.top_k(values, best[0].shape[1])
    return top, jnp.take_along_axis(indices, place, 1)


def _padded(rows: Float[np.ndarray, "n d"], count: int) -> Float[np.ndarray, "count d"]:
    """Rows of length 1, and zeros up to so many."""
    return np.pad(unit(rows), [(0, count - len(rows)), (0, 0)])


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of length 1, float32; 0 stays 0."""
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)
