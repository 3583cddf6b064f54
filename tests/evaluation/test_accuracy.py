import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from cvsa_jax.evaluation.accuracy import accuracy, confused_pairs, cross_entropy, mean_per_class, topk_hits


def topk(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    return topk_hits(logits, labels, k).mean()


def logits_and_labels(classes: int = 9, rows: int = 200):
    """Half informative, of unevenly frequent classes, without ties."""
    rng = np.random.default_rng(0)
    labels = np.minimum(rng.geometric(0.3, rows) - 1, classes - 1)
    return rng.normal(0, 1, (rows, classes)) + 1.5 * np.eye(classes)[labels], labels


def test_accuracy_by_hand():
    # Ranks of the own class: 1, 2, 6, 1, 5. Class 0 holds the rows 0 and 1, class 1 the row 2, class 3 the others.
    logits = np.array(
        [[9, 1, 2, 3, 4, 5], [4, 5, 1, 2, 0, 3], [5, 0, 1, 2, 3, 4], [0, 1, 2, 7, 4, 5], [9, 8, 7, 1, 6, 0]], np.float32
    )
    figures = accuracy(logits, np.array([0, 0, 1, 3, 3]))
    assert figures == {"top1": 2 / 5, "top5": 4 / 5, "mean_class": pytest.approx((1 / 2 + 0 + 1 / 2) / 3)}


def test_accuracy_matches_scikit_learn():
    logits, labels = logits_and_labels()
    figures, predicted = accuracy(logits, labels), logits.argmax(1)
    assert figures["top1"] == pytest.approx(accuracy_score(labels, predicted))
    assert figures["mean_class"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert figures["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(9)))
    # Data on which two of the figures agree could not tell them apart.
    assert len({round(value, 3) for value in figures.values()}) == 3


@pytest.mark.parametrize("k", [1, 4, 9])
def test_topk_matches_scikit_learn(k):
    logits, labels = logits_and_labels()
    expected = top_k_accuracy_score(labels, logits, k=k, labels=range(9)) if k < 9 else 1
    assert topk(logits, labels, k) == pytest.approx(expected)


def test_top5_of_fewer_than_five_classes_is_1():
    logits, labels = logits_and_labels(classes=4)
    assert accuracy(logits, labels)["top5"] == 1 > accuracy(logits, labels)["top1"]


@pytest.mark.parametrize(("k", "share"), [(1, 0.25), (2, 0.5), (3, 1.0)])
def test_topk_ranks_tied_classes_above_the_label(k, share):
    logits = np.array([[0.1, 3, 2], [1, 1, 0], [5, 0, 5], [2, 2, 2]], np.float32)
    labels = np.array([1, 0, 1, 2])  # ranks 1, 2, 3, 3
    assert topk(logits, labels, k) == share


def test_topk_counts_nan_rows_as_wrong():
    logits = np.array([[np.nan] * 4, [0, 1, 2, 3]], np.float32)
    for k in (1, 3, 4):  # also where every class is among the k
        np.testing.assert_array_equal(topk_hits(logits, np.array([0, 3]), k), [False, True])


def test_mean_per_class_weighs_classes_equally():
    # Class 0: 3 of 4; class 2: 0 of 1; class 5: 1 of 2.
    labels = np.array([0, 0, 0, 0, 2, 5, 5])
    hits = np.array([1, 1, 0, 1, 0, 0, 1], bool)
    assert mean_per_class(hits, labels) == pytest.approx((3 / 4 + 0 + 1 / 2) / 3)


def test_cross_entropy_matches_scikit_learn():
    logits, labels = logits_and_labels()
    losses = cross_entropy(logits, labels)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert losses.mean() == pytest.approx(log_loss(labels, shares, labels=range(9)))
    np.testing.assert_allclose(losses, [-np.log(share[y]) for share, y in zip(shares, labels, strict=True)])


def test_cross_entropy_of_huge_logits_does_not_overflow():
    losses = cross_entropy(np.array([[1000, 0, 0], [1000, 0, -1000], [0, 0, 0]], np.float32), np.array([0, 2, 1]))
    np.testing.assert_allclose(losses, [0, 2000, np.log(3)], rtol=1e-6)


def test_confused_pairs_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3])
    predicted = np.array([0, 2, 2, 1, 0, 2, 1, 1, 3])
    # (0, 2) twice and (2, 1) twice, (1, 0) and (1, 2) once: of equals the lower classes first.
    every = [(0, 2, 2), (2, 1, 2), (1, 0, 1), (1, 2, 1)]
    assert confused_pairs(predicted, labels, 5, 99) == every
    assert confused_pairs(predicted, labels, 5, 3) == every[:3]
    assert confused_pairs(labels, predicted, 5, 2) == [(1, 2, 2), (2, 0, 2)]


def test_confused_pairs_match_scikit_learn():
    logits, labels = logits_and_labels()
    predicted = logits.argmax(1)
    counts = confusion_matrix(labels, predicted, labels=range(9))
    pairs = sorted((-counts[i, j], i, j) for i in range(9) for j in range(9) if i != j and counts[i, j])
    for most in (1, 5, 81):
        assert confused_pairs(predicted, labels, 9, most) == [(i, j, -count) for count, i, j in pairs[:most]]


def test_confused_pairs_of_perfect_predictions_are_empty():
    labels = np.array([2, 0, 1, 1])
    assert confused_pairs(labels, labels, 3, 4) == []
