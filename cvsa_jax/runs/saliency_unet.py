"""Training of the U-Net detector: build, restore, loop, measure."""

import functools
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import pipeline
from cvsa_jax.data.sources import Source
from cvsa_jax.models.resnet import parameter_count
from cvsa_jax.report import html as report
from cvsa_jax.report import pictures
from cvsa_jax.runtime.distributed import check_batch_size, make_mesh, replicated
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detector import Detector
from cvsa_jax.saliency.detectors.network import unet
from cvsa_jax.saliency.quality import measure
from cvsa_jax.saliency.store import make_record
from cvsa_jax.saliency.unet.pairs import make_pairs, pair_batches
from cvsa_jax.saliency.unet.step import init_state, make_unet_step
from cvsa_jax.training import checkpoint
from cvsa_jax.training.loop import run_steps
from cvsa_jax.training.monitor import read_metrics


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
    geometry, colour = settings.geometry(config.augment), settings.photometric(config.augment.colour)
    if config.size % model.stride:
        raise UserError(f"config.size={config.size} is not a multiple of the detector's stride {model.stride}")
    source = settings.load_source(config.data)
    readable = lambda indices: pipeline.readable(source, indices, config.data.on_bad_image)  # noqa: E731
    parts = [(source, readable(source.split(config.data.train_split)))]
    if config.with_procedural:
        drawn = settings.procedural_source(config.data)
        parts.append((drawn, drawn.split("train")))
    pairs = make_pairs(parts, config.size, workdir / "pairs")

    # 2) Model, optimiser, state.
    check_batch_size(config.batch_size, 1, mesh)
    optimizer, schedule = settings.optimizer(config, len(pairs[0]))
    total = settings.total_steps(config, len(pairs[0]))
    train_step = make_unet_step(model, optimizer, mesh, geometry=geometry, colour=colour, seed=config.seed)
    initialize = functools.partial(init_state, model, optimizer)
    state = jax.jit(initialize, out_shardings=replicated(mesh))(jax.random.key(config.seed))
    checkpoints = checkpoint.Checkpointer(workdir)
    identity = {"data": [[part.fingerprint, part.annotation] for part, _ in parts], "images": len(pairs[0])}
    if checkpoints.latest is not None:
        for change in settings.compare_config(config, workdir):
            print(f"changed since this run began: {change}")
        state, meta = checkpoints.restore(state, mesh)
        if meta != identity:
            raise UserError(f"{workdir} was trained on other data: restore the data or take another --workdir")
    settings.write_config(config, workdir)
    start = int(state.step)
    print(
        f"{mesh.size} {mesh.devices.flat[0].platform} device(s), {config.model.dtype}; {len(pairs[0])} images with "
        f"masks at {config.size} px; steps {start} to {total} of {config.batch_size}; "
        f"{parameter_count(state.params) / 1e6:.1f} M parameters",
        flush=True,
    )

    # 3) The loop.
    stream = pair_batches(pairs, batch_size=config.batch_size, steps=range(start, total), seed=config.seed)
    run_steps(
        config, workdir, train_step, state, stream, mesh, checkpoints, total=total, schedule=schedule, meta=identity
    )

    # 4) Figures on held-out images.
    held_out = config.data.test_split in source.splits
    if not held_out:
        print(f"{source.name} has no split {config.data.test_split!r}: the figures are of the images trained on")
    measured = readable(source.split(config.data.test_split)) if held_out else parts[0][1]
    records = _records(unet(workdir), source, measured, config.threshold)
    figures = measure(source, measured, lambda i: records[i], config.threshold)
    _report(workdir, source, figures, measured, held_out)
    return figures


def _records(detector: Detector, source: Source, indices: np.ndarray, threshold: float) -> dict[int, np.void]:
    """What a store would hold of the images."""
    records = {}
    for k in range(0, len(indices), detector.batch_size):
        batch = [int(i) for i in indices[k : k + detector.batch_size]]
        found = detector.detect([detector.prepare(i, pipeline.load_image(source, i)) for i in batch])
        records |= {i: make_record(d.saliency, d.confidence, threshold)[()] for i, d in zip(batch, found, strict=True)}
    return records


def _report(workdir: Path, source: Source, figures: dict, measured: np.ndarray, held_out: bool) -> None:
    folder = workdir / "report"
    report.write_json(folder / "results.json", figures)
    caption = "The run, from metrics.jsonl."
    panels = {"loss": ("train/loss",), "gradient": ("health/grad_norm",), "learning rate": ("train/learning_rate",)}
    curves = pictures.curves_picture(folder / "curves.png", read_metrics(workdir), panels, caption)
    said = f"{len(measured)} {'held-out' if held_out else 'training'} images of {source.name}"
    table = report.Table(("", *figures), [(said, *(f"{value:.3f}" for value in figures.values()))])
    page = report.write_page(folder / "index.html", f"Detector {workdir.name}", [table, "# Curves", curves])
    print(table.as_text() + f"\nreport: {page}")
