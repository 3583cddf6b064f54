"""Several networks on one data set, side by side: what is measured of each. `comparison_page.py` shows it."""

import dataclasses

import numpy as np

from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.evaluator import Evaluator, chance
from cvsa_jax.evaluation.probe import logits
from cvsa_jax.evaluation.protocol import Knn, Probe
from cvsa_jax.training.state import Network

GUESSES = {"chance": "chance", "center_prior": "centre prior"}  # name in the figures -> title


@dataclasses.dataclass(frozen=True)
class Run:
    """A network under comparison; `title` names it in tables and pictures."""

    title: str
    evaluator: Evaluator
    network: Network


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`figures`: name of a run, `chance` or `center_prior` -> flat names -> numbers; localisation has no prefix where
    the attention is read, and `mean_`, `component_`, `cam_`, `grad_cam_` for the other maps. Name of a run -> of the
    test images `attention` (k, h, w), pooled `features` (k, C) and the probe's `predicted` classes (k,); the last two
    are empty where there are no labels."""

    figures: dict[str, dict[str, float]]
    attention: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    predicted: dict[str, np.ndarray]


def compare(runs: dict[str, Run], train: np.ndarray, test: np.ndarray, *, knn: Knn, probe: Probe) -> Comparison:
    """Recognition (where the source has labels) and localisation (where it has masks or boxes) of each run on the
    same images, and what guessing and the centre give.

    Args:
        runs: name -> run, all of the same source.
    """
    comparison, masks = Comparison({}, {}, {}, {}), None
    for name, run in runs.items():
        evaluator, network = run.evaluator, run.network
        masks = None if evaluator.source.mask is None else evaluator.masks(test)
        maps = evaluator.maps(network, test)
        comparison.attention[name] = maps["attention"]
        figures = comparison.figures[name] = {}
        if evaluator.source.labels is not None:
            found = evaluator.recognition(network, train, test, knn=knn, probe=probe)
            maps |= evaluator.class_maps(network, found.weights, test)
            figures |= found.figures | evaluator.background(network, found.weights, test, probe.list_seed)
            comparison.features[name] = found.features
            comparison.predicted[name] = logits(found.weights, found.features).argmax(1)
        for reading, values in maps.items():
            scores = evaluator.localization(values, test, masks)
            figures |= {reading_prefix(reading) + key: value for key, value in scores.items()}
    prior = localization.center_prior_maps(len(test), evaluator.size)
    comparison.figures["chance"] = chance(evaluator.source, test, masks)
    comparison.figures["center_prior"] = evaluator.localization(prior, test, masks)
    return comparison


def reading_prefix(reading: str) -> str:
    """What stands before the localisation figures of a map."""
    return "" if reading == "attention" else f"{reading}_"
