"""Runs the frozen network over images: every image once, in order, whatever the batch size or the device count."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cvsa_jax.data.pipeline import image_batches
from cvsa_jax.data.sources import Source
from cvsa_jax.distributed import to_mesh
from cvsa_jax.monitor import Progress


def extract(
    encode: Callable,
    network: Any,
    mesh: Mesh,
    source: Source,
    indices: np.ndarray,
    *,
    size: int,
    resize: int,
    batch_size: int,
) -> Any:
    """What `encode`, such as a `steps.make_encoder`, gives for `network`, its first argument, and `source`'s images at
    `indices`, as NumPy arrays; the rest is as in `image_batches`."""
    batch_size = -(-batch_size // mesh.size) * mesh.size
    progress = Progress("features", len(indices))
    batches, done = [], 0
    for images, count in image_batches(source, indices, resize=resize, size=size, batch_size=batch_size):
        encoded = encode(network, to_mesh({"images": images}, mesh)["images"])
        batches.append(jax.tree.map(lambda output, count=count: np.asarray(output)[:count], encoded))
        done += count
        progress.update(done)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
