"""k-nearest-neighbour classification of frozen features: it needs no training, and no split to choose k on.

Weighted votes as in Wu et al. 2018 (instance discrimination): a neighbour's vote weighs exp(cosine / temperature).
"""

import numpy as np
from jaxtyping import Float, Int

from cvsa_jax.evaluation.neighbors import nearest


def knn_predict(
    train: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    ks: tuple[int, ...],
    temperature: float,
) -> Int[np.ndarray, "k m"]:
    """For each k the class with the largest vote of the k nearest training vectors by cosine; exact."""
    return _votes(test, train, labels, ks, temperature, among_themselves=False)


def leave_one_out(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], ks: tuple[int, ...], temperature: float
) -> Float[np.ndarray, " k"]:
    """For each k the share of vectors whose class the votes of their k nearest others give."""
    return (_votes(features, features, labels, ks, temperature, among_themselves=True) == labels).mean(1)


def _votes(queries, gallery, labels, ks, temperature: float, *, among_themselves: bool) -> np.ndarray:
    predicted = np.zeros((len(ks), len(queries)), int)
    for chunk, similarity, rows in nearest(queries, gallery, max(ks), among_themselves=among_themselves):
        # A common factor of a row changes no vote; without it all of them may be 0 at a low temperature.
        weights = np.exp((similarity - similarity.max(1, keepdims=True)) / temperature)
        voter = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
        for number, k in enumerate(ks):
            votes = np.zeros((len(rows), int(labels.max()) + 1))
            np.add.at(votes, (voter[:, :k], labels[rows[:, :k]]), weights[:, :k])
            predicted[number, chunk] = votes.argmax(1)
    return predicted
