import sys

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


def test_pca_of_unit_vectors_matches_scikit_learn():
    x = features()
    found, expected = embedding.pca(x), PCA(2).fit_transform(unit(x))
    for component in (0, 1):
        # Up to the sign, which is a rule of its own.
        sign = np.sign(found[:, component] @ expected[:, component])
        np.testing.assert_allclose(found[:, component], sign * expected[:, component], atol=1e-5)
    # Of the vectors as they are, it would be something else.
    assert np.abs(np.abs(found) - np.abs(PCA(2).fit_transform(x))).max() > 1


def test_pca_sign_makes_largest_score_positive():
    # Mirrored features, whose components would change their sign.
    for x in (features(), features() * np.array([-1, -1, 1, 1, 1, 1, 1]), -features()):
        scores = embedding.pca(x)
        assert (np.abs(scores).max(0) == scores.max(0)).all()


def test_pca_of_one_dimension_leaves_second_axis_0():
    # Its unit vectors are 1 and −1; three quarters are 1, so that the others lie farther from the mean.
    scores = embedding.pca(np.array([[5], [0.1], [-2], [7]], np.float32))
    np.testing.assert_allclose(scores, [[-0.5, 0], [-0.5, 0], [1.5, 0], [-0.5, 0]], atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_pca_of_few_rows_keeps_distances(rows):
    scores = embedding.pca(features(rows))
    assert scores.shape == (rows, 2)
    distances = np.linalg.norm(scores[:, None] - scores, axis=-1)
    expected = np.linalg.norm(unit(features(rows))[:, None] - unit(features(rows)), axis=-1)
    # Up to three points lie in a plane, which keeps their distances.
    np.testing.assert_allclose(distances, expected, atol=1e-5)


def test_pca_of_zero_vector_is_finite():
    x = features()
    x[3] = 0
    assert np.isfinite(embedding.pca(x)).all()


def test_missing_umap_names_the_package_and_the_alternative(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="pip install umap-learn") as caught:
        embedding.umap(features())
    assert "config.eval.embedding" in str(caught.value)
    assert "pca" in str(caught.value)
