"""k-nearest-neighbour classification of frozen features: a monitor that needs no training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

TEMPERATURE = 0.07  # Wu et al. 2018 (instance discrimination); votes weigh exp(cosine / TEMPERATURE)
_CHUNK = 1024


def knn_predict(
    train: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], test: Float[np.ndarray, "m d"], k: int
) -> Int[np.ndarray, " m"]:
    """Class with the largest weighted vote of the k nearest training vectors by cosine; exact, in chunks."""
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)  # noqa: E731
    train, test, classes = unit(train), unit(test), int(labels.max()) + 1
    votes = functools.partial(_votes, train, labels, k=min(k, len(train)), classes=classes)
    chunks = [test[i : i + _CHUNK] for i in range(0, len(test), _CHUNK)]
    return np.concatenate([np.asarray(votes(chunk)).argmax(1) for chunk in chunks])


@functools.partial(jax.jit, static_argnames=("k", "classes"))
def _votes(train, labels, chunk, *, k: int, classes: int):
    similarity, neighbours = jax.lax.top_k(jnp.matmul(chunk, train.T, precision="highest"), k)
    weights = jnp.exp((similarity - 1) / TEMPERATURE)
    return jnp.einsum("mk,mkc->mc", weights, jax.nn.one_hot(labels[neighbours], classes))
