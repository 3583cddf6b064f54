"""Features in two dimensions, to look at."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from cvsa_jax.evaluation.neighbors import unit
from cvsa_jax.runtime.errors import UserError


def pca(features: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m 2"]:
    """Scores on the first two principal components of the unit vectors; each component's largest score is positive."""
    rows = unit(features)
    left, values, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    scores = np.zeros((len(features), 2))
    scores[:, : min(2, len(values))] = (left * values)[:, :2]
    return scores * np.where(scores[np.abs(scores).argmax(0), [0, 1]] < 0, -1, 1)


def umap(features: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m 2"]:
    """UMAP (McInnes et al. 2018) of the cosine distances, by umap-learn; UserError where that is not installed."""
    return np.asarray(require_umap()(metric="cosine", random_state=0, n_jobs=1).fit_transform(features))


def require_umap() -> Callable:
    """UMAP's class; UserError where umap-learn is not installed."""
    try:
        from umap import UMAP
    except ImportError:
        raise UserError("config.eval.embedding=umap needs umap-learn: pip install umap-learn, or take pca") from None
    return UMAP


EMBEDDINGS = {"pca": pca, "umap": umap}
