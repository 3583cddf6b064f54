import functools
import itertools

import jax
import numpy as np
import pytest

from cvsa_jax.evaluation import linear
from cvsa_jax.evaluation.accuracy import mean_per_class, topk_hits
from cvsa_jax.evaluation.labelled import validation_rows
from cvsa_jax.evaluation.linear import linear_probe

# Compiles in a third of the time.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SETTINGS = {"learning_rates": (0.1, 1.0), "epochs": 5, "batch_size": 16, "validation_share": 0.2, "seed": 0}


@pytest.fixture(autouse=True)
def quick_compilation(monkeypatch):
    monkeypatch.setattr(linear.jax, "jit", quick)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[labels]


def probe(train, y, test, y_test, classes: int, **changes):
    return linear_probe(train, y, test, y_test, classes=classes, **SETTINGS | changes)


def topk(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    return topk_hits(logits, labels, k).mean()


def test_separable_features_are_all_recognised():
    y, y_test = np.repeat(np.arange(3), 10), np.tile(np.arange(3), 5)  # fewer classes than top-5 asks for
    result = probe(one_hot(y, 3), y, one_hot(y_test, 3), y_test, 3)
    assert result.figures["top1"] == result.figures["top5"] == 1
    assert result.validation == {0.1: 1.0, 1.0: 1.0}


def test_accuracy_is_the_share_of_test_labels_that_were_not_flipped():
    # All of one class: the test rows' own mean and deviation would erase their features.
    y, true = np.repeat(np.arange(8), 10), np.full(40, 3)
    given = true.copy()
    given[:13] = np.arange(13) % 3
    result = probe(one_hot(y, 8), y, one_hot(true, 8), given, 8)
    assert result.figures["top1"] == 27 / 40


def test_top5_of_six_classes_that_only_their_frequency_tells_apart():
    # The features say which of two groups an image is of, so the best answers are the group's most frequent classes.
    counts = np.tile([20, 16, 12, 9, 6, 3], 2)
    y, y_test = np.repeat(np.arange(12), counts), np.arange(12)
    result = probe(one_hot(y // 6, 2), y, one_hot(y_test // 6, 2), y_test, 12, epochs=20)
    assert result.figures["top1"] == pytest.approx(2 / 12)
    assert result.figures["top5"] == pytest.approx(10 / 12)


@pytest.mark.parametrize(("k", "share"), [(1, 0.25), (2, 0.5), (3, 1.0)])
def test_topk_with_ties_against_the_row(k, share):
    logits = np.array([[0.1, 3, 2], [1, 1, 0], [5, 0, 5], [2, 2, 2]], np.float32)
    labels = np.array([1, 0, 1, 2])  # ranks 1, 2, 3, 3
    assert topk(logits, labels, k) == share


def test_topk_counts_rows_that_are_not_finite_as_wrong():
    logits = np.array([[np.nan] * 4, [0, 1, 2, 3]], np.float32)
    assert topk(logits, np.array([0, 3]), 1) == 0.5
    assert topk(logits, np.array([0, 3]), 3) == 0.5


def test_learning_rate_is_the_best_of_the_validation_part():
    y = np.repeat(np.arange(4), 10)
    # With rate 0 the weights stay 0: all logits tie.
    result = probe(one_hot(y, 4), y, one_hot(y, 4), y, 4, learning_rates=(0.0, 0.5, 1e-9))
    assert result.learning_rate == 0.5
    assert result.validation[0.0] == 0 and result.validation[0.5] == 1


def test_test_split_takes_no_part_in_the_choice():
    rng = np.random.default_rng(0)
    y, y_test = rng.integers(0, 4, (2, 80))
    train, test = ((one_hot(labels, 4) + rng.normal(0, 0.8, (80, 4))).astype(np.float32) for labels in (y, y_test))
    rates = {"learning_rates": (0.0, 1e-3, 0.1, 1.0)}
    first = probe(train, y, test, y_test, 4, **rates)
    for x, labels in ((test, rng.permutation(y_test)), (100 * test[:7] + 7, y_test[:7])):
        other = probe(train, y, x, labels, 4, **rates)
        assert other.figures["top1"] != first.figures["top1"]
        assert (other.learning_rate, other.validation) == (first.learning_rate, first.validation)


def test_final_classifier_is_trained_on_the_validation_rows_too():
    # Every row has a feature of its own: those held out cannot be recognised before they have been trained on.
    y, x = np.tile(np.arange(8), 2), np.eye(16, dtype=np.float32)
    result = probe(x, y, x, y, 8, learning_rates=(1.0, 0.0), epochs=20)
    assert result.validation[1.0] < 0.5
    assert result.figures["top1"] == 1


def test_validation_rows_are_a_share_of_each_class():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 5, 7], [10, 3, 2, 1, 20]))
    held = validation_rows(labels, 0.2, seed=3)
    assert {int(c): int(held[labels == c].sum()) for c in np.unique(labels)} == {0: 2, 1: 1, 2: 1, 5: 0, 7: 4}


@pytest.mark.parametrize("share", [0.9, 1.0])
def test_validation_rows_leave_one_of_each_class(share):
    labels = np.repeat(np.arange(4), [1, 2, 3, 9])
    held = validation_rows(labels, share, seed=0)
    assert [int((~held)[labels == c].sum()) for c in range(4)] == [1, 1, 1, max(1, 9 - round(9 * share))]


def test_validation_rows_follow_the_seed():
    labels = np.repeat(np.arange(3), 20)
    first, again, other = (validation_rows(labels, 0.3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def descend(x, y, batches, rate: float, classes: int) -> np.ndarray:
    """Gradient descent with Nesterov momentum and a cosine schedule in float64, over given batches of rows."""
    x = np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float64)
    w = velocity = np.zeros((x.shape[1], classes))
    for step, rows in enumerate(batches):
        logits = x[rows] @ w
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = x[rows].T @ (p - np.eye(classes)[y[rows]]) / len(rows)
        velocity = gradient + linear.MOMENTUM * velocity
        w = w - rate * (1 + np.cos(np.pi * step / len(batches))) / 2 * (gradient + linear.MOMENTUM * velocity)
    return w


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("batch_size", [23, 64])
def test_whole_batches_are_nesterov_steps(epochs, batch_size):
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((23, 5)).astype(np.float32), rng.integers(0, 3, 23)
    rates = (0.3, 2.0)
    got = linear.fit_features(x, y, rates, classes=3, epochs=epochs, batch_size=batch_size, seed=0)
    for w, rate in zip(got, rates, strict=True):
        np.testing.assert_allclose(w, descend(x, y, [np.arange(23)] * epochs, rate, 3), rtol=1e-4, atol=1e-5)


def test_an_epoch_sees_every_row_once_in_a_random_order():
    # Five rows in batches of two: the weights must be those of one of the 120 orders, the last batch holding one row.
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((5, 6)).astype(np.float32), np.array([0, 1, 2, 1, 0])
    orders = [np.array(order) for order in itertools.permutations(range(5))]
    possible = np.stack([descend(x, y, [o[:2], o[2:4], o[4:]], 0.5, 3) for o in orders])
    found = set()
    for seed in (0, 1):
        w = linear.fit_features(x, y, (0.5,), classes=3, epochs=1, batch_size=2, seed=seed)[0]
        errors = np.abs(possible - w).max((1, 2))
        assert errors.min() < 1e-5
        found.add(int(errors.argmin()))
    assert len(found) == 2


def test_mean_per_class_weighs_classes_alike():
    # Class 0: 3 of 4; class 2: 0 of 1; class 5: 1 of 2.
    labels = np.array([0, 0, 0, 0, 2, 5, 5])
    hits = np.array([1, 1, 0, 1, 0, 0, 1], bool)
    assert mean_per_class(hits, labels) == pytest.approx((3 / 4 + 0 + 1 / 2) / 3)


def test_mean_per_class_of_the_probe_is_of_the_test_rows():
    rng = np.random.default_rng(0)
    labels, y_test = np.repeat([0, 1], 40), np.array([0] * 30 + [1] * 2)
    x, x_test = (np.stack([2.0 * y - 1, rng.normal(0, 1, len(y))], 1).astype(np.float32) for y in (labels, y_test))
    x_test[-1, 0] = -1  # looks like class 0
    result = linear_probe(
        x,
        labels,
        x_test,
        y_test,
        classes=2,
        learning_rates=(0.3,),
        epochs=20,
        batch_size=16,
        validation_share=0.2,
        seed=0,
    )
    assert (result.figures["top1"], result.figures["mean_class"]) == (pytest.approx(31 / 32), pytest.approx(0.75))
