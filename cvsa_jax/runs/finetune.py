"""Fine-tuning, and the supervised baseline: the whole network learns from labels.

For each fraction of the labels the learning rate is chosen on a validation part of the labelled train images, and the
network is then trained anew on all of them and tested once. All trainings have the same number of steps, so that
fractions differ in their labels alone. Each is a run of its own in the workdir,
`labels_<percent>/lr_<rate>/{validation,final}/`, and continues where it was interrupted.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import pipeline
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.accuracy import accuracy, cross_entropy
from cvsa_jax.evaluation.evaluator import Evaluator, center_prior, chance
from cvsa_jax.evaluation.labelled import fraction_rows, fraction_suffix, validation_rows
from cvsa_jax.evaluation.probe import logits
from cvsa_jax.models.classifier import Classifier
from cvsa_jax.models.resnet import parameter_count
from cvsa_jax.report import html as report
from cvsa_jax.report import pictures
from cvsa_jax.runtime.distributed import check_batch_size, check_shared, is_first, make_mesh, replicated
from cvsa_jax.runtime.errors import Diverged, UserError
from cvsa_jax.runtime.files import AnyPath
from cvsa_jax.training import checkpoint
from cvsa_jax.training.finetune_step import init_classifier, make_finetune_step
from cvsa_jax.training.loop import run_steps
from cvsa_jax.training.monitor import read_metrics
from cvsa_jax.training.state import Network
from cvsa_jax.weights import backbones

_PANELS = {
    "loss": ("train/loss",),
    "accuracy on its batches": ("train/top1",),
    "learning rate": ("train/learning_rate",),
}
_COLUMNS = {"top1": "top-1", "top5": "top-5", "mean_class": "mean per class"}
_PLACES = {"pointing_game": "pointing game", "mask_iou_best": "best IoU", "max_box_acc_v2": "MaxBoxAccV2"}


class Job(NamedTuple):
    """What all trainings of one call share."""

    config: ConfigDict
    source: Source
    mesh: Mesh
    model: Classifier
    backbone: Network | None  # where training starts; None: random weights
    evaluator: Evaluator
    images: int  # of the train split, by which epochs are counted


def finetune(config: ConfigDict, workdir: AnyPath) -> dict[str, float]:
    """Fine-tunes as `config` says and returns the figures of `report/results.json`; the same call continues.

    Figures: `finetune_top1`, `…_top5`, `…_mean_class`, `learning_rate`, and for each rate `validation_top1_lr_<rate>`,
    all with the suffix of `labelled.fraction_suffix` where not all labels are used; of the network that saw the most
    labels the localisation figures of CAM and Grad-CAM, `cam_…` and `grad_cam_…`.

    Raises:
        UserError: whatever the user can put right, before the first step where it can be known then.
    """
    # 1) Data, network, and where it starts.
    settings.check_learning_rates("config.learning_rates", config.learning_rates)
    fractions = settings.label_fractions(config)
    source, mesh = settings.load_source(config.data), make_mesh()
    if source.labels is None:
        raise UserError(f"{source.name} has no labels, which fine-tuning needs")
    check_batch_size(config.batch_size, 1, mesh)
    train, test = (
        pipeline.readable(source, source.split(name), config.data.on_bad_image)
        for name in (config.data.train_split, config.data.test_split)
    )
    architecture, backbone, origin = backbones.load(config.init_from, config.model, mesh)
    check_shared(workdir)
    model = settings.classifier(architecture, len(source.classes))
    evaluator = settings.evaluator(model, mesh, source, config.eval, config)
    job = Job(config, source, mesh, model, backbone, evaluator, len(train))
    print(
        f"{mesh.size} {mesh.devices.flat[0].platform} device(s), {architecture.dtype}; {source.name}: {len(train)} "
        f"train and {len(test)} test images, {len(source.classes)} classes; backbone from {origin}",
        flush=True,
    )

    # 2) One sweep and one final training for each fraction of the labels.
    figures, rows = {}, []
    for fraction in fractions:
        labelled = train[fraction_rows(source.labels[train], fraction, config.seed)]
        folder = workdir / f"labels_{100 * fraction:.4g}"
        rate, validation = _choose(job, labelled, folder)
        network, final = _train(job, labelled, rate, folder / f"lr_{rate:g}" / "final")
        weights = _head(network)
        found = accuracy(logits(weights, evaluator.features(network, test)), source.labels[test])
        suffix = fraction_suffix(fraction)
        figures |= {f"finetune_{name}{suffix}": value for name, value in found.items()}
        figures |= {f"learning_rate{suffix}": rate}
        figures |= {f"validation_top1_lr_{r:g}{suffix}": top for r, top in validation.items()}
        rows.append((f"{100 * fraction:.4g} % of the labels ({len(labelled)} images), rate {rate:g}", found))

    # 3) Where the network that saw the most labels looks, and the page.
    masks = None if source.mask is None else evaluator.masks(test)
    places = {
        name: evaluator.localization(maps, test, masks)
        for name, maps in evaluator.class_maps(network, weights, test).items()
    }
    figures |= {f"{name}_{key}": value for name, scores in places.items() for key, value in scores.items()}
    if is_first():
        settings.write_config(config, workdir)
        _write_page(workdir, source, test, figures, rows, places, masks, final)
    return figures


def _choose(job: Job, labelled: np.ndarray, folder: AnyPath) -> tuple[float, dict[float, float]]:
    """The learning rate that is best on a validation part of the labelled images (of equals, that of the lower
    cross-entropy), and each one's accuracy there. With one rate, or one image a class, nothing is tried, and the middle
    rate of the list is taken."""
    config, labels = job.config, job.source.labels
    rates = tuple(config.learning_rates)
    held = validation_rows(labels[labelled], config.validation_share, config.seed)
    if len(rates) == 1 or not held.any():
        return rates[(len(rates) - 1) // 2], {}
    scores, losses = {}, {}
    for rate in rates:
        try:
            network, _ = _train(job, labelled[~held], rate, folder / f"lr_{rate:g}" / "validation")
        except Diverged as error:
            print(f"learning rate {rate:g} is out: {error}")
            continue
        found = logits(_head(network), job.evaluator.features(network, labelled[held]))
        scores[rate] = accuracy(found, labels[labelled[held]])["top1"]
        losses[rate] = cross_entropy(found, labels[labelled[held]]).mean()
        print(f"learning rate {rate:g}: {report.percent(scores[rate])} % on {held.sum()} validation images")
    if not scores:
        raise UserError(f"training diverged at each of config.learning_rates={rates}: give lower ones")
    return min(scores, key=lambda rate: (-scores[rate], losses[rate])), scores


def _train(job: Job, images: np.ndarray, rate: float, workdir: AnyPath) -> tuple[Network, AnyPath]:
    """The network after training on the images at one learning rate, and the workdir; finished ones are only read."""
    config = job.config.copy_and_resolve_references()
    config.optim.lr = rate
    optimizer, schedule = settings.optimizer(config, job.images)
    total = settings.total_steps(config, job.images)
    initialize = functools.partial(init_classifier, job.model, optimizer, config.views.size)
    state = jax.jit(initialize, out_shardings=replicated(job.mesh))(jax.random.key(config.seed))
    checkpoints = checkpoint.Checkpointer(workdir)
    meta = {"fingerprint": job.source.fingerprint, "images": images.tolist()}
    if checkpoints.latest is not None:
        for change in settings.compare_config(config, workdir):
            print(f"changed since {workdir} began: {change}")
        state, found = checkpoints.restore(state, job.mesh)
        if found != meta:
            raise UserError(f"{workdir} was trained on other data: restore the data or take another --workdir")
    elif job.backbone is not None:
        state = state.replace(network=_with_backbone(state.network, job.backbone, job.mesh))
    settings.write_config(config, workdir)
    start = int(state.step)
    print(
        f"{workdir}: {len(images)} images, steps {start} to {total} of {config.batch_size}, learning rate {rate:g}, "
        f"{parameter_count(state.network.params) / 1e6:.1f} M parameters",
        flush=True,
    )
    stream = pipeline.crop_batches(
        job.source,
        images,
        area=tuple(config.views.crop_area),
        size=config.views.size,
        batch_size=config.batch_size,
        steps=range(start, total),
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    step = make_finetune_step(job.model, optimizer, job.mesh)
    state, _ = run_steps(
        config, workdir, step, state, stream, job.mesh, checkpoints, total=total, schedule=schedule, meta=meta
    )
    return state.network, workdir


def _with_backbone(network: Network, backbone: Network, mesh: Mesh) -> Network:
    # Copies, because the step donates its state's buffers, and the next training starts from the same backbone.
    copy = jax.tree.map(jnp.copy, backbone)
    merged = Network(network.params | copy.params, network.batch_stats | copy.batch_stats)
    return jax.device_put(merged, replicated(mesh))


def _head(network: Network) -> np.ndarray:
    """(C + 1, classes) of the classifier, biases in the last row."""
    head = network.params["head"]
    return np.concatenate([np.asarray(head["kernel"]), np.asarray(head["bias"])[None]])


def _write_page(workdir: AnyPath, source: Source, test, figures, rows, places, masks, final: AnyPath) -> None:
    folder = workdir / "report"
    report.write_json(folder / "results.json", figures)
    guess = chance(source, test, masks)
    cells = [(title, *(report.percent(found[key]) for key in _COLUMNS)) for title, found in rows]
    cells.append(("chance", report.percent(guess["linear_top1"]), "–", "–"))
    blocks = [report.Table(("%", *_COLUMNS.values()), cells)]
    columns = [key for key in _PLACES if key in places["cam"]]
    if columns:
        titles = {"cam": "CAM of the predicted class", "grad_cam": "Grad-CAM of the predicted class"}
        seen = [(titles[name], scores) for name, scores in places.items()] + [("chance", guess)]
        seen += [] if masks is None else [("centre prior", center_prior(masks))]
        shares = [(title, *(report.percent(scores.get(key)) for key in columns)) for title, scores in seen]
        blocks.append(report.Table(("%", *(_PLACES[key] for key in columns)), shares))
    curves = pictures.curves_picture(
        folder / "curves.png", read_metrics(final), _PANELS, f"The training that was tested last, {final}."
    )
    said = (
        f"{len(test)} test images of {source.name}; learning rates were chosen on a part of the labelled train images."
    )
    page = report.write_page(folder / "index.html", f"Fine-tuning {workdir.name}", [said, *blocks, "# Curves", curves])
    print("\n" + "\n\n".join(block.as_text() for block in blocks) + f"\n\n{said}\nreport: {page}")
