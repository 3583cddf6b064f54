"""From a config to the plain arguments of the layers below, and the config file of a workdir."""

import json

import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cvsa_jax import losses
from cvsa_jax.data import sources
from cvsa_jax.data.sources import procedural
from cvsa_jax.data.views import KINDS, PASTES, ViewSpec
from cvsa_jax.evaluation.embedding import EMBEDDINGS
from cvsa_jax.evaluation.evaluator import ATTENTIONS, Evaluator
from cvsa_jax.evaluation.protocol import Knn, Probe
from cvsa_jax.models.classifier import Classifier
from cvsa_jax.models.resnet import STAGE_SIZES, STEMS
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.models.unet import CHANNEL_GROUP, UNet
from cvsa_jax.runtime.distributed import AXIS, is_first
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath, as_path, write_json_atomically
from cvsa_jax.saliency.unet.step import MAX_SIDE, Geometry
from cvsa_jax.training import optim
from cvsa_jax.training.photometric import Photometric

# A change of these in an existing workdir would change its parameter tree or its data order. Paths may change: the
# data set is recognised by its fingerprint.
BOUND = (
    *("batch_size", "data", "init_from", "model", "mode", "saliency.detector", "seed", "views", "optim.name"),
    *("size", "with_procedural", "objective", "contrast.queue", "watch.online_probe"),
)
MAX_QUEUE = 65_536  # keys of MoCo, where the data set is not smaller
FREE = ("data.root", "data.test_split", "model.remat")


def load_source(data: ConfigDict) -> sources.Source:
    """The data set of `config.data`."""
    _choice("config.data.on_bad_image", data.on_bad_image, ("stop", "skip"))
    return sources.load(data.kind, data.root, procedural.Spec(**data.procedural))


def procedural_source(data: ConfigDict) -> sources.Source:
    """The procedural set of `config.data.procedural`, whatever the kind of the data set."""
    return sources.load("procedural", "", procedural.Spec(**data.procedural))


def model(settings: ConfigDict) -> Siamese:
    """The network of `config.model`, with BatchNorm over the mesh."""
    _choice("config.model.depth", settings.depth, STAGE_SIZES)
    _choice("config.model.stem", settings.stem, STEMS)
    _choice("config.model.dtype", settings.dtype, ("float32", "bfloat16"))
    return Siamese(**(settings.to_dict() | {"dtype": jnp.dtype(settings.dtype), "axis_name": AXIS}))


def classifier(settings: ConfigDict, classes: int) -> Classifier:
    """The backbone of `config.model` with a classifier, with BatchNorm over the mesh."""
    whole = model(settings)
    return Classifier(classes, whole.depth, whole.width, whole.stem, whole.dtype, whole.axis_name, whole.remat)


def unet(settings: ConfigDict) -> UNet:
    """The saliency detector of `config.model`."""
    _choice("config.model.dtype", settings.dtype, ("float32", "bfloat16"))
    if len(settings.channels) < 2 or any(c <= 0 or c % CHANNEL_GROUP for c in settings.channels):
        raise UserError(
            f"config.model.channels={tuple(settings.channels)}: at least two scales, each a multiple of {CHANNEL_GROUP}"
        )
    return UNet(tuple(settings.channels), jnp.dtype(settings.dtype))


def geometry(augment: ConfigDict) -> Geometry:
    """The random windows and composites of `config.augment`."""
    low, high = augment.side
    if augment.aspect < 1 or not 0 < low <= high <= MAX_SIDE / augment.aspect**0.5:
        raise UserError(
            f"config.augment.side={(low, high)} must be a range within (0, {MAX_SIDE:g} / √aspect], with "
            f"config.augment.aspect={augment.aspect:g} at least 1"
        )
    if not 0 <= augment.composite_prob <= 1:
        raise UserError(f"config.augment.composite_prob={augment.composite_prob:g} does not lie in [0, 1]")
    return Geometry((low, high), augment.aspect, augment.composite_prob)


def view_spec(views: ConfigDict, stride: int) -> ViewSpec:
    """The views of `config.views`; `stride` is that of the backbone, which must divide the view's size."""
    _choice("config.views.kind", views.kind, KINDS)
    _choice("config.views.paste", views.paste, PASTES)
    _choice("config.views.swapped_views", views.swapped_views, (1, 2))
    if views.group < 3:
        raise UserError(f"config.views.group={views.group}: an image and two different backgrounds need at least 3")
    if views.size % stride:
        raise UserError(f"config.views.size={views.size} is not a multiple of the backbone's stride {stride}")
    if not 0 <= views.swap_prob <= 1 or not 0 < views.canvas_min <= 1:
        raise UserError("config.views.swap_prob must lie in [0, 1] and config.views.canvas_min in (0, 1]")
    for key in ("source_area", "paste_area", "crop_area"):
        _check_area(f"config.views.{key}", views[key])
    return ViewSpec(**views)


def photometric(view: ConfigDict) -> Photometric:
    """One view's part of `config.augment`."""
    return Photometric(**view)


def align_form(align: ConfigDict) -> str:
    """The form of the alignment loss."""
    _choice("config.align.form", align.form, losses.FORMS)
    return align.form


def objective(config: ConfigDict) -> losses.Objective:
    """The objective of `config.objective`."""
    _choice("config.objective", config.objective, losses.OBJECTIVES)
    return losses.OBJECTIVES[config.objective]


def temperature(config: ConfigDict) -> float:
    """The temperature of the objectives with negatives."""
    if config.contrast.temperature <= 0:
        raise UserError(f"config.contrast.temperature={config.contrast.temperature:g} must be above 0")
    return config.contrast.temperature


def accumulate_steps(config: ConfigDict) -> int:
    """Micro-batches of a step."""
    if config.accumulate_steps < 1:
        raise UserError(f"config.accumulate_steps={config.accumulate_steps} must be at least 1")
    if config.accumulate_steps > 1 and objective(config).loss == "nt_xent":
        raise UserError(
            f"config.objective={config.objective!r} takes its negatives from the batch, which "
            "config.accumulate_steps would split: take config.model.remat=True, more devices, or moco"
        )
    return config.accumulate_steps


def queue_size(config: ConfigDict, images: int) -> int:
    """Keys of the objective's queue, a multiple of those of a batch (two for each image); 0 where it has none."""
    if objective(config).loss != "info_nce":
        return 0
    keys = 2 * config.batch_size
    if config.contrast.queue is None:
        return max(1, min(MAX_QUEUE, images) // keys) * keys
    if config.contrast.queue < keys or config.contrast.queue % keys:
        raise UserError(
            f"config.contrast.queue={config.contrast.queue} is not a multiple of the {keys} keys of a batch "
            f"(2 · config.batch_size)"
        )
    return config.contrast.queue


def total_steps(config: ConfigDict, images: int) -> int:
    """Steps of a run: `total_steps` where given, else `total_epochs` over `images`."""
    return _steps(config.total_steps, config.total_epochs, images, config.batch_size)


def optimizer(config: ConfigDict, images: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of `config.optim` and its learning-rate schedule."""
    _choice("config.optim.name", config.optim.name, optim.OPTIMIZERS)
    warmup = _steps(config.optim.warmup_steps, config.optim.warmup_epochs, images, config.batch_size)
    total = total_steps(config, images)
    if warmup >= total:
        raise UserError(
            f"the warm-up of {warmup} steps is not shorter than the run of {total}: set config.optim.warmup_steps or "
            "config.optim.warmup_epochs lower, or config.total_steps or config.total_epochs higher"
        )
    schedule = optim.learning_rate(config.optim.lr, config.batch_size, warmup, total)
    return optim.make_optimizer(config.optim.name, schedule, config.optim.weight_decay, config.optim.momentum), schedule


def knn(evaluation: ConfigDict) -> Knn:
    """The kNN of `config.eval`."""
    if any(k < 1 for k in evaluation.knn) or evaluation.knn_temperature <= 0:
        raise UserError(
            f"config.eval.knn={tuple(evaluation.knn)} must be numbers of neighbours from 1 on, and "
            f"config.eval.knn_temperature={evaluation.knn_temperature:g} above 0"
        )
    return Knn(tuple(evaluation.knn), evaluation.knn_temperature)


def probe(config: ConfigDict) -> Probe:
    """The linear probe of `config.probe`."""
    given = config.probe
    check_learning_rates("config.probe.learning_rates", given.learning_rates)
    if given.seeds < 1 or given.folds < 1:
        raise UserError(f"config.probe.seeds={given.seeds} and config.probe.folds={given.folds} must be at least 1")
    _check_area("config.probe.crop_area", given.crop_area)
    return Probe(
        learning_rates=tuple(given.learning_rates),
        epochs=given.total_epochs,
        batch_size=given.batch_size,
        validation_share=_share("config.probe.validation_share", given.validation_share),
        folds=given.folds,
        fractions=label_fractions(config),
        seeds=tuple(range(config.seed, config.seed + given.seeds)),
        list_seed=config.seed,
        crop_area=tuple(given.crop_area) if given.augmented else None,
    )


def label_fractions(config: ConfigDict) -> tuple[float, ...]:
    """`config.label_fractions`, rising."""
    given = tuple(sorted(set(config.label_fractions)))
    if not given or not 0 < given[0] <= given[-1] <= 1:
        raise UserError(f"config.label_fractions={tuple(config.label_fractions)}: give shares in (0, 1]")
    return given


def check_learning_rates(key: str, rates) -> None:
    """UserError unless there are learning rates, each once, none negative."""
    if not len(rates) or len(set(rates)) < len(rates) or min(rates) < 0:
        raise UserError(f"{key}={tuple(rates)}: give different rates, none negative")


def embedding(evaluation: ConfigDict) -> str:
    """What draws features in two dimensions."""
    _choice("config.eval.embedding", evaluation.embedding, EMBEDDINGS)
    return evaluation.embedding


def attention(evaluation: ConfigDict) -> str:
    """What an image's cells are compared with where its attention is read."""
    _choice("config.eval.attention", evaluation.attention, ATTENTIONS)
    return evaluation.attention


def eval_sizes(evaluation: ConfigDict, run: ConfigDict) -> tuple[int, int]:
    """(size, resize) in px of evaluation images: as given, else as the pre-training run had them."""
    size = evaluation.size or run.eval.size or run.views.size
    resize = evaluation.resize or run.eval.resize or round(size * 256 / 224)
    if resize < size:
        raise UserError(f"config.eval.resize={resize} is smaller than the crop of {size} px")
    return size, resize


def evaluator(
    model: Siamese | Classifier, mesh: Mesh, source: sources.Source, evaluation: ConfigDict, run: ConfigDict
) -> Evaluator:
    """What evaluates networks of a model on a source, as `config.eval` says, and else as the run's own config does."""
    size, resize = eval_sizes(evaluation, run)
    return Evaluator(
        model,
        mesh,
        source,
        size=size,
        resize=resize,
        batch_size=evaluation.batch_size,
        attention=attention(evaluation),
    )


def compare_config(config: ConfigDict, workdir: AnyPath) -> list[str]:
    """The harmless differences between a config and that of the run to be continued in `workdir`.

    Raises:
        UserError: a difference would change the run's parameter tree or data order.
    """
    before, now = _flat(read_config(str(workdir)).to_dict()), _flat(config.to_dict())
    changes = [
        f"{key}: {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if refused := [change for change in changes if _is_bound(change.split(":")[0])]:
        raise UserError(
            f"{workdir} holds a run with another config:\n  " + "\n  ".join(refused) + "\nContinue it with its own "
            "values, or give another --workdir"
        )
    return changes


def write_config(config: ConfigDict, workdir: AnyPath) -> None:
    """Writes `workdir/config.json`, in the first process."""
    if is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json_atomically(workdir / "config.json", config.to_dict())


def read_config(workdir: str) -> ConfigDict:
    """The config of a run; UserError where the folder holds none."""
    path = as_path(workdir) / "config.json"
    if not workdir or not path.is_file():
        raise UserError(f"{workdir!r} is not the workdir of a run: there is no {path}")
    return ConfigDict(json.loads(path.read_text()))


def _steps(steps: int | None, epochs: float, images: int, batch_size: int) -> int:
    if steps is not None or epochs == 0:
        return steps or 0
    return max(1, round(epochs * images / batch_size))


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _is_bound(key: str) -> bool:
    covers = lambda keys: any(key == k or key.startswith(f"{k}.") for k in keys)  # noqa: E731
    return covers(BOUND) and not covers(FREE)


def _check_area(key: str, area) -> None:
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise UserError(f"{key}={tuple(area)} is not a range within (0, 1]")


def _share(key: str, value: float) -> float:
    if not 0 < value < 1:
        raise UserError(f"{key}={value:g} does not lie in (0, 1)")
    return value


def _choice(key: str, value, allowed) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value!r} is unknown; take one of {', '.join(str(a) for a in allowed)}")
