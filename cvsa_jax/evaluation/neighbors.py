"""Exact nearest neighbours by cosine, on the device, block by block: no matrix of all pairs is ever made."""

import functools
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
    queries, gallery = unit(queries), unit(gallery)
    k = min(k, len(gallery) - among_themselves)
    size = min(GALLERY, len(gallery))
    blocks = jnp.asarray(np.pad(gallery, [(0, -len(gallery) % size), (0, 0)])).reshape(-1, size, gallery.shape[1])
    search = functools.partial(_search, blocks, len(gallery), k=k)
    for start in range(0, len(queries), QUERIES):
        chunk = queries[start : start + QUERIES]
        own = start + np.arange(QUERIES) if among_themselves else np.full(QUERIES, -1)
        padded = np.pad(chunk, [(0, QUERIES - len(chunk)), (0, 0)])
        similarity, rows = (np.asarray(part)[: len(chunk)] for part in search(padded, own))
        yield slice(start, start + len(chunk)), similarity, rows


@functools.partial(jax.jit, static_argnames="k")
def _search(blocks: Float[Array, "b s d"], rows, chunk, own, *, k: int):
    """The k best of all blocks for each row of the chunk; rows from `rows` on are padding."""
    size = blocks.shape[1]

    def merge(best, block):
        number, vectors = block
        row = number * size + jnp.arange(size)
        similarity = jnp.matmul(chunk, vectors.T, precision="highest")
        similarity = jnp.where((row < rows) & (row != own[:, None]), similarity, -jnp.inf)
        # What was found before stands first, and top_k keeps the order of equals.
        values = jnp.concatenate([best[0], similarity], 1)
        indices = jnp.concatenate([best[1], jnp.broadcast_to(row, similarity.shape)], 1)
        top, place = jax.lax.top_k(values, k)
        return (top, jnp.take_along_axis(indices, place, 1)), None

    nothing = (jnp.full((len(chunk), k), -jnp.inf), jnp.full((len(chunk), k), -1))
    return jax.lax.scan(merge, nothing, (jnp.arange(len(blocks)), blocks))[0]


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of length 1, float32; 0 stays 0."""
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)
