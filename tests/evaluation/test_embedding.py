import sys
import types

import numpy as np
import pytest
from sklearn.decomposition import PCA

from cvsa_jax.evaluation import embedding
from cvsa_jax.runtime.errors import UserError


def features(rows: int = 40, dimensions: int = 7) -> np.ndarray:
    """Off the origin, of lengths and variances that differ much."""
    rng = np.random.default_rng(0)
    spread = rng.normal(0, 1, (rows, dimensions)) * np.linspace(3, 0.5, dimensions)
    return ((spread + 2) * rng.uniform(0.1, 10, (rows, 1))).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)


def test_pca_against_scikit_learn():
    x = features()
    found, expected = embedding.pca(x), PCA(2).fit_transform(unit(x))
    for component in (0, 1):
        # Up to the sign, which is a rule of its own.
        sign = np.sign(found[:, component] @ expected[:, component])
        np.testing.assert_allclose(found[:, component], sign * expected[:, component], atol=1e-5)
    # Of the vectors as they are, it would be something else.
    assert np.abs(np.abs(found) - np.abs(PCA(2).fit_transform(x))).max() > 1


def test_lengths_do_not_matter():
    x = features()
    scales = np.random.default_rng(1).uniform(0.5, 2, (len(x), 1)).astype(np.float32)
    np.testing.assert_allclose(embedding.pca(x * scales), embedding.pca(x), atol=1e-5)


def test_the_largest_score_of_each_component_is_positive():
    # Mirrored features, whose components would change their sign.
    for x in (features(), features() * np.array([-1, -1, 1, 1, 1, 1, 1]), -features()):
        scores = embedding.pca(x)
        assert (np.abs(scores).max(0) == scores.max(0)).all()


def test_permuted_rows_give_permuted_points():
    x = features()
    order = np.random.default_rng(2).permutation(len(x))
    np.testing.assert_allclose(embedding.pca(x[order]), embedding.pca(x)[order], atol=1e-6)


def test_one_dimension_lies_on_the_first_axis():
    # Its unit vectors are 1 and −1; three quarters are 1, so that the others lie farther from the mean.
    scores = embedding.pca(np.array([[5], [0.1], [-2], [7]], np.float32))
    np.testing.assert_allclose(scores, [[-0.5, 0], [-0.5, 0], [1.5, 0], [-0.5, 0]], atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows(rows):
    scores = embedding.pca(features(rows))
    assert scores.shape == (rows, 2)
    distances = np.linalg.norm(scores[:, None] - scores, axis=-1)
    expected = np.linalg.norm(unit(features(rows))[:, None] - unit(features(rows)), axis=-1)
    # Up to three points lie in a plane, which keeps their distances.
    np.testing.assert_allclose(distances, expected, atol=1e-5)


def test_zero_vectors_do_no_harm():
    x = features()
    x[3] = 0
    assert np.isfinite(embedding.pca(x)).all()


def test_umap_that_is_not_installed_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="pip install umap-learn") as caught:
        embedding.umap(features())
    assert "config.eval.embedding" in str(caught.value)
    assert "pca" in str(caught.value)


def test_umap_is_of_cosines_and_repeatable(monkeypatch):
    class UMAP:
        def __init__(self, *, metric, random_state, **others):
            assert (metric, random_state) == ("cosine", 0)
            assert "n_components" not in others  # two by default

        def fit_transform(self, given):
            return given[:, :2] + 1

    module = types.ModuleType("umap")
    module.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", module)
    np.testing.assert_array_equal(embedding.EMBEDDINGS["umap"](features()), features()[:, :2] + 1)


def test_embeddings_by_name():
    assert embedding.EMBEDDINGS["pca"] is embedding.pca
    assert embedding.EMBEDDINGS["umap"] is embedding.umap
