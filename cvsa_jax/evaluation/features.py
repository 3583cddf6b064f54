"""Runs the frozen network over images: every image once, in order, whatever the batch size or the device count."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from cvsa_jax.data.pipeline import image_batches
from cvsa_jax.data.sources import Source
from cvsa_jax.distributed import to_mesh
from cvsa_jax.monitor import Progress
from cvsa_jax.state import Network


class Features(NamedTuple):
    """Of N images, float32: pooled vectors (N, C); unit queries (N, n, D) and keys (N, n, D) of the attention, n = h·w
    cells, None where they were not asked for."""

    pooled: np.ndarray
    queries: np.ndarray | None
    keys: np.ndarray | None


def extract(
    encode: Callable,
    network: Network,
    mesh: Mesh,
    source: Source,
    indices: np.ndarray,
    *,
    size: int,
    resize: int,
    batch_size: int,
    maps: bool = False,
) -> Features:
    """Features of `source`'s images at `indices`; `encode` is a `steps.make_encoder`, the rest as `image_batches`."""
    batch_size = -(-batch_size // mesh.size) * mesh.size
    progress = Progress("features", len(indices))
    rows: list[list[np.ndarray]] = [[], [], []]
    for images, count in image_batches(source, indices, resize=resize, size=size, batch_size=batch_size):
        outputs = encode(network, to_mesh({"images": images}, mesh)["images"])
        for row, output in zip(rows, outputs[: 3 if maps else 1], strict=False):
            row.append(np.asarray(output)[:count])
        progress.update(sum(len(part) for part in rows[0]))
    return Features(*(np.concatenate(row) if row else None for row in rows))
