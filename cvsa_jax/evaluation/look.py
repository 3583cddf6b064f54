"""The look head: where the object is, read off a frozen network's cells by ridge regression.

A linear function from the features of a cell to the value of the image's saliency map there. It is solved in closed
form from sums over the cells of images with maps, of which no more than a batch is in memory at a time. No class label
takes part: ridge and power are chosen on images that were left out of the fit.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from cvsa_jax.data.resample import LEAST_RANGE, cell_means, stretched
from cvsa_jax.data.saliency_maps import Maps
from cvsa_jax.runtime.errors import UserError

RIDGES = tuple(float(10.0**exponent) for exponent in range(-5, 3))  # over the variance of a feature
POWERS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
ON_OBJECT = 0.85  # share of the weights that the power brings there
OBJECT = 0.5  # of a map's range, from which on a cell is object
FOLDS = 5
KEPT = 128  # images, at most, on which the power is chosen
_ROUNDING = 1e-12  # variance, over the largest, below which a feature does not vary
_LITTLE = 0.05  # of the maps' variance explained, below which a head is warned of
CHUNK = 256  # maps that are read at a time


class LookHead(NamedTuple):
    """`weight` (C,) and `bias`: of a cell, features · weight + bias is about the value there of the image's map, scaled
    to [0, 1]. `power`: to which it weights the cells, see `activation.sharpened`. How they were found: `ridge`,
    `explained`, the share of the variance of the maps' cells that it explains in images that it was not fitted to, and
    the number of `images` that it was fitted to."""

    weight: Float[np.ndarray, " c"]
    bias: float
    power: float
    ridge: float = 0.0
    explained: float = 0.0
    images: int = 0

    @property
    def vector(self) -> Float[np.ndarray, " c2"]:
        """Weight, bias and power in one, as `activation.looked` takes it."""
        return np.float32([*self.weight, self.bias, self.power])

    def __call__(self, cells: Float[np.ndarray, "*b c"]) -> Float[np.ndarray, "*b"]:
        """What it reads off cells."""
        return cells @ self.weight + self.bias


@dataclasses.dataclass(frozen=True)
class Guide:
    """What weights the cells where the network does not say it. Of pooling by `head` that head, or one that is fitted
    to the `maps` of the train images; of pooling by `saliency` the `maps` themselves, of the whole source, to a
    `power`."""

    head: LookHead | None = None
    maps: Maps | None = None
    power: float = 2.0


NO_GUIDE = Guide()


class Moments:
    """Sums over cells, from which every ridge regression of their values on their features follows: `products` (C + 2,
    C + 2) float64 of all pairs of the features, less a `shift` (C,) that is about their mean, of 1 and of the value."""

    def __init__(self, products: Float[np.ndarray, "c2 c2"], shift: Float[np.ndarray, " c"]):
        self.products, self.shift = products, shift

    def add(self, features: Float[np.ndarray, "n c"], values: Float[np.ndarray, " n"]) -> None:
        """Takes n more cells."""
        shifted = features.astype(np.float64) - self.shift
        rows = np.concatenate([shifted, np.ones((len(features), 1)), values[:, None]], 1)
        self.products += rows.T @ rows

    @property
    def covariance(self) -> Float[np.ndarray, "c2 c2"]:
        """Of the features, 1 (which has none) and the value."""
        mean = self.products[-2] / self.products[-2, -2]
        return self.products / self.products[-2, -2] - np.outer(mean, mean)

    def solutions(self, ridges: tuple[float, ...]) -> list[Float[np.ndarray, " c1"]]:
        """For each ridge the weights w and the bias that minimise the mean of (value − shifted features · w − bias)² +
        ridge · Σ (wᵢ · the standard deviation of feature i)². A feature that does not vary gets the weight 0."""
        mean, covariance = self.products[-2] / self.products[-2, -2], self.covariance
        variance = np.diag(covariance)[:-2]
        varies = variance > _ROUNDING * max(variance.max(), np.finfo(float).tiny)
        deviation = np.sqrt(variance[varies])
        correlation = covariance[:-2, :-2][np.ix_(varies, varies)] / np.outer(deviation, deviation)
        with_value = covariance[:-2, -1][varies] / deviation
        found = []
        for ridge in ridges:
            weights = np.zeros(len(variance))
            penalised = correlation + ridge * np.eye(len(deviation))
            weights[varies] = scipy.linalg.solve(penalised, with_value, assume_a="pos") / deviation
            found.append(np.append(weights, mean[-1] - weights @ mean[:-2]))
        return found

    def error(self, solution: Float[np.ndarray, " c1"]) -> float:
        """Sum of the squared errors of weights and bias on these cells."""
        residual = np.append(-solution, 1.0)
        return float(residual @ self.products @ residual)

    @property
    def spread(self) -> float:
        """Sum of the squared differences of the values from their mean."""
        return float(self.covariance[-1, -1] * self.products[-2, -2])

    def head(self, ridge: float) -> LookHead:
        """The head of one ridge, for features as they are."""
        *weight, bias = self.solutions((ridge,))[0]
        return LookHead(np.float32(weight), float(bias - np.array(weight) @ self.shift), POWERS[0], ridge)


def fit(cells: Iterable[tuple[slice, np.ndarray]], maps: Maps, indices: np.ndarray) -> LookHead:
    """The head of images with maps.

    Args:
        cells: features (b, h, w, C) of whole images, few at a time, and their place among `indices`.
        maps: of a whole source, each of which is scaled to its own range: detectors differ in how faint theirs are.
        indices: the images, two or more, see `informative`.

    Raises:
        UserError: no feature differs from one cell to another, or no map does.
    """
    if len(indices) < 2:
        raise UserError(
            f"a look head is fitted to two images or more whose map shows anything, and {len(indices) or 'none'} does"
        )
    count = min(FOLDS, len(indices))
    drawn = np.random.default_rng(0).permutation(len(indices))
    folds, kept = drawn % count, []
    parts: list[Moments] = []
    for places, features in cells:
        b, h, w, c = features.shape
        if not parts:
            shift = features.reshape(-1, c).mean(0, dtype=np.float64)
            parts = [Moments(np.zeros((c + 2, c + 2)), shift) for _ in range(count)]
        values = cell_means(stretched(maps[indices[places]], np), np.tile(np.float32([0, 0, 1, 1]), (b, 1)), h, w, np)
        for fold, moments in enumerate(parts):
            rows = folds[places] == fold
            moments.add(features[rows].reshape(-1, c), values[rows].ravel())
        for k in np.flatnonzero((folds[places] == 0) & (drawn[places] < KEPT * count)):
            kept.append((features[k].astype(np.float32), values[k]))
    total = Moments(sum(part.products for part in parts), shift)
    _check_varies(total)
    others = [Moments(total.products - part.products, shift) for part in parts]
    errors = np.sum(
        [
            [part.error(solution) for solution in rest.solutions(RIDGES)]
            for part, rest in zip(parts, others, strict=True)
        ],
        axis=0,
    )
    ridge = RIDGES[int(np.argmin(errors))]
    explained = float(1 - errors.min() / sum(part.spread for part in parts))
    if explained < _LITTLE:
        print(
            f"warning: the look head explains {explained:.1%} of the maps' variance in images that it was not fitted "
            "to: these features hardly say where the object is, or the maps do not"
        )
    power = _power(others[0].head(ridge), kept)
    return total.head(ridge)._replace(power=power, explained=explained, images=len(indices))


def informative(maps: Maps, indices: np.ndarray) -> np.ndarray:
    """Those of the indices whose map tells parts of the image from each other."""
    chunks = np.array_split(indices, -(-len(indices) // CHUNK)) if len(indices) else []
    varies = [np.ptp(maps[chunk].reshape(len(chunk), -1), axis=1) >= LEAST_RANGE for chunk in chunks]
    return indices[np.concatenate([np.zeros(0, bool), *varies])]


def _check_varies(moments: Moments) -> None:
    variance = np.diag(moments.covariance)
    if variance[:-2].max() <= _ROUNDING * max(1e-30, float((moments.shift**2).max())):
        raise UserError("the features are the same in all cells of all images: there is nothing to read off them")
    if moments.spread <= _ROUNDING * moments.products[-2, -2]:
        raise UserError(
            "the maps are the same in all cells of all images: there is nothing that a look head could learn"
        )


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
