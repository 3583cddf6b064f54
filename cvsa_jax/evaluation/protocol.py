"""The settings of the evaluation protocols, as plain values that check themselves."""

import dataclasses

from cvsa_jax.evaluation.labelled import Amount
from cvsa_jax.runtime import checks
from cvsa_jax.runtime.errors import UserError

ATTENTIONS = ("others", "mirror")  # what an image's cells are compared with: see `localization`
POOLINGS = ("average", "attention", "head", "saliency")
# What a network says of where to look (see `models.activation.weights`), and what that is.
READINGS = {"attention": "the attention", "mask": "the predicted mask", "component": "the first principal component"}


@dataclasses.dataclass(frozen=True)
class EvalSpec:
    """`config.eval`: `size` of the evaluated images in px; `resize`, the shorter side before the centre crop; images
    that the network sees at once; what the cells of an image are compared with, one of ATTENTIONS; how features are
    pooled, one of POOLINGS; by `attention`, how that is read, one of READINGS, and its `temperature`."""

    size: int
    resize: int
    batch_size: int
    attention: str
    pooling: str = "average"
    reading: str = "component"
    temperature: float = 1.0

    def __post_init__(self):
        checks.at_least("config.eval.size", self.size, 1)
        checks.at_least("config.eval.batch_size", self.batch_size, 1)
        checks.choice("config.eval.attention", self.attention, ATTENTIONS)
        checks.choice("config.eval.pooling", self.pooling, POOLINGS)
        if self.resize < self.size:
            raise UserError(f"config.eval.resize={self.resize} is smaller than the crop of {self.size} px")


@dataclasses.dataclass(frozen=True)
class Knn:
    """Numbers of neighbours, among which leave-one-out on the train images chooses, and the votes' temperature."""

    ks: tuple[int, ...]
    temperature: float

    def __post_init__(self):
        checks.positive("config.eval.knn_temperature", self.temperature)
        if any(k < 1 for k in self.ks):
            raise UserError(f"config.eval.knn={self.ks} must be numbers of neighbours from 1 on")


@dataclasses.dataclass(frozen=True)
class Probe:
    """`config.probe`, the linear probe (see `probe.linear_probe`).

    `fractions`: shares of the train images whose labels are used, each a probe of its own, and `counts`, so many images
    of each class; of what is not all, `draws` lists are drawn. `seeds`: one probe each; they draw the validation part
    and the order of the batches. Mean and deviation over both are reported. `list_seed`: of the lists of labelled
    images. `crop_area`: range of the crops' share of the image in the protocol on augmented crops; None is the one on
    cached features.
    """

    learning_rates: tuple[float, ...]
    epochs: int
    batch_size: int
    validation_share: float
    folds: int
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    list_seed: int
    crop_area: tuple[float, ...] | None
    counts: tuple[int, ...] = ()
    draws: int = 1

    @property
    def amounts(self) -> list[Amount]:
        """Of labels: numbers of images of each class, then shares, each rising."""
        return [Amount(0, count) for count in sorted(self.counts)] + [Amount(f) for f in sorted(self.fractions)]

    def __post_init__(self):
        checks.learning_rates("config.probe.learning_rates", self.learning_rates)
        checks.at_least("config.probe.batch_size", self.batch_size, 1)
        checks.at_least("config.probe.folds", self.folds, 1)
        checks.at_least("config.probe.seeds", len(self.seeds), 1)
        checks.share("config.probe.validation_share", self.validation_share)
        if self.crop_area is not None:
            checks.area("config.probe.crop_area", self.crop_area)
