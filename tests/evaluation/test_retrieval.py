import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from cvsa_jax.evaluation import neighbors
from cvsa_jax.evaluation.neighbors import nearest
from cvsa_jax.evaluation.retrieval import RANKS, retrieval


def data(n: int = 70, dimensions: int = 6, classes: int = 5):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    return (rng.normal(0, 1, (n, dimensions)) + 0.8 * np.eye(classes, dimensions)[labels]).astype(np.float32), labels


@pytest.fixture(params=[(256, 65_536), (16, 32), (7, 5)], ids=["whole", "blocks", "small blocks"])
def sizes(request, monkeypatch):
    monkeypatch.setattr(neighbors, "QUERIES", request.param[0])
    monkeypatch.setattr(neighbors, "GALLERY", request.param[1])


def whole(*args, **kwargs) -> tuple[np.ndarray, np.ndarray]:
    """The chunks of `nearest`, put together."""
    chunks = list(nearest(*args, **kwargs))
    assert [c for chunk, *_ in chunks for c in range(chunk.start, chunk.stop)] == list(range(len(args[0])))
    return tuple(np.concatenate(parts) for parts in list(zip(*chunks, strict=True))[1:])


@pytest.mark.parametrize("k", [1, 9, 500])
def test_nearest_matches_scikit_learn(sizes, k):
    x, _ = data()
    queries = data(33)[0] * 2 + 0.1
    similarity, rows = whole(queries, x, k)
    distance, expected = (
        NearestNeighbors(n_neighbors=min(k, 70), metric="cosine", algorithm="brute")
        .fit(x.astype(float))
        .kneighbors(queries.astype(float))
    )
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(similarity, 1 - distance, atol=1e-5)


def test_nearest_excludes_the_query_itself(sizes):
    x, _ = data()
    x[40] = x[3]  # but its copy is
    similarity, rows = whole(x, x, 69, among_themselves=True)
    for i, row in enumerate(rows):
        assert sorted(row) == [j for j in range(70) if j != i]
    assert (rows[3, 0], rows[40, 0]) == (40, 3)
    assert (np.diff(similarity, axis=1) <= 0).all()


def test_nearest_breaks_ties_by_index(sizes):
    x = np.tile(np.eye(3, dtype=np.float32), (20, 1))
    _, rows = whole(np.eye(3, dtype=np.float32)[1:2], x, 20)
    np.testing.assert_array_equal(rows[0], 1 + 3 * np.arange(20))


def by_definition(x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    unit = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    recalls, precisions = {k: [] for k in RANKS}, []
    for i in range(len(x)):
        order = [j for j in np.argsort(-(unit @ unit[i])) if j != i]
        hits = [labels[j] == labels[i] for j in order]
        r = sum(hits)
        if not r:
            continue
        for k in RANKS:
            recalls[k].append(any(hits[:k]))
        precisions.append(sum(sum(hits[: p + 1]) / (p + 1) for p in range(r) if hits[p]) / r)
    return {f"recall_at_{k}": np.mean(v) for k, v in recalls.items()} | {"map_at_r": np.mean(precisions)}


def test_retrieval_matches_definition(sizes):
    x, labels = data()
    labels[7] = 5  # alone in its class
    figures = retrieval(x, labels)
    expected = by_definition(x, labels)
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=1e-6), name
    order = np.random.default_rng(1).permutation(len(x))
    assert retrieval(x[order], labels[order]) == pytest.approx(figures)


def test_retrieval_of_a_hand_worked_order():
    # On a quarter circle, from 0: classes 0, 1, 0, 0. The first asks 1, 0, 0 with R = 2: precision at 2 is 1/2.
    angles = np.array([0.0, 0.1, 0.3, 0.7])
    x = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    figures = retrieval(x, np.array([0, 1, 0, 0]))
    # Query 0: order 1, 2, 3: miss, hit: (1/2) / 2. Query 2: order 1 (.2), 0 (.3), 3 (.4): the same. Query 3: 2, 1, 0:
    # hit, miss: 1 / 2. The class of row 1 has no other image.
    assert figures["map_at_r"] == pytest.approx((0.25 + 0.25 + 0.5) / 3)
    assert (figures["recall_at_1"], figures["recall_at_2"]) == (pytest.approx(1 / 3), 1)


def test_retrieval_is_empty_without_two_images_of_a_class():
    assert retrieval(np.eye(3, dtype=np.float32), np.arange(3)) == {}
