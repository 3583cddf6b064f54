"""Several networks on one data set, side by side: what is measured of each. `report/comparison.py` shows it."""

import collections
import dataclasses
from collections.abc import Callable

import numpy as np

from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.evaluator import Evaluator, chance
from cvsa_jax.evaluation.external_features import ExternalFeatures
from cvsa_jax.evaluation.probe import logits
from cvsa_jax.evaluation.protocol import READINGS, Knn, Probe
from cvsa_jax.training.state import Network


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network under comparison, or features without one; `title` names it in tables and pictures. `pretrained_here`:
    it is a run of ours on the images of this comparison, and not what was trained elsewhere or on others."""

    title: str
    evaluator: Evaluator | ExternalFeatures
    network: Network | None
    pretrained_here: bool | None = True

    @property
    def pooled(self) -> str:
        """How its features come from the cells of the last feature map."""
        spec = self.evaluator.spec
        if self.network is None and spec.pooling == "average":
            return "as their file has them"
        ways = {"average": "averaged over the cells", "head": "pooled by a look head", "saliency": "pooled by the maps"}
        return ways.get(spec.pooling) or f"pooled by {READINGS[spec.reading]}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was measured of the candidates, by their names, on the images `test` of their common source.

    `figures`: name of a candidate, `chance` or `center_prior` -> flat names -> numbers; localisation has no prefix
    where the attention is read, and `mean_`, `component_`, `cam_`, … for the other maps. Of the test images `attention`
    (k, h, w), or where nothing trained it another map, which `shown` names; pooled `features` (k, C) and the
    probe's `predicted` classes (k,); the last two are empty where there are no labels.
    """

    candidates: dict[str, Candidate]
    test: np.ndarray
    figures: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    attention: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    shown: dict[str, str] = dataclasses.field(default_factory=dict)
    features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    predicted: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def source(self) -> Source:
        return next(iter(self.candidates.values())).evaluator.source

    @property
    def rows(self) -> list[tuple[str, dict[str, float]]]:
        """Title and figures of each candidate."""
        return [(candidate.title, self.figures[name]) for name, candidate in self.candidates.items()]

    @property
    def perf(self) -> dict[str, float]:
        """Seconds of each part of the evaluation, over all candidates; one evaluator may serve several."""
        evaluators = {id(candidate.evaluator): candidate.evaluator for candidate in self.candidates.values()}
        return dict(
            sum((collections.Counter(evaluator.perf) for evaluator in evaluators.values()), collections.Counter())
        )


def compare(
    candidates: dict[str, Candidate],
    train: np.ndarray,
    test: np.ndarray,
    *,
    knn: Knn,
    probe: Probe,
    keep: Callable[[dict], None] = lambda figures: None,
) -> Comparison:
    """Recognition (where the source has labels) and localisation (where it has masks or boxes) of each network on the
    same images, and what guessing and the centre give.

    Args:
        candidates: name -> candidate, all of the same source.
        keep: takes the figures so far, after each candidate.
    """
    comparison, masks = Comparison(candidates, test), None
    for name, candidate in candidates.items():
        evaluator, network = candidate.evaluator, candidate.network
        print(f"{candidate.title}: maps of where it looks", flush=True)
        needed = evaluator.source.labels is not None or evaluator.spec.pooling == "head"
        key = evaluator.key(network, train) if needed else None
        maps = evaluator.maps(network, test, key)
        if maps:
            masks = None if evaluator.source.mask is None else evaluator.masks(test)
            shown = evaluator.shown if evaluator.shown in maps else "component"
            comparison.attention[name] = maps[shown]
            if shown != "attention":
                comparison.shown[name] = shown
        figures = comparison.figures[name] = {}
        if evaluator.source.labels is not None:
            print(f"{candidate.title}: kNN, retrieval and linear probe", flush=True)
            recognized = evaluator.recognition(network, train, test, knn=knn, probe=probe, key=key)
            if network is not None:
                print(f"{candidate.title}: class activation and other backgrounds", flush=True)
            maps |= evaluator.class_maps(network, recognized.weights, test, recognized.key)
            figures |= recognized.figures | evaluator.background(network, recognized, test, probe.list_seed)
            comparison.features[name] = recognized.features
            comparison.predicted[name] = logits(recognized.weights, recognized.features).argmax(1)
        if maps and not (evaluator.source.mask is None and evaluator.source.box is None):
            print(f"{candidate.title}: localisation by {', '.join(maps)}", flush=True)
        for reading, values in maps.items():
            scores = evaluator.localization(values, test, masks)
            figures |= {reading_prefix(reading) + key: value for key, value in scores.items()}
        keep(comparison.figures)
    comparison.figures["chance"] = chance(comparison.source, test, masks)
    comparison.figures["center_prior"] = {}
    if with_maps := [candidate.evaluator for name, candidate in candidates.items() if name in comparison.attention]:
        prior = localization.center_prior_maps(len(test), with_maps[-1].size)
        comparison.figures["center_prior"] = with_maps[-1].localization(prior, test, masks)
    return comparison


def reading_prefix(reading: str) -> str:
    """What stands before the localisation figures of a map: nothing where the attention is read."""
    return "" if reading == "attention" else f"{reading}_"
