import dataclasses
import itertools

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cvsa_jax.evaluation import probe as linear
from cvsa_jax.evaluation.labelled import validation_rows
from cvsa_jax.evaluation.probe import Standardization, linear_probe
from cvsa_jax.evaluation.protocol import Probe

SETTINGS = Probe(
    learning_rates=(0.1, 1.0),
    epochs=5,
    batch_size=16,
    validation_share=0.2,
    folds=1,
    fractions=(1.0,),
    seeds=(0,),
    list_seed=0,
    crop_area=None,
)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[labels]


def probe(train, y, test, y_test, classes: int, seed: int = 0, fit=None, **changes):
    return linear_probe(train, y, test, y_test, classes, dataclasses.replace(SETTINGS, **changes), seed, fit)


def test_probe_separates_separable_features():
    y, y_test = np.repeat(np.arange(3), 10), np.tile(np.arange(3), 5)  # fewer classes than top-5 asks for
    result = probe(one_hot(y, 3), y, one_hot(y_test, 3), y_test, 3)
    assert result.figures["top1"] == result.figures["top5"] == 1
    assert result.validation == {0.1: 1.0, 1.0: 1.0}


def test_probe_accuracy_is_the_share_of_unflipped_labels():
    # All of one class: the test rows' own mean and deviation would erase their features.
    y, true = np.repeat(np.arange(8), 10), np.full(40, 3)
    given = true.copy()
    given[:13] = np.arange(13) % 3
    result = probe(one_hot(y, 8), y, one_hot(true, 8), given, 8)
    assert result.figures["top1"] == 27 / 40


def test_probe_top5_follows_class_frequency():
    # The features say which of two groups an image is of, so the best answers are the group's most frequent classes.
    counts = np.tile([20, 16, 12, 9, 6, 3], 2)
    y, y_test = np.repeat(np.arange(12), counts), np.arange(12)
    result = probe(one_hot(y // 6, 2), y, one_hot(y_test // 6, 2), y_test, 12, epochs=20)
    assert result.figures["top1"] == pytest.approx(2 / 12)
    assert result.figures["top5"] == pytest.approx(10 / 12)


def test_test_split_does_not_affect_rate_choice():
    rng = np.random.default_rng(0)
    y, y_test = rng.integers(0, 4, (2, 80))
    train, test = ((one_hot(labels, 4) + rng.normal(0, 0.8, (80, 4))).astype(np.float32) for labels in (y, y_test))
    rates = {"learning_rates": (0.0, 1e-3, 0.1, 1.0)}
    first = probe(train, y, test, y_test, 4, **rates)
    for x, labels in ((test, rng.permutation(y_test)), (100 * test[:7] + 7, y_test[:7])):
        other = probe(train, y, x, labels, 4, **rates)
        assert other.figures["top1"] != first.figures["top1"]
        assert (other.learning_rate, other.validation) == (first.learning_rate, first.validation)
        np.testing.assert_array_equal(other.weights, first.weights)


def test_final_classifier_trains_on_validation_rows():
    # Every row has a feature of its own: those held out cannot be recognised before they have been trained on.
    y, x = np.tile(np.arange(8), 2), np.eye(16, dtype=np.float32)
    result = probe(x, y, x, y, 8, learning_rates=(1.0, 0.0), epochs=20)
    assert result.validation[1.0] < 0.5
    assert result.figures["top1"] == 1


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


@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 64), (3, 23)])
def test_fit_matches_float64_nesterov_descent(epochs, batch_size):
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((23, 5)).astype(np.float32), rng.integers(0, 3, 23)
    rates = (0.3, 2.0)
    got = linear.fit_features(x, y, rates, classes=3, epochs=epochs, batch_size=batch_size, seed=0)
    for w, rate in zip(got, rates, strict=True):
        np.testing.assert_allclose(w, descend(x, y, [np.arange(23)] * epochs, rate, 3), rtol=1e-4, atol=1e-5)


def test_epoch_visits_each_row_once_in_random_order():
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


def test_probe_mean_per_class_is_over_test_rows():
    rng = np.random.default_rng(0)
    labels, y_test = np.repeat([0, 1], 40), np.array([0] * 30 + [1] * 2)
    x, x_test = (np.stack([2.0 * y - 1, rng.normal(0, 1, len(y))], 1).astype(np.float32) for y in (labels, y_test))
    x_test[-1, 0] = -1  # looks like class 0
    result = probe(x, labels, x_test, y_test, 2, learning_rates=(0.3,), epochs=20)
    assert (result.figures["top1"], result.figures["mean_class"]) == (pytest.approx(31 / 32), pytest.approx(0.75))


def overlapping(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes that no line tells apart, of features far from 0 and of very different sizes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    centres = np.array([[0, 0, 0], [1, 1, 0], [-1, 1, 0]])
    return ((rng.normal(0, 1, (rows, 3)) + centres[y]) * [0.01, 1, 30] + [5, -2, 70]).astype(np.float32), y


def test_converged_probe_is_logistic_regression():
    (x, y), (test, y_test) = overlapping(120, 0), overlapping(300, 1)
    result = probe(x, y, test, y_test, 3, learning_rates=(2.0,), epochs=400, batch_size=120)
    # Nothing holds its weights back; its features are standardised only because its solver needs it.
    scale = x.mean(0, dtype=float), x.std(0, dtype=float)
    reference = LogisticRegression(C=np.inf, tol=1e-8).fit((x - scale[0]) / scale[1], y)
    expected = reference.predict_log_proba((test - scale[0]) / scale[1])
    # The classifier is that of raw features. A softmax does not see what all logits of a row have in common.
    given = linear.logits(result.weights.astype(float), test)
    found = given - np.logaddexp.reduce(given, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    losses = [-log[np.arange(len(y_test)), y_test].mean() for log in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    right = (expected.argmax(1) == y_test).mean()
    assert result.figures["top1"] == pytest.approx(right)
    assert 0.5 < right < 0.75


def test_folded_weights_give_the_same_logits_on_raw_features():
    x, _ = overlapping(50, 2)
    w = np.random.default_rng(3).normal(0, 1, (4, 3)).astype(np.float32)
    scale = linear.Standardization.of(x)
    standardised = (x - x.mean(0, dtype=float)) / (x.std(0, dtype=float) + 1e-6)
    np.testing.assert_allclose(scale.apply(x), standardised, atol=1e-3)
    folded = scale.folded(w)
    assert folded.shape == (4, 3)
    np.testing.assert_allclose(linear.logits(folded.astype(float), x), standardised @ w[:-1] + w[-1], atol=3e-3)


def says(quality: float, classes: int = 4) -> np.ndarray:
    """A classifier of one-hot features, right where the quality is above 0, and the surer the higher it is."""
    return np.concatenate([quality * np.eye(classes), np.zeros((1, classes))])


class Recorded:
    """A `fit` that trains nothing: it gives each rate the classifier of features as they are that `given` has for it
    (of a list, one for each call)."""

    def __init__(self, x: np.ndarray, given: dict[float, np.ndarray | list[np.ndarray]]):
        self.scale, self.given = linear.Standardization.of(x), given
        self.calls: list[tuple[list[int], tuple[float, ...]]] = []

    def __call__(self, rows: np.ndarray, rates: tuple[float, ...]) -> np.ndarray:
        self.calls.append((rows.tolist(), rates))
        found = [self.given[rate] for rate in rates]
        raw = np.stack([w[len(self.calls) - 1] if isinstance(w, list) else w for w in found])
        # The classifier of standardised features that folds to it.
        kernels = raw[:, :-1] * self.scale.std[:, None]
        return np.concatenate([kernels, raw[:, -1:] + (self.scale.mean @ raw[:, :-1])[:, None]], 1).astype(np.float32)


def test_custom_fit_gets_training_rows_and_then_all_rows():
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 10))
    x = one_hot(y, 4)
    fit = Recorded(x, {0.1: says(-1), 0.2: says(1), 0.3: says(0)})
    result = probe(x, y, one_hot(np.arange(4), 4), np.arange(4), 4, learning_rates=(0.1, 0.2, 0.3), fit=fit, seed=7)
    held = validation_rows(y, SETTINGS.validation_share, seed=7)
    assert held.sum() == 8
    assert fit.calls == [(np.flatnonzero(~held).tolist(), (0.1, 0.2, 0.3)), (list(range(40)), (0.2,))]
    assert result.learning_rate == 0.2
    assert result.validation == {0.1: 0, 0.2: 1, 0.3: 0}
    assert result.figures["top1"] == 1
    np.testing.assert_allclose(result.weights, says(1), atol=1e-6)


def test_folds_are_disjoint_and_weighted_by_their_rows():
    # Classes of 5 and 10, of which a fold holds 1 and 2: the share of right rows is that of all folds' rows together.
    y = np.random.default_rng(0).permutation(np.repeat([0, 1], [5, 10]))
    x = one_hot(y, 2)
    always_0, always_1 = (np.concatenate([np.zeros((2, 2)), np.eye(2)[k : k + 1]]) for k in (0, 1))
    first = [always_0, always_0, always_0, says(1, 2), says(1, 2)]
    fit = Recorded(x, {0.1: first, 0.2: [*[always_1] * 5, says(1, 2)]})
    result = probe(x, y, x, y, 2, learning_rates=(0.1, 0.2), folds=5, fit=fit, seed=3)
    held = [np.flatnonzero(validation_rows(y, 0.2, 3, fold)) for fold in range(5)]
    assert sorted(np.concatenate(held)) == list(range(15))
    parts = [np.setdiff1d(np.arange(15), rows).tolist() for rows in held]
    assert fit.calls == [*((part, (0.1, 0.2)) for part in parts), (list(range(15)), (0.2,))]
    assert result.validation == {0.1: pytest.approx((1 + 1 + 1 + 3 + 3) / 15), 0.2: pytest.approx(10 / 15)}


def test_validation_score_uses_validation_labels():
    # All features say class 0: the score is the share of class 0 in the validation part.
    y = np.repeat([0, 1], [30, 10])
    x = one_hot(np.zeros(40, int), 2) + np.random.default_rng(0).normal(0, 1e-3, (40, 2)).astype(np.float32)
    fit = Recorded(x, {0.1: says(1, 2), 0.2: says(-1, 2)})
    result = probe(x, y, x[:4], np.ones(4, int), 2, learning_rates=(0.1, 0.2), fit=fit)
    assert result.validation == {0.1: 0.75, 0.2: 0.25}
    assert result.figures["top1"] == 0


def test_equally_accurate_rates_are_ranked_by_cross_entropy():
    y = np.repeat(np.arange(4), 10)
    x = one_hot(y, 4)

    def choose(given: dict) -> float:
        return probe(x, y, x, y, 4, learning_rates=tuple(given), fit=Recorded(x, given)).learning_rate

    assert choose({0.3: says(0), 0.2: says(1), 0.1: says(2)}) == 0.1
    assert choose({0.3: says(0), 0.2: says(2), 0.1: says(1)}) == 0.2
    # Accuracy comes first: all right but hardly sure beats nearly all right and sure.
    nearly = says(5)
    nearly[:, 0] = 0  # class 0 is never right
    assert choose({0.2: nearly, 0.1: says(0.01)}) == 0.1
    # Of equals in both, the first.
    assert choose({0.3: says(1), 0.2: says(1), 0.1: says(1)}) == 0.3
    # What has diverged is not taken.
    assert choose({0.3: says(np.nan), 0.2: says(-1), 0.1: says(-2)}) == 0.2


@pytest.mark.parametrize(
    ("rates", "middle"),
    [((0.1, 0.2, 0.3), 0.2), ((0.1, 0.2, 0.3, 0.4), 0.2), ((0.5,), 0.5)],
    ids=["odd", "even", "one"],
)
def test_middle_rate_is_used_when_each_class_has_one_row(rates, middle):
    y = np.arange(4)
    fit = Recorded(one_hot(y, 4), dict.fromkeys(rates, says(1)))
    result = probe(one_hot(y, 4), y, one_hot(y, 4), y, 4, learning_rates=rates, folds=3, fit=fit)
    assert fit.calls == [([0, 1, 2, 3], (middle,))]
    assert (result.learning_rate, result.validation) == (middle, {})


def test_single_rate_is_not_validated():
    y = np.repeat(np.arange(4), 10)
    fit = Recorded(one_hot(y, 4), {0.1: says(1)})
    result = probe(one_hot(y, 4), y, one_hot(y, 4), y, 4, learning_rates=(0.1,), folds=3, fit=fit)
    assert fit.calls == [(list(range(40)), (0.1,))]
    assert (result.learning_rate, result.validation) == (0.1, {})


def test_constant_feature_is_only_centred():
    x = np.array([[1.0, 5.0], [3.0, 5.0]], np.float32)
    scale = Standardization.of(x)
    np.testing.assert_array_equal(scale.mean, [2, 5])
    np.testing.assert_array_equal(scale.std, [1, 1])
    np.testing.assert_array_equal(scale.apply(np.array([[4.0, 5.5]], np.float32)), [[2, 0.5]])
    np.testing.assert_array_equal(Standardization.of(2 * x).std, [2, 1])


@pytest.mark.parametrize(("enough", "folds"), [(16, 2), (17, 3), (1000, 5)])
def test_folds_stop_once_enough_rows_are_validated(monkeypatch, enough, folds):
    monkeypatch.setattr(linear, "ENOUGH", enough)
    y, asked = np.repeat(np.arange(4), 10), []  # 8 rows are held in a fold

    def fit(rows, rates):
        asked.append(len(rows))
        return np.zeros((len(rates), 5, 4), np.float32)

    probe(one_hot(y, 4), y, one_hot(y, 4), y, 4, folds=5, fit=fit)
    assert asked == [32] * folds + [40]


@pytest.mark.parametrize(
    ("best", "scores", "said"),
    [
        pytest.param(3.0, {0.1: 0.2, 1.0: 0.3, 3.0: 0.4}, "3 is the highest of key: one above", id="highest"),
        pytest.param(0.1, {0.1: 0.4, 1.0: 0.3}, "0.1 is the lowest of key: one below", id="lowest"),
        pytest.param(1.0, {0.1: 0.2, 1.0: 0.3, 3.0: 0.1}, "", id="inside"),
        pytest.param(3.0, {0.1: 0.2, 1.0: 0.4, 3.0: 0.4}, "", id="chosen by cross-entropy"),
        pytest.param(1.0, {1.0: 0.4}, "", id="one rate"),
    ],
)
def test_best_rate_at_an_end_of_the_list_is_reported(capsys, best, scores, said):
    linear.warn_at_the_end("key", best, scores)
    printed = capsys.readouterr().out
    assert said in printed and bool(printed) == bool(said)
