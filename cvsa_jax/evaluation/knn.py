"""k-nearest-neighbour classification of frozen features: a monitor that needs no training."""

import numpy as np
from jaxtyping import Float, Int

from cvsa_jax.evaluation.neighbors import nearest

TEMPERATURE = 0.07  # Wu et al. 2018 (instance discrimination); votes weigh exp(cosine / TEMPERATURE)


def knn_predict(
    train: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], test: Float[np.ndarray, "m d"], k: int
) -> Int[np.ndarray, " m"]:
    """Class with the largest weighted vote of the k nearest training vectors by cosine; exact."""
    similarity, neighbors = nearest(test, train, k)
    weights = np.exp((similarity - 1) / TEMPERATURE)
    votes = np.zeros((len(test), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(test))[:, None], labels[neighbors]), weights)
    return votes.argmax(1)
