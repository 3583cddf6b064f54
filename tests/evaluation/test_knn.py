import numpy as np
import pytest
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from cvsa_jax.evaluation import knn, neighbors

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


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_knn_matches_definition(k):
    x, labels, x_test = data()
    np.testing.assert_array_equal(knn_predict(x, labels, x_test, k), by_definition(x, labels, x_test, k))


def test_further_neighbours_can_outvote_the_nearest():
    # At cosine 1 one vote for class 2; just beside it two for class 1; far off, and many, those for class 0.
    angles = np.radians([0, 5, -5, *np.linspace(90, 270, 30)])
    x = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    labels = np.array([2, 1, 1] + 30 * [0])
    query = np.array([[2, 0]], np.float32)
    assert [knn_predict(x, labels, query, k)[0] for k in (1, 2, 3, 33)] == [2, 2, 1, 1]


def test_zero_vectors_do_not_change_other_predictions():
    x, labels, x_test = data()
    x[3] = x_test[2] = 0
    predicted = knn_predict(x, labels, x_test, 5)
    others = np.arange(len(x_test)) != 2
    np.testing.assert_array_equal(predicted[others], knn_predict(x, labels, x_test[others], 5))
    assert 0 <= predicted[2] < CLASSES


KS = (1, 3, 10, 44, 60)


def scikit_learns(k: int) -> KNeighborsClassifier:
    # Its weights are of distances, which for `cosine` are 1 − the cosine.
    return KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE))


def test_several_k_at_once_match_scikit_learn():
    x, labels, x_test = data()
    found = knn.knn_predict(x, labels, x_test, KS, TEMPERATURE)
    expected = [scikit_learns(k).fit(x.astype(float), labels).predict(x_test.astype(float)) for k in KS]
    np.testing.assert_array_equal(found, expected)
    # The ks do not all say the same.
    assert len({tuple(row) for row in found}) == len(KS)


def test_temperature_weighs_the_votes():
    # Of three neighbours the nearest is alone in its class: it wins where nearness counts enough.
    angles = np.radians([0, 20, -20])
    x, query = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32), np.array([[1, 0]], np.float32)
    # exp(1/T) against 2·exp(cos 20°/T): even at T = (1 − cos 20°)/ln 2.
    even = (1 - np.cos(angles[1])) / np.log(2)
    for factor, winner in ((0.9, 0), (1.1, 1)):
        assert knn.knn_predict(x, np.array([0, 1, 1]), query, (3,), factor * even)[0] == winner


def test_leave_one_out_matches_scikit_learn():
    x, labels, _ = data(train=25)
    ks = (1, 4, 24)
    expected = [
        (cross_val_predict(scikit_learns(k), x.astype(float), labels, cv=LeaveOneOut()) == labels).mean() for k in ks
    ]
    np.testing.assert_allclose(knn.leave_one_out(x, labels, ks, TEMPERATURE), expected)
    assert len(set(expected)) > 1


def test_leave_one_out_excludes_the_query_itself():
    # Every vector is there twice. With two labels its twin, the nearest other, is always wrong.
    x = np.repeat(data(train=20)[0], 2, axis=0)
    assert knn.leave_one_out(x, np.arange(40) // 2, (1,), TEMPERATURE) == 1
    assert knn.leave_one_out(x, np.arange(40), (1,), TEMPERATURE) == 0


@pytest.mark.parametrize(("queries", "gallery"), [(7, 16), (1, 59)])
def test_chunked_predictions_match_unchunked(monkeypatch, queries, gallery):
    x, labels, x_test = data()
    ask = lambda: (  # noqa: E731
        knn.knn_predict(x, labels, x_test, KS, TEMPERATURE),
        knn.leave_one_out(x, labels, KS, TEMPERATURE),
    )
    whole = ask()
    monkeypatch.setattr(neighbors, "QUERIES", queries)
    monkeypatch.setattr(neighbors, "GALLERY", gallery)
    for chunked, expected in zip(ask(), whole, strict=True):
        np.testing.assert_array_equal(chunked, expected)
