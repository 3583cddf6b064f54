"""Runs the frozen network over images: every image once, in order, whatever the batch size or the device count."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cvsa_jax.data.saliency_maps import Mapped, Maps
from cvsa_jax.data.sources import Source
from cvsa_jax.runtime.distributed import to_host, to_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.progress import Progress


def extract(encode: Callable[[Any], Any], mesh: Mesh, source: Source, indices: np.ndarray, **how) -> Any:
    """All that `encoded_batches` gives, in one piece."""
    return jax.tree.map(
        lambda *parts: np.concatenate(parts), *(of for _, of in encoded_batches(encode, mesh, source, indices, **how))
    )


def encoded_batches(
    encode: Callable[[Any], Any],
    mesh: Mesh,
    source: Source,
    indices: np.ndarray,
    *,
    size: int,
    resize: int,
    batch_size: int,
    maps: Maps | None = None,
) -> Iterator[tuple[slice, Any]]:
    """What `encode`, such as a `make_encoder` of a network, gives for the images of `source` at `indices`, as NumPy
    arrays, few at a time, with the place of these; the rest is as in `image_batches`. Each process reads its share of
    each batch, and all get all of the result."""
    from cvsa_jax.data.pipeline import image_batches  # and TensorFlow, which takes seconds to import

    batch_size = -(-batch_size // mesh.size) * mesh.size
    share = batch_size // jax.process_count()
    own = indices[np.arange(len(indices)) % batch_size // share == jax.process_index()]
    stream = image_batches(source, own, resize=resize, size=size, batch_size=share, maps=maps)
    nothing = np.zeros((share, size, size, 3), np.uint8)
    if maps is not None:
        nothing = Mapped(nothing, np.zeros((share, *maps.shape[1:]), np.uint8), np.zeros((share, 4), np.float32))
    progress = Progress("features", len(indices))
    for first in range(0, len(indices), batch_size):
        count = min(batch_size, len(indices) - first)
        # Of the last batch this process may have no image.
        images, _ = next(stream, (nothing, 0))
        encoded = to_host(encode(to_mesh(images, mesh)))
        encoded = jax.tree.map(lambda output, count=count: output[:count], encoded)
        finite = [np.isfinite(output).reshape(count, -1).all(1) for output in jax.tree.leaves(encoded)]
        if len(wrong := np.flatnonzero(~np.all(finite, 0))):
            raise UserError(
                f"the network gives numbers that are not finite, as for {source.names[indices[first + wrong[0]]]}: its "
                "weights are damaged, or config.model.dtype=bfloat16 does not hold its features"
            )
        progress.update(first + count)
        yield slice(first, first + count), encoded


def evenly(indices: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the indices, evenly spaced."""
    return indices[np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(int)]
