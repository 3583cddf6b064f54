import numpy as np
import pytest

from cvsa_jax.evaluation import knn

CLASSES = 4
TEMPERATURE = 0.07


def knn_predict(x, labels, x_test, k: int) -> np.ndarray:
    return knn.knn_predict(x, labels, x_test, (k,), TEMPERATURE)[0]


def data(train: int = 60, test: int = 45, dimensions: int = 8):
    rng = np.random.default_rng(0)
    # About one direction, so that the votes of many neighbours weigh alike.
    x, x_test = (3 * rng.normal(3, 1, (n, dimensions)).astype(np.float32) for n in (train, test))
    return x, rng.integers(0, CLASSES, train), x_test


def by_definition(x, labels, x_test, k: int) -> np.ndarray:
    unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
    predicted = []
    for query in x_test.astype(np.float64):
        cosines = np.array([unit(query) @ unit(row) for row in x.astype(np.float64)])
        votes = np.zeros(CLASSES)
        for row in np.argsort(-cosines)[:k]:
            votes[labels[row]] += np.exp(cosines[row] / TEMPERATURE)
        predicted.append(votes.argmax())
    return np.array(predicted)


@pytest.mark.parametrize("k", [1, 5, 60, 1000])
def test_predictions_are_those_of_the_definition(k):
    x, labels, x_test = data()
    np.testing.assert_array_equal(knn_predict(x, labels, x_test, k), by_definition(x, labels, x_test, k))


def test_votes_beyond_the_nearest_neighbour_can_decide():
    # At cosine 1 one vote for class 2; just beside it two for class 1; far off, and many, those for class 0.
    angles = np.radians([0, 5, -5, *np.linspace(90, 270, 30)])
    x = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    labels = np.array([2, 1, 1] + 30 * [0])
    query = np.array([[2, 0]], np.float32)
    assert [knn_predict(x, labels, query, k)[0] for k in (1, 2, 3, 33)] == [2, 2, 1, 1]


def test_order_of_the_train_rows_does_not_matter():
    x, labels, x_test = data()
    order = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_array_equal(knn_predict(x[order], labels[order], x_test, 5), knn_predict(x, labels, x_test, 5))


@pytest.mark.parametrize("k", [1, 10])
def test_separable_clusters_are_all_recognised(k):
    rng = np.random.default_rng(2)
    labels, y_test = np.repeat(np.arange(CLASSES), 10), np.tile(np.arange(CLASSES), 5)
    x, x_test = (
        (np.eye(CLASSES)[y] * rng.uniform(0.1, 10, (len(y), 1)) + rng.normal(0, 0.01, (len(y), CLASSES)))
        for y in (labels, y_test)
    )
    np.testing.assert_array_equal(knn_predict(x.astype(np.float32), labels, x_test.astype(np.float32), k), y_test)


def test_zero_vectors_do_no_harm():
    x, labels, x_test = data()
    x[3] = x_test[2] = 0
    predicted = knn_predict(x, labels, x_test, 5)
    others = np.arange(len(x_test)) != 2
    np.testing.assert_array_equal(predicted[others], knn_predict(x, labels, x_test[others], 5))
    assert 0 <= predicted[2] < CLASSES
