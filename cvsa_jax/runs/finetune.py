"""Fine-tuning, and the supervised baseline: the whole network learns from labels.

For each fraction of the labels the learning rate is chosen on a validation part of the labelled train images, and the
network is then trained anew on all of them and tested once. All trainings have the same number of steps, so that
fractions differ in their labels alone. Each is a run of its own in the workdir,
`labels_<percent>/lr_<rate>/{validation,final}/`, and continues where it was interrupted.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import inspect, pipeline, reading
from cvsa_jax.data.index import Order
from cvsa_jax.data.sources import Source
from cvsa_jax.data.stored import Squares
from cvsa_jax.data.view_spec import SQUARE
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.accuracy import accuracy, cross_entropy
from cvsa_jax.evaluation.evaluator import Evaluator, chance
from cvsa_jax.evaluation.labelled import fraction_rows, fraction_suffix, validation_rows
from cvsa_jax.evaluation.probe import logits, warn_at_the_end
from cvsa_jax.models.classifier import Classifier
from cvsa_jax.report.columns import percent
from cvsa_jax.report.finetuned import write_finetuned_page
from cvsa_jax.runtime import checks
from cvsa_jax.runtime.distributed import check_batch_size, check_shared, is_first, make_mesh, replicated, together
from cvsa_jax.runtime.errors import Diverged, UserError
from cvsa_jax.runtime.files import AnyPath, write_json_atomically
from cvsa_jax.training.finetune_step import ClassifierState, init_classifier, make_finetune_step
from cvsa_jax.training.loop import run_steps
from cvsa_jax.training.resume import begin, drop_report, write_config
from cvsa_jax.training.state import Network
from cvsa_jax.weights import backbones


@dataclasses.dataclass(frozen=True)
class _Job:
    """What all trainings of one call share; `images`: of the train split, by which epochs are counted."""

    config: ConfigDict
    workdir: AnyPath
    source: Source
    mesh: Mesh
    model: Classifier
    backbone: Network | None  # where training starts; None: random weights
    origin: str
    evaluator: Evaluator
    images: int
    squares: Squares | None  # of the train images; None: from their files


def finetune(config: ConfigDict, workdir: AnyPath) -> dict[str, float]:
    """Fine-tunes as `config` says and returns the figures of `report/results.json`; the same call continues.

    Figures: `finetune_top1`, `…_top5`, `…_mean_class`, `learning_rate`, and for each rate `validation_top1_lr_<rate>`,
    all with the suffix of `labelled.fraction_suffix` where not all labels are used; of the network that saw the most
    labels the localisation figures of CAM and Grad-CAM, `cam_…` and `grad_cam_…`.

    Raises:
        UserError: whatever the user can put right, before the first step where it can be known then.
    """
    # 1) Data, network, and where it starts.
    checks.learning_rates("config.learning_rates", config.learning_rates)
    fractions = settings.label_fractions(config)
    source, mesh = settings.load_source(config.data), make_mesh()
    if source.labels is None:
        raise UserError(f"{source.name} has no labels, which fine-tuning needs")
    check_batch_size(config.batch_size, 1, mesh)
    train, test = reading.readable_splits(source, config.data)
    inspect.check_annotations(source, test)
    inspect.warn_of_faint(source, train)
    architecture, backbone, origin = backbones.load(config.init_from, config.model, mesh)
    check_shared(workdir)
    model = settings.classifier(architecture, len(source.classes))
    checks.choice("config.eval.pooling of a fine-tuned network", config.eval.pooling, ("average",))
    evaluator = Evaluator(model, mesh, source, settings.evaluation(config.eval, config))
    side = SQUARE * config.views.size
    squares = together(lambda: Squares(source, train, side)) if config.data.cache else None
    job = _Job(config, workdir, source, mesh, model, backbone, origin, evaluator, len(train), squares)
    print(f"{source.name}: {len(train)} train and {len(test)} test images, {len(source.classes)} classes", flush=True)

    # 2) One sweep and one final training for each fraction of the labels.
    figures, rows = {}, []
    for fraction in fractions:
        labelled = train[fraction_rows(source.labels[train], fraction, config.seed)]
        folder, suffix = workdir / f"labels_{100 * fraction:.4g}", fraction_suffix(fraction)
        rate, validation = _choose(job, labelled, folder)
        last = folder / f"lr_{rate:g}" / "final"
        network = _train(job, labelled, rate, last)
        weights = _head(network)
        scores = accuracy(logits(weights, evaluator.features(network, test)), source.labels[test])
        scores = {f"finetune_{name}": value for name, value in scores.items()}
        figures |= {f"{name}{suffix}": value for name, value in scores.items()} | {f"learning_rate{suffix}": rate}
        figures |= {f"validation_top1_lr_{r:g}{suffix}": top for r, top in validation.items()}
        rows.append((f"{100 * fraction:.4g} % of the labels ({len(labelled)} images), rate {rate:g}", scores))

    # 3) Where the network that saw the most labels looks, and the page.
    masks = None if source.mask is None else evaluator.masks(test)
    maps = evaluator.class_maps(network, weights, test)
    places = {name: evaluator.localization(values, test, masks) for name, values in maps.items()}
    figures |= {f"{name}_{key}": value for name, scores in places.items() for key, value in scores.items()}
    prior = localization.center_prior_maps(len(test), evaluator.size)
    guesses = {"chance": chance(source, test, masks), "center_prior": evaluator.localization(prior, test, masks)}
    if is_first():
        if not (workdir / "config.json").is_file():
            write_config(config, workdir)
        write_json_atomically(workdir / "data.json", source.described())
        write_json_atomically(workdir / "model.json", architecture.to_dict())
        write_finetuned_page(workdir, source, test, guesses, figures, rows, places, last)
    return figures


def _choose(job: _Job, labelled: np.ndarray, folder: AnyPath) -> tuple[float, dict[float, float]]:
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
            network = _train(job, labelled[~held], rate, folder / f"lr_{rate:g}" / "validation")
        except Diverged as error:
            print(f"learning rate {rate:g} is out: {error}")
            continue
        predicted = logits(_head(network), job.evaluator.features(network, labelled[held]))
        scores[rate] = accuracy(predicted, labels[labelled[held]])["top1"]
        losses[rate] = cross_entropy(predicted, labels[labelled[held]]).mean()
        print(f"learning rate {rate:g}: {percent(scores[rate])} % on {held.sum()} validation images")
    if not scores:
        raise UserError(f"training diverged at each of config.learning_rates={rates}: give lower ones")
    best = min(scores, key=lambda rate: (-scores[rate], losses[rate]))
    warn_at_the_end("config.learning_rates", best, scores)
    return best, scores


def _train(job: _Job, images: np.ndarray, rate: float, workdir: AnyPath) -> Network:
    """The network after training on the images at one learning rate; a finished one is only read."""
    config = job.config.copy_and_resolve_references()
    config.optim.lr = rate
    optimizer, schedule = settings.optimizer(config, job.images)

    def start_from(state: ClassifierState) -> tuple[ClassifierState, str]:
        # Copies, because the step donates its state's buffers, and the next training starts from the same backbone.
        network = state.network.with_parts(jax.tree.map(jnp.copy, job.backbone))
        return state.replace(network=jax.device_put(network, replicated(job.mesh))), job.origin

    run = begin(
        config,
        workdir,
        job.mesh,
        functools.partial(init_classifier, job.model, optimizer, config.views.size),
        identity={
            "fingerprint": job.source.fingerprint,
            "images": images.tolist(),
            "selection": job.source.selection(images),
        },
        total=settings.total_steps(config, job.images),
        about=f"{workdir}: {len(images)} images, learning rate {rate:g}",
        start_from=None if job.backbone is None else start_from,
    )
    if run.steps:
        write_config(job.config, job.workdir)
        drop_report(job.workdir)
    place = jax.process_index(), jax.process_count()
    order = Order(config.batch_size, run.steps, config.seed, *place)
    area = tuple(config.views.crop_area)
    size, squares = config.views.size, job.squares
    stream = pipeline.crop_batches(job.source, images, order, area=area, size=size, squares=squares)
    state, _ = run_steps(run, make_finetune_step(job.model, optimizer, job.mesh), stream, schedule)
    return state.network


def _head(network: Network) -> np.ndarray:
    """(C + 1, classes) of the classifier, biases in the last row."""
    head = network.params["head"]
    return np.concatenate([np.asarray(head["kernel"]), np.asarray(head["bias"])[None]])
