"""Retrieval with frozen features: each image asks for others of its class, among the evaluated images themselves."""

import numpy as np
from jaxtyping import Float, Int

from cvsa_jax.evaluation.neighbors import nearest

RANKS = (1, 2, 4, 8)


def retrieval(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> dict[str, float]:
    """Recall@k for k in RANKS (Jégou et al. 2011: one of the k nearest others has the query's class) and mAP@R
    (Musgrave et al. 2020: average precision within the R nearest, R the number of others of the class, over R), by
    cosine. Queries whose class has no other image cannot be answered and do not count.

    Returns:
        `recall_at_1`, …, `map_at_r` in [0, 1]; {} where no query can be answered.
    """
    others = np.bincount(labels)[labels] - 1
    if not (others > 0).any():
        return {}
    deepest = max(*RANKS, int(others.max()))
    recalled, precisions = np.zeros(len(RANKS)), 0.0
    for chunk, _, rows in nearest(features, features, deepest, among_themselves=True):
        asked = others[chunk] > 0
        wanted, relevant = others[chunk][asked, None], labels[rows[asked]] == labels[chunk][asked, None]
        recalled += [relevant[:, :k].any(1).sum() for k in RANKS]
        rank = 1 + np.arange(relevant.shape[1])
        within = relevant & (rank <= wanted)
        precisions += ((within.cumsum(1) / rank * within).sum(1) / wanted[:, 0]).sum()
    count = (others > 0).sum()
    figures = {f"recall_at_{k}": float(r / count) for k, r in zip(RANKS, recalled, strict=True)}
    return figures | {"map_at_r": float(precisions / count)}
