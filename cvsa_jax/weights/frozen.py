"""A trained network from wherever it comes: a pre-training run, a fine-tuned run, or a file of weights."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data.saliency_maps import Maps
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation import external_features
from cvsa_jax.evaluation.comparison import Candidate
from cvsa_jax.evaluation.evaluator import Evaluator
from cvsa_jax.evaluation.labelled import fraction_suffix
from cvsa_jax.evaluation.look import Guide
from cvsa_jax.evaluation.protocol import EvalSpec
from cvsa_jax.models.classifier import Classifier
from cvsa_jax.models.resnet import STAGE_SIZES
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.distributed import replicated
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import as_path, read_json
from cvsa_jax.training import checkpoint
from cvsa_jax.training.finetune_step import empty_classifier
from cvsa_jax.training.resume import read_config
from cvsa_jax.training.state import Network
from cvsa_jax.weights import backbones, files, look_file
from cvsa_jax.weights.nets import architecture

_DEPTHS = ", ".join(map(str, STAGE_SIZES))
SIZE = 224  # px, at which the networks of most files were trained
BATCH = 128


class Frozen(NamedTuple):
    """`model` and `network`, on the mesh; a `Siamese` has the heads of the attention, a `Classifier` of a fine-tuned
    run the classifier, one of a file neither. `config`: that of the run; of a file only the sizes. `about`: where it
    comes from, in words. `classes`: of a fine-tuned run, what its outputs stand for."""

    config: ConfigDict
    model: Siamese | Classifier
    network: Network
    about: str
    classes: tuple[str, ...] = ()

    def spec(self, evaluation: ConfigDict | None = None) -> EvalSpec:
        """How images are evaluated: as `config.eval` says, and else as the network's own run says."""
        if evaluation is None and "mode" not in self.config:
            size = self.config.eval.size or SIZE
            return EvalSpec(size, self.config.eval.resize or round(size * 256 / 224), BATCH, "others")
        return settings.evaluation(self.config.eval if evaluation is None else evaluation, self.config)

    @property
    def pretrained_here(self) -> bool | None:
        """Whether it is a pre-training run, and not what others trained; None of a fine-tuned run, which is both."""
        return None if self.classes else "mode" in self.config and self.config.mode == "pretrain"

    @property
    def heads(self) -> bool:
        """Whether it has the conv heads that the attention is read from."""
        return isinstance(self.model, Siamese)


def load(origin: str, mesh: Mesh) -> Frozen:
    """The network of the workdir of a run, or of a file of weights, whose architecture is read off its tensors.

    Raises:
        UserError: it is neither, cannot be read, or is of an architecture that is not known here.
    """
    if as_path(origin).is_file():
        return _of_file(origin, mesh)
    config = read_config(origin)
    if config.mode == "finetune":
        return _finetuned(origin, config, mesh)
    config, model, network, step = backbones.load_run(origin, mesh)
    return Frozen(config, model, network, f"{origin} at step {step}")


def candidate(
    name: str,
    origin: str,
    source: Source,
    evaluation: ConfigDict,
    mesh: Mesh,
    images: np.ndarray | None = None,
    maps: Maps | None = None,
) -> Candidate:
    """What is measured under a name on `images` of a source (None: all), seen as `config.eval` says: the features of a
    file, as `evaluation.external_features` reads it, or a network, as `load` does. `maps`: of the source, where pooling
    needs them."""
    guide = Guide(None, maps, evaluation.power)
    if external_features.is_features(as_path(origin)):
        size = evaluation.size or SIZE
        spec = EvalSpec(size, size, evaluation.batch_size, evaluation.attention, evaluation.pooling)
        features = external_features.ExternalFeatures(as_path(origin), source, spec, images, guide)
        if spec.pooling == "head" and evaluation.look:
            head = look_file.of_patches(evaluation.look, features.channels, origin)
            features.guide = dataclasses.replace(guide, head=head)
        return Candidate(name, features, None, pretrained_here=False)
    network = load(origin, mesh)
    spec = network.spec(evaluation)
    if spec.pooling == "head" and evaluation.look:
        guide = dataclasses.replace(guide, head=look_file.of_network(evaluation.look, network.network, origin))
    evaluator = Evaluator(network.model, mesh, source, spec, guide)
    here = network.pretrained_here
    data = as_path(origin) / "data.json"
    if here and data.is_file():
        known = str(read_json(data).get("fingerprint", ""))
        kind = known.partition("-")[0] if "-" in known else source.looks_at
        here = known == source.identify(kind)  # else a start from elsewhere, as an ImageNet stage 1 is for birds
    return Candidate(name, evaluator, network.network, pretrained_here=here)


def _of_file(origin: str, mesh: Mesh) -> Frozen:
    weights = files.read(as_path(origin))
    looks = architecture(weights.tensors)
    if looks.sizes != STAGE_SIZES.get(looks.depth) or looks.stem is None:
        raise UserError(f"{origin} looks like {looks.in_words}, which is not known here: depths are {_DEPTHS}")
    model = Classifier(1, looks.depth, looks.width, looks.stem, padding=weights.padding or "symmetric")
    network = backbones.network_of(weights, empty_classifier(model), origin)
    sizes = {"eval": {"size": weights.size, "resize": weights.resize}, "views": {"size": SIZE}}
    return Frozen(ConfigDict(sizes), model, jax.device_put(network, replicated(mesh)), origin)


def _finetuned(origin: str, config: ConfigDict, mesh: Mesh) -> Frozen:
    """Of several fractions of the labels the network that saw the most."""
    folder, names = as_path(origin), ("data.json", "model.json", "report/results.json")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{origin} is no finished fine-tuning: there is no {missing[0]}; the command of the run goes on"
        )
    data, network_settings, results = (read_json(folder / name) for name in names)
    fraction = settings.label_fractions(config)[-1]
    rate = results.get(f"learning_rate{fraction_suffix(fraction)}")
    if rate is None:
        raise UserError(f"{origin}/report/results.json is not that of the fine-tuning: the command of the run makes it")
    final = folder / f"labels_{100 * fraction:.4g}" / f"lr_{rate:g}" / "final"
    model = settings.classifier(ConfigDict(network_settings), data["classes"])
    network, step = checkpoint.restore_item(final, "network", empty_classifier(model), mesh)
    classes = tuple(data["class_names"])
    print(f"loaded {origin}, fine-tuned, step {step}", flush=True)
    return Frozen(config, model, network, f"{origin}, fine-tuned, at step {step}", classes)
