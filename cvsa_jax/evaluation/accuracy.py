"""Accuracy of a classifier: top-k, mean per class, and which classes it confuses."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp


def accuracy(logits: Float[np.ndarray, "m c"], labels: Int[np.ndarray, " m"]) -> dict[str, float]:
    """`top1`, `top5` (of fewer classes: of all) and `mean_class`, in [0, 1]."""
    hits = topk_hits(logits, labels, 1)
    top5 = topk_hits(logits, labels, min(5, logits.shape[1])).mean()
    return {"top1": float(hits.mean()), "top5": float(top5), "mean_class": mean_per_class(hits, labels)}


def cross_entropy(logits: Float[np.ndarray, "m c"], labels: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """−log of the label's share in the softmax, of each row."""
    return logsumexp(logits, axis=1) - np.take_along_axis(logits, labels[:, None].astype(int), 1)[:, 0]


def topk_hits(logits: Float[np.ndarray, "m c"], labels: Int[np.ndarray, " m"], k: int) -> Bool[np.ndarray, " m"]:
    """Whether each row's label is among the k largest logits; ties and NaN count against the row."""
    own = np.take_along_axis(logits, labels[:, None].astype(int), 1)
    ahead = (~(logits < own)).sum(1) - 1
    return (ahead < k) & np.isfinite(own[:, 0])


def mean_per_class(hits: Bool[np.ndarray, " m"], labels: Int[np.ndarray, " m"]) -> float:
    """Mean over the classes that occur of the share of their rows that are hits."""
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def confused_pairs(
    predicted: Int[np.ndarray, " m"], labels: Int[np.ndarray, " m"], classes: int, most: int
) -> list[tuple[int, int, int]]:
    """The (true, predicted, count) of different classes with the largest counts, of equals the lower classes first."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predicted), 1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [(int(i), int(j), int(counts[i, j])) for i, j in zip(*np.unravel_index(order, counts.shape), strict=True)]
    return [pair for pair in pairs if pair[2]]
