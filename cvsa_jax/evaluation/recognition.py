"""kNN, retrieval and the linear probe on features, wherever these come from."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cvsa_jax.evaluation.knn import knn_predict, leave_one_out
from cvsa_jax.evaluation.probe import ProbeResult, linear_probe, warn_at_the_end
from cvsa_jax.evaluation.protocol import Knn, Probe
from cvsa_jax.evaluation.retrieval import retrieval


class Recognition(NamedTuple):
    """`figures`; the pooled features (m, C) of the test images; of the probe with the most labels and the first seed
    the `weights` (C + 1, classes), or None where there was no probe; and the `key` by which `features` pooled."""

    figures: dict[str, float]
    features: np.ndarray
    weights: np.ndarray | None
    key: np.ndarray | None = None


class Labelled(NamedTuple):
    """Features of images, and their labels."""

    x: Float[np.ndarray, "n c"]
    y: Int[np.ndarray, " n"]


def recognized(
    train: Labelled,
    test: Labelled,
    classes: int,
    *,
    knn: Knn,
    probe: Probe | None,
    timed: Callable,
    fit: Callable | None = None,
) -> Recognition:
    """kNN and retrieval, and with `probe` the linear probe, of features of train and test images with their labels.

    Figures: `knn_top1` with the k that leave-one-out on the train images chose (`knn_k`), `knn_top1_of_<k>` with
    each; `recall_at_<k>` and `map_at_r`; `linear_top1`, `linear_top5`, `linear_mean_class` and `learning_rate`, of
    several seeds or lists of labels their mean with `…_std`, of seeds the rates as `learning_rate_<seed>`, and where
    not all labels are used with the suffix of `labelled.Amount`.

    Args:
        timed: part -> a context in which its seconds are counted.
        fit: (x, rows, probe, seed) -> how the probe is fitted, where not on `x` itself: see `probe.linear_probe`.
    """
    (x, y), (x_test, y_test) = train, test
    figures, weights = {}, None
    if knn.ks:
        with timed("knn"):
            chosen = knn.ks[int(leave_one_out(x, y, knn.ks, knn.temperature).argmax())]
            tops = (knn_predict(x, y, x_test, knn.ks, knn.temperature) == y_test).mean(1)
        each = {k: float(top) for k, top in zip(knn.ks, tops, strict=True)}
        figures |= {"knn_top1": each[chosen], "knn_k": chosen}
        figures |= {f"knn_top1_of_{k}": top for k, top in each.items()}
    with timed("retrieval"):
        figures |= retrieval(x_test, y_test)
    largest, most = np.bincount(y).max(), 0
    for amount in probe.amounts if probe else ():
        if not amount.fraction and amount.count >= largest:
            print(f"left out: {amount.title}, since no class has more than {largest} labelled images")
            continue
        draws = 1 if amount.fraction == 1 else probe.draws
        results = []
        for draw, seed in itertools.product(range(draws), probe.seeds):
            rows = amount.rows(y, probe.list_seed, draw)
            with timed("probe"):
                how = fit and fit(x, rows, probe, seed)
                results.append(linear_probe(x[rows], y[rows], x_test, y_test, classes, probe, seed, how))
        ends = f"config.probe.learning_rates with {amount.title}"
        for rate, result in {result.learning_rate: result for result in results}.items():
            warn_at_the_end(ends, rate, result.validation)
        figures |= _summary(results, probe.seeds, amount.suffix)
        if len(rows) > most:
            weights, most = results[0].weights, len(rows)
    return Recognition(figures, x_test, weights)


def _summary(results: list[ProbeResult], seeds: tuple[int, ...], suffix: str) -> dict[str, float]:
    figures = {}
    for name in results[0].figures:
        values = [result.figures[name] for result in results]
        figures[f"linear_{name}{suffix}"] = float(np.mean(values))
        if len(results) > 1:
            figures[f"linear_{name}{suffix}_std"] = float(np.std(values, ddof=1))
    if len(results) == 1:
        return figures | {f"learning_rate{suffix}": results[0].learning_rate}
    if len(results) > len(seeds):  # several lists of labels, each with rates of its own
        return figures
    rates = {f"learning_rate{suffix}_{seed}": result.learning_rate for seed, result in zip(seeds, results, strict=True)}
    return figures | rates
