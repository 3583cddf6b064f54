"""From a config to the specs and plain arguments of the layers below. The specs check themselves.

The models are imported where they are needed, so that a wrong setting is answered at once.
"""

import math

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cvsa_jax.data import sources
from cvsa_jax.data.sources import procedural
from cvsa_jax.data.view_spec import ViewSpec
from cvsa_jax.evaluation.embedding import EMBEDDINGS, require_umap
from cvsa_jax.evaluation.protocol import EvalSpec, Knn, Probe
from cvsa_jax.losses import OBJECTIVES, Objective
from cvsa_jax.runtime import checks
from cvsa_jax.runtime.distributed import AXIS
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.training import optim
from cvsa_jax.training.photometric import Photometric

MAX_QUEUE = 65_536  # keys of MoCo, where the data set is not smaller
FEW_STEPS = 10  # of an epoch
FEW_IMAGES = 16  # of a batch, for its statistics


def load_source(data: ConfigDict) -> sources.Source:
    """The data set of `config.data`."""
    checks.choice("config.data.on_bad_image", data.on_bad_image, ("stop", "skip"))
    source = sources.load(data.kind, data.root, procedural.Spec(**data.procedural), data.fingerprint)
    if source.left_out:
        counts = (f"{len(names)} {reason} ({some(names, 2)})" for reason, names in source.left_out.items())
        print(f"{source.name}: {len(source)} images; left out: {'; '.join(counts)}")
    return source


def procedural_source(data: ConfigDict) -> sources.Source:
    """The procedural set of `config.data.procedural`, whatever the kind of the data set."""
    return sources.load("procedural", "", procedural.Spec(**data.procedural))


def model(settings: ConfigDict):
    """The `Siamese` network of `config.model`, with BatchNorm over the mesh."""
    from cvsa_jax.models.resnet import PADDINGS, STAGE_SIZES, STEMS
    from cvsa_jax.models.siamese import Siamese

    checks.choice("config.model.depth", settings.depth, STAGE_SIZES)
    checks.choice("config.model.stem", settings.stem, STEMS)
    checks.choice("config.model.padding", settings.padding, PADDINGS)
    return Siamese(**(settings.to_dict() | {"dtype": _dtype(settings), "axis_name": AXIS}))


def classifier(settings: ConfigDict, classes: int):
    """A `Classifier`: the backbone of `config.model` with a classifier, with BatchNorm over the mesh."""
    from cvsa_jax.models.classifier import Classifier

    whole = model(settings)
    shape = whole.depth, whole.width, whole.stem, whole.dtype, whole.axis_name, whole.remat, whole.padding
    return Classifier(classes, *shape)


def unet(settings: ConfigDict):
    """The saliency detector, a `UNet`, of `config.model`."""
    from cvsa_jax.models.unet import CHANNEL_GROUP, UNet

    if len(settings.channels) < 2 or any(c <= 0 or c % CHANNEL_GROUP for c in settings.channels):
        raise UserError(
            f"config.model.channels={tuple(settings.channels)}: at least two scales, each a multiple of {CHANNEL_GROUP}"
        )
    return UNet(tuple(settings.channels), _dtype(settings))


def view_spec(config: ConfigDict, stride: int) -> ViewSpec:
    """The views of `config.views`; `stride` is that of the backbone."""
    spec = ViewSpec(**config.views, threshold=config.saliency.threshold)
    spec.check_stride(stride)
    return spec


def step_spec(config: ConfigDict, images: int):
    """The `StepSpec` of a pre-training on so many images."""
    from cvsa_jax.training.step import Alignment, StepSpec

    return StepSpec(
        objective=objective(config),
        temperature=config.contrast.temperature,
        align=Alignment(**config.align),
        augment=(photometric(config.augment.view1), photometric(config.augment.view2)),
        tau=optim.target_decay(target_tau(config), total_steps(config, images), config.target.cosine),
        seed=config.seed,
        accumulate=config.accumulate_steps,
    )


def target_tau(config: ConfigDict) -> float:
    """The coefficient of the target's moving average at step 0, scaled to the batch so that it is as fast by images as
    at the reference batch (Busbridge et al. 2023, arXiv 2307.13813)."""
    checks.probability("config.target.tau", config.target.tau)
    checks.at_least("config.target.reference_batch", config.target.reference_batch, 1)
    return config.target.tau ** (config.batch_size / config.target.reference_batch)


def target_half_life(config: ConfigDict) -> str:
    """How fast the target follows, in words."""
    tau = target_tau(config)
    images = round(math.log(0.5) / math.log(tau) * config.batch_size) if 0 < tau < 1 else 0
    halves = f"; after {images:,} images, half of the target network is new" if images else ""
    return f"target: tau {tau:.6g} at step 0{halves}"


def photometric(view: ConfigDict) -> Photometric:
    """One view's part of `config.augment`."""
    return Photometric(**view)


def objective(config: ConfigDict) -> Objective:
    """The objective of `config.objective`."""
    checks.choice("config.objective", config.objective, OBJECTIVES)
    return OBJECTIVES[config.objective]


def state_parts(config: ConfigDict, objective: Objective, images: int, classes: int) -> dict[str, int | bool]:
    """What the state of a pre-training holds besides the networks, as `init_state` takes it."""
    return {
        "target": objective.target,
        "queue": queue_size(config, images),
        "classes": classes if config.watch.online_probe else 0,
        "balanced": config.align.balance == "gradient" and config.align.weight > 0,
    }


def queue_size(config: ConfigDict, images: int) -> int:
    """Keys of the objective's queue, a multiple of those of a batch (two for each image); 0 where it has none."""
    if not objective(config).queue:
        return 0
    keys = 2 * config.batch_size
    if config.contrast.queue is None:
        return max(1, min(MAX_QUEUE, images) // keys) * keys
    if config.contrast.queue < keys or config.contrast.queue % keys:
        raise UserError(
            f"config.contrast.queue={config.contrast.queue} is not a multiple of the {keys} keys of a batch "
            f"(2 · config.batch_size)"
        )
    if config.contrast.queue > max(2 * images, keys):
        raise UserError(
            f"config.contrast.queue={config.contrast.queue} is more than the {2 * images} keys of an epoch, so that an "
            "image would meet its own earlier keys as negatives: set it lower"
        )
    return config.contrast.queue


def total_steps(config: ConfigDict, images: int) -> int:
    """Steps of a run: `total_steps` where given, else `total_epochs` over `images`."""
    return _steps(config.total_steps, config.total_epochs, images, config.batch_size)


def notes(config: ConfigDict, images: int, begins: bool = True) -> list[str]:
    """What a pre-training on so many images says at its start: warnings, of which some are of one that `begins`, and
    how fast the target follows."""
    said = []
    group = config.views.group
    smaller = max(-(-FEW_IMAGES // group), images // FEW_STEPS // group) * group
    if (steps := images // config.batch_size) < FEW_STEPS and smaller < config.batch_size:
        said.append(
            f"warning: an epoch has {steps} steps of config.batch_size={config.batch_size}; a batch of {smaller}, with "
            f"which the learning rate falls in proportion, suits {images} images better"
        )
    if begins and config.views.kind == "saliency_swap" and not config.init_from:
        said.append(
            f"note: the run begins from random weights, with {config.optim.name}, for {total_steps(config, images):,} "
            "steps. If you have weights from elsewhere, pass them as --config.init_from (a run, or a file of weights); "
            "otherwise train for as many steps as both stages would take"
        )
    return [*said, target_half_life(config)] if objective(config).target else said


def optimizer(config: ConfigDict, images: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of `config.optim` and its learning-rate schedule."""
    checks.choice("config.optim.predictor", config.optim.predictor, ("scheduled", "fixed"))
    warmup = _steps(config.optim.warmup_steps, config.optim.warmup_epochs, images, config.batch_size)
    total = total_steps(config, images)
    if warmup >= total:
        raise UserError(
            f"the warm-up of {warmup} steps is not shorter than the run of {total}: set config.optim.warmup_steps or "
            "config.optim.warmup_epochs lower, or config.total_steps or config.total_epochs higher"
        )
    schedule = optim.learning_rate(config.optim.lr, config.batch_size, warmup, total)
    given = {key: config.optim[key] for key in ("name", "weight_decay", "momentum", "nesterov", "decay")}
    fixed = config.optim.lr * config.batch_size / 256 if config.optim.predictor == "fixed" else None
    trained = None  # all
    if config.mode == "pretrain" and untrained_parts(config):
        trained = trained_parts(config)
    return optim.make_optimizer(schedule, optim.OptimizerSpec(**given, predictor_rate=fixed), trained), schedule


def trained_parts(config: ConfigDict) -> tuple[str, ...]:
    """The parts of the online network that a pre-training gives a gradient."""
    from cvsa_jax.models import siamese

    return siamese.trained_parts(predictor=objective(config).predictor, aligned=config.align.weight > 0)


def untrained_parts(config: ConfigDict) -> tuple[str, ...]:
    """The parts that it does not: they stay as they were initialised."""
    from cvsa_jax.models.siamese import PARTS

    trained = trained_parts(config)
    return tuple(part for part in PARTS if part not in trained)


def knn(evaluation: ConfigDict) -> Knn:
    """The kNN of `config.eval`."""
    return Knn(tuple(evaluation.knn), evaluation.knn_temperature)


def probe(config: ConfigDict) -> Probe:
    """The linear probe of `config.probe`."""
    return Probe(
        learning_rates=tuple(config.probe.learning_rates),
        epochs=config.probe.total_epochs,
        batch_size=config.probe.batch_size,
        validation_share=config.probe.validation_share,
        folds=config.probe.folds,
        fractions=label_fractions(config),
        counts=tuple(sorted(set(config.label_counts))),
        draws=config.label_draws,
        seeds=tuple(range(config.seed, config.seed + config.probe.seeds)),
        list_seed=config.seed,
        crop_area=tuple(config.probe.crop_area) if config.probe.augmented else None,
    )


def label_fractions(config: ConfigDict) -> tuple[float, ...]:
    """`config.label_fractions`, rising."""
    fractions = tuple(sorted(set(config.label_fractions)))
    if not fractions or not 0 < fractions[0] <= fractions[-1] <= 1:
        raise UserError(f"config.label_fractions={tuple(config.label_fractions)}: give shares in (0, 1]")
    return fractions


def embedding(evaluation: ConfigDict) -> str:
    """What draws features in two dimensions."""
    checks.choice("config.eval.embedding", evaluation.embedding, EMBEDDINGS)
    if evaluation.embedding == "umap":
        require_umap()
    return evaluation.embedding


def evaluation(settings: ConfigDict, run: ConfigDict) -> EvalSpec:
    """How images are evaluated: as `config.eval` says, and else as the config of the pre-training `run` does."""
    size = settings.size or run.eval.size or run.views.size
    # The run's own resize belongs to the run's own size.
    resize = settings.resize or (not settings.size and run.eval.resize) or round(size * 256 / 224)
    reading, temperature = "component", 1.0  # of what has no alignment
    if "align" in run and run.align.weight > 0:
        reading = "mask" if run.align.form == "mask_head" else "attention"
        temperature = run.align.temperature
    checks.positive("config.eval.power", settings.power)
    return EvalSpec(size, resize, settings.batch_size, settings.attention, settings.pooling, reading, temperature)


def _dtype(settings: ConfigDict) -> jnp.dtype:
    checks.choice("config.model.dtype", settings.dtype, ("float32", "bfloat16"))
    return jnp.dtype(settings.dtype)


def _steps(steps: int | None, epochs: float, images: int, batch_size: int) -> int:
    if steps is not None or epochs == 0:
        return steps or 0
    return max(1, round(epochs * images / batch_size))
