"""Training of the U-Net detector: data, step, start, loop, report."""

import functools
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import inspect, reading
from cvsa_jax.data.sources import Source
from cvsa_jax.report.saliency import write_detector_page
from cvsa_jax.runtime.distributed import check_batch_size, make_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detector import Detector
from cvsa_jax.saliency.detectors.unet import unet
from cvsa_jax.saliency.quality import measure
from cvsa_jax.saliency.store import make_record
from cvsa_jax.saliency.unet.pairs import make_pairs, pair_batches
from cvsa_jax.saliency.unet.step import Geometry, init_state, make_unet_step
from cvsa_jax.training.loop import run_steps
from cvsa_jax.training.resume import begin


def train_unet(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains the detector as `config` says and returns the figures of `report/results.json`; the same call continues
    a run.

    Raises:
        UserError: whatever the user can put right, before the first step where it can be known then.
    """
    if jax.process_count() > 1:
        raise UserError(f"config.mode={config.mode!r} runs in one process, not in {jax.process_count()}")
    # 1) Data: images and masks, decoded once.
    model, mesh = settings.unet(config.model), make_mesh()
    augment = config.augment
    geometry = Geometry(tuple(augment.side), augment.aspect, augment.composite_prob)
    if config.size % model.stride:
        raise UserError(f"config.size={config.size} is not a multiple of the detector's stride {model.stride}")
    check_batch_size(config.batch_size, 1, mesh)
    source = settings.load_source(config.data)
    readable = functools.partial(reading.readable, source, on_bad_image=config.data.on_bad_image)
    train = source.split(config.data.train_split)
    parts = [(source, readable(train[source.has_mask(train)] if source.mask else train))]
    if config.with_procedural:
        drawn = settings.procedural_source(config.data)
        parts.append((drawn, drawn.split("train")))
    held_out = config.data.test_split in source.splits
    measured = readable(source.split(config.data.test_split)) if held_out else parts[0][1]
    if bad := reading.unreadable(source, measured):  # what the figures need, before the first step
        raise reading.unreadable_error(source, bad)
    inspect.check_annotations(source, measured)
    pairs = make_pairs(parts, config.size, workdir / "pairs")

    # 2) Optimiser, the jitted step, and where the training starts.
    optimizer, schedule = settings.optimizer(config, len(pairs[0]))
    colour = settings.photometric(augment.colour)
    train_step = make_unet_step(model, optimizer, mesh, geometry=geometry, colour=colour, seed=config.seed)
    run = begin(
        config,
        workdir,
        mesh,
        functools.partial(init_state, model, optimizer),
        identity={"sources": [[part.fingerprint, part.annotation()] for part, _ in parts], "images": len(pairs[0])},
        total=settings.total_steps(config, len(pairs[0])),
        about=f"{len(pairs[0])} images with masks at {config.size} px",
    )

    # 3) The loop.
    run_steps(run, train_step, pair_batches(pairs, config.batch_size, run.steps, config.seed), schedule)

    # 4) Figures on held-out images.
    if not held_out:
        print(f"{source.name} has no split {config.data.test_split!r}: the figures are of the images trained on")
    records = _records(unet(workdir), source, measured, config.threshold)
    figures = measure(source, measured, records.__getitem__, config.threshold)
    kind = "held-out" if held_out else "training"
    write_detector_page(workdir, figures, f"{len(measured)} {kind} images of {source.name}")
    return figures


def _records(detector: Detector, source: Source, indices: np.ndarray, threshold: float) -> dict[int, np.void]:
    """What a store would hold of the images."""
    records = {}
    for k in range(0, len(indices), detector.batch_size):
        batch = [int(i) for i in indices[k : k + detector.batch_size]]
        maps = detector.detect([detector.prepare(i, reading.load_image(source, i)) for i in batch])
        records |= {i: make_record(d.saliency, d.confidence, threshold)[()] for i, d in zip(batch, maps, strict=True)}
    return records
