"""The linear probe's training on augmented crops: the frozen network sees a fresh crop of each image in every epoch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from cvsa_jax.data.index import Order
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.probe import MOMENTUM, Fit, Standardization
from cvsa_jax.evaluation.protocol import Probe
from cvsa_jax.runtime.distributed import replicated, to_mesh
from cvsa_jax.runtime.progress import Progress
from cvsa_jax.training.finetune_step import ProbeState, make_probe_step


def fit_crops(
    encode: Callable[[jax.Array], Any],
    mesh: Mesh,
    source: Source,
    train: np.ndarray,
    scale: Standardization,
    probe: Probe,
    *,
    size: int,
    seed: int,
) -> Fit:
    """A `Fit` for `linear_probe` whose rows are those of `train`, indices of the source's images.

    SGD with Nesterov momentum and a cosine schedule over `probe.epochs`, all learning rates side by side on the same
    crops of `size` px; features are standardised with `scale`, that of the centre crops.
    """
    from cvsa_jax.data.pipeline import crop_batches  # and TensorFlow, which takes seconds to import

    def fit(rows: np.ndarray, rates: tuple[float, ...]) -> np.ndarray:
        batch_size = min(probe.batch_size, len(rows))
        # A batch that does not divide by the devices is read by every process, and filled up with rows of no weight.
        fill, place = -batch_size % mesh.size, (jax.process_index(), jax.process_count())
        whole = (0, 1) if fill else place
        total = max(1, round(probe.epochs * len(rows) / batch_size))
        optimizer = optax.sgd(optax.cosine_decay_schedule(1.0, total), MOMENTUM, nesterov=True)
        step = make_probe_step(optimizer, mesh, rates, jnp.asarray(scale.mean), jnp.asarray(scale.std))
        weights = jnp.zeros((len(rates), len(scale.mean) + 1, len(source.classes)))
        state = jax.device_put(ProbeState(weights, optimizer.init(weights)), replicated(mesh))
        order = Order(batch_size, range(total), seed, *whole)
        batches = crop_batches(source, train[rows], order, area=probe.crop_area, size=size)
        progress = Progress("probe", total, per_count=batch_size)
        for done, batch in enumerate(batches, start=1):
            batch["weight"] = np.ones(len(batch["label"]), np.float32)
            if fill:
                batch = {
                    key: _share(np.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1)), *place) for key, x in batch.items()
                }
            batch = to_mesh(batch, mesh)
            state = step(state, {"pooled": encode(batch.pop("image")).pooled} | batch)
            progress.update(done)
        return np.asarray(state.weights)

    return fit


def _share(rows: np.ndarray, index: int, count: int) -> np.ndarray:
    """The part of one of several processes."""
    return np.split(rows, count)[index]
