"""Which train images lend their labels: a part for validation, and fractions for learning from few."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int


def validation_rows(labels: Int[np.ndarray, " n"], share: float, seed: int, fold: int = 0) -> Bool[np.ndarray, " n"]:
    """A random part of each class: round(share · count) rows, at least one where the class has two or more. Each fold
    goes on where the one before ended, and from the end of a class to its beginning."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        held[np.roll(rows, -fold * count)[:count]] = True
    return held


def fraction_rows(labels: Int[np.ndarray, " n"], fraction: float, seed: int, draw: int = 0) -> Int[np.ndarray, " k"]:
    """Sorted rows of a stratified fraction: round(fraction · count) of each class, at least one.

    The lists depend on the labels, the fraction, the seed and the number of the draw alone, and those of a smaller
    fraction are part of those of a larger one.
    """
    rng = _list_generator(seed, draw)
    chosen = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(rows[: max(1, round(fraction * len(rows)))])
    return np.sort(np.concatenate(chosen))


def fraction_suffix(fraction: float) -> str:
    """What names a figure at a fraction of the labels: `` for all, `_at_10` for 10 %, `_at_0.5` for half a percent."""
    return "" if fraction == 1 else f"_at_{100 * fraction:.4g}"


def count_rows(labels: Int[np.ndarray, " n"], count: int, seed: int, draw: int = 0) -> Int[np.ndarray, " k"]:
    """Sorted rows of so many images of each class, or all where it has fewer; drawn as in `fraction_rows`, so that the
    lists are nested with those of fractions as well."""
    rng = _list_generator(seed, draw)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == k))[:count] for k in np.unique(labels)]))


def _list_generator(seed: int, draw: int) -> np.random.Generator:
    """Of a seed and a draw on their own, so that the second list of one seed is not the first of the next."""
    return np.random.default_rng([seed, 0xF8AC, draw] if draw else [seed, 0xF8AC])


@dataclasses.dataclass(frozen=True)
class Amount:
    """How many of the labels are used: a `fraction` of each class, or where it is 0 so many images of each."""

    fraction: float | int
    count: int = 0

    @property
    def suffix(self) -> str:
        """What names a figure: as `fraction_suffix`, or `_with_4` for four images of each class."""
        return fraction_suffix(self.fraction) if self.fraction else f"_with_{self.count}"

    @property
    def title(self) -> str:
        """In words."""
        if not self.fraction:
            return f"{self.count} of each class"
        return f"{100 * self.fraction:.4g} % of the labels"

    def rows(self, labels: Int[np.ndarray, " n"], seed: int, draw: int = 0) -> Int[np.ndarray, " k"]:
        """The labelled rows of the list of this number."""
        if self.fraction:
            return fraction_rows(labels, self.fraction, seed, draw)
        return count_rows(labels, self.count, seed, draw)
