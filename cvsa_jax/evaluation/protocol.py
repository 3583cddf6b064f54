"""The settings of the evaluation protocols, as plain values."""

from typing import NamedTuple


class Knn(NamedTuple):
    """Numbers of neighbours, among which leave-one-out on the train images chooses, and the votes' temperature."""

    ks: tuple[int, ...]
    temperature: float


class Probe(NamedTuple):
    """The linear probe (see `linear.linear_probe`).

    `fractions`: shares of the train images whose labels are used, each a probe of its own. `seeds`: one probe each, of
    which mean and deviation are reported; they draw the validation part and the order of the batches. `list_seed`: of
    the lists of labelled images. `crop_area`: range of the crops' share of the image in the protocol on augmented
    crops; None is the one on cached features.
    """

    learning_rates: tuple[float, ...]
    epochs: int
    batch_size: int
    validation_share: float
    folds: int
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    list_seed: int
    crop_area: tuple[float, float] | None
