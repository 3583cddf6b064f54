"""The look head: where the object is, read off a frozen network's cells by ridge regression.

A linear function from the features of a cell to the value of the image's saliency map there. It is solved in closed
form from sums over the cells of images with maps, of which no more than a batch is in memory at a time. No class label
takes part: its settings are chosen by what a part of the images shows that was left out of the fit.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from cvsa_jax.data.resample import cell_means, stretched
from cvsa_jax.data.saliency_maps import Maps
from cvsa_jax.runtime.errors import UserError

RIDGES = tuple(float(10.0**exponent) for exponent in range(-5, 3))  # over the variance of a feature
POWERS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
ON_OBJECT = 0.85  # share of the weights that the power brings there
OBJECT = 0.5  # of a map's range, from which on a cell is object
FOLDS = 5
KEPT = 128  # images on which the power is chosen
CHUNK = 256  # maps that are read at a time


class LookHead(NamedTuple):
    """`weight` (C,) and `bias`: of a cell, features · weight + bias is about the value there of the image's map, scaled
    to [0, 1]. `power`: to which it weights the cells, see `activation.sharpened`. How they were found: `ridge`, and
    `explained`, the share of the variance of the maps' cells that it explains in images that it was not fitted to."""

    weight: Float[np.ndarray, " c"]
    bias: float
    power: float
    ridge: float = 0.0
    explained: float = 0.0

    @property
    def vector(self) -> Float[np.ndarray, " c2"]:
        """Weight, bias and power in one, as `activation.looked` takes it."""
        return np.float32([*self.weight, self.bias, self.power])

    def __call__(self, cells: Float[np.ndarray, "*b c"]) -> Float[np.ndarray, "*b"]:
        """What it reads off cells."""
        return cells @ self.weight + self.bias


@dataclasses.dataclass(frozen=True)
class Guide:
    """What says where an image shows something, besides the network: a `head`, or `maps` of the whole source, which
    weight the cells themselves, to a `power`, or from which a head is fitted to the train images."""

    head: LookHead | None = None
    maps: Maps | None = None
    power: float = 2.0


NO_GUIDE = Guide()


class Moments:
    """Sums over cells, from which every ridge regression of their values on their features follows: `products` (C + 2,
    C + 2) float64 of all pairs of the features, 1 and the value."""

    def __init__(self, products: Float[np.ndarray, "c2 c2"]):
        self.products = products

    def add(self, features: Float[np.ndarray, "n c"], values: Float[np.ndarray, " n"]) -> None:
        """Takes n more cells."""
        rows = np.concatenate([features, np.ones((len(features), 1)), values[:, None]], 1).astype(np.float64)
        self.products += rows.T @ rows

    @property
    def spread(self) -> float:
        """Sum of the squared differences of the values from their mean."""
        count, total, squares = self.products[-2, -2], self.products[-2, -1], self.products[-1, -1]
        return float(squares - total**2 / count)

    def solution(self, ridge: float) -> Float[np.ndarray, " c1"]:
        """Weights w and bias that minimise the mean of (value − features · w − bias)² + ridge · Σ (wᵢ · the standard
        deviation of feature i)². A feature that does not vary gets the weight 0."""
        mean = self.products[-2] / self.products[-2, -2]
        covariance = self.products / self.products[-2, -2] - np.outer(mean, mean)
        variance = np.diag(covariance)[:-2]
        varies = variance > 1e-10 * mean[:-2] ** 2
        weights = np.zeros(len(variance))
        if varies.any():
            deviation = np.sqrt(variance[varies])
            correlation = covariance[:-2, :-2][np.ix_(varies, varies)] / np.outer(deviation, deviation)
            correlation[np.diag_indices_from(correlation)] += ridge
            with_value = covariance[:-2, -1][varies] / deviation
            weights[varies] = scipy.linalg.solve(correlation, with_value, assume_a="pos") / deviation
        return np.append(weights, mean[-1] - weights @ mean[:-2])

    def error(self, solution: Float[np.ndarray, " c1"]) -> float:
        """Sum of the squared errors of weights and bias on these cells."""
        residual = np.append(-solution, 1.0)
        return float(residual @ self.products @ residual)


def fit(cells: Iterable[tuple[slice, np.ndarray]], maps: Maps, indices: np.ndarray) -> LookHead:
    """The head of images with maps.

    Args:
        cells: features (b, h, w, C) of whole images, few at a time, and their place among `indices`.
        maps: of a whole source, each of which is scaled to its own range: detectors differ in how faint theirs are.
        indices: the images, two or more, see `informative`.

    Raises:
        UserError: no feature differs from one cell to another.
    """
    if len(indices) < 2:
        raise UserError(
            f"a look head is fitted to two images or more whose map shows anything, and {len(indices) or 'none'} does"
        )
    folds = np.random.default_rng(0).permutation(len(indices)) % min(FOLDS, len(indices))
    parts: list[Moments] = []
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for places, features in cells:
        b, h, w, c = features.shape
        parts = parts or [Moments(np.zeros((c + 2, c + 2))) for _ in range(folds.max() + 1)]
        values = cell_means(stretched(maps[indices[places]], np), np.tile(np.float32([0, 0, 1, 1]), (b, 1)), h, w, np)
        for fold, moments in enumerate(parts):
            rows = folds[places] == fold
            moments.add(features[rows].reshape(-1, c), values[rows].ravel())
        for k in np.flatnonzero(folds[places] == 0)[: KEPT - len(kept)]:
            kept.append((features[k].astype(np.float32), values[k]))
    total = Moments(sum(part.products for part in parts))
    others = [Moments(total.products - part.products) for part in parts]
    if not np.any(others[0].solution(1.0)[:-1]):
        raise UserError("the features are the same in all cells of all images: there is nothing to read off them")
    errors = [
        sum(part.error(rest.solution(ridge)) for part, rest in zip(parts, others, strict=True)) for ridge in RIDGES
    ]
    ridge = RIDGES[int(np.argmin(errors))]
    power = _power(_head(others[0], ridge), kept)
    explained = 1 - min(errors) / sum(part.spread for part in parts)
    return _head(total, ridge)._replace(power=power, ridge=ridge, explained=float(explained))


def informative(maps: Maps, indices: np.ndarray) -> np.ndarray:
    """Those of the indices whose map is not the same everywhere, so that there is something to learn from it."""
    chunks = np.array_split(indices, -(-len(indices) // CHUNK)) if len(indices) else []
    varies = [np.ptp(maps[chunk].reshape(len(chunk), -1), axis=1) > 0 for chunk in chunks]
    return indices[np.concatenate([np.zeros(0, bool), *varies])]


def _head(moments: Moments, ridge: float) -> LookHead:
    *weight, bias = moments.solution(ridge)
    return LookHead(np.float32(weight), float(bias), POWERS[0])


def _power(head: LookHead, kept: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The smallest of POWERS with which at least the share ON_OBJECT of the weights falls on the object in images that
    the head was not fitted to; else the largest."""
    cells, values = (np.stack(parts) for parts in zip(*kept, strict=True))
    objects = values >= OBJECT * values.max((1, 2), keepdims=True)
    above = np.maximum(head(cells), 0)
    for power in POWERS:
        weights = above**power
        total = np.maximum(weights.sum((1, 2)), 1e-12)
        if ((weights * objects).sum((1, 2)) / total).mean() >= ON_OBJECT:
            return power
    return POWERS[-1]
