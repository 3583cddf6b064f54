"""Linear probe on cached features: one pass trains a classifier for every learning rate side by side."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

MOMENTUM = 0.9


class ProbeResult(NamedTuple):
    """`top1`, `top5` in [0, 1] on all test rows, `mean_class` the mean over the classes of their top-1; the learning
    rate that won on the validation part, and the validation accuracy of each."""

    top1: float
    top5: float
    mean_class: float
    learning_rate: float
    validation: dict[float, float]


def linear_probe(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, " m"],
    *,
    classes: int,
    learning_rates: tuple[float, ...],
    epochs: int,
    batch_size: int,
    validation_share: float,
    seed: int,
) -> ProbeResult:
    """Softmax regression by SGD with Nesterov momentum, cosine schedule, no weight decay, on features standardised
    with the training part's mean and deviation.

    The learning rate is chosen on `validation_share` of the train rows, drawn by class; the classifier is then
    trained anew on all of them. The test rows take no part in the choice.
    """
    held = validation_rows(train_labels, validation_share, seed)
    train, test = _standardized(train, train), _standardized(train, test)
    fit = lambda x, y, rates: np.asarray(_fit(x, y, jnp.asarray(rates), classes, epochs, batch_size, seed))  # noqa: E731
    weights = fit(train[~held], train_labels[~held], learning_rates)
    scores = [float(topk(_logits(w, train[held]), train_labels[held], 1)) for w in weights]
    best = learning_rates[int(np.argmax(scores))]
    logits = _logits(fit(train, train_labels, (best,))[0], test)
    hits = topk_hits(logits, test_labels, 1)
    return ProbeResult(
        float(hits.mean()),
        topk(logits, test_labels, min(5, classes)),
        mean_per_class(hits, test_labels),
        best,
        dict(zip(learning_rates, scores, strict=True)),
    )


def validation_rows(labels: Int[np.ndarray, " n"], share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """A random part of each class: round(share · count) rows, at least one where the class has two or more."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held[rows[: min(len(rows) - 1, max(1, round(share * len(rows))))]] = True
    return held


def topk(logits: Float[np.ndarray, "m c"], labels: Int[np.ndarray, " m"], k: int) -> float:
    """Share of rows whose label is among the k largest logits."""
    return float(topk_hits(logits, labels, k).mean())


def topk_hits(logits: Float[np.ndarray, "m c"], labels: Int[np.ndarray, " m"], k: int) -> Bool[np.ndarray, " m"]:
    """Whether each row's label is among the k largest logits; ties and NaN count against the row."""
    own = np.take_along_axis(logits, labels[:, None].astype(int), 1)
    ahead = (~(logits < own)).sum(1) - 1
    return ahead < k


def mean_per_class(hits: Bool[np.ndarray, " m"], labels: Int[np.ndarray, " m"]) -> float:
    """Mean over the classes that occur of the share of their rows that are hits."""
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def _fit(x, y, rates: jax.Array, classes: int, epochs: int, batch_size: int, seed: int) -> Float[Array, "r d1 c"]:
    """One classifier for each learning rate, biases in the last row. Every epoch sees each row once, the last batch
    filled up with rows of weight 0."""
    n = len(x)
    batch_size = min(batch_size, n)
    batches = -(-n // batch_size)
    x, y = jnp.asarray(_with_ones(x)), jnp.asarray(y)

    def fit_one(rate):
        optimizer = optax.sgd(optax.cosine_decay_schedule(rate, epochs * batches), MOMENTUM, nesterov=True)

        def loss(w, rows):
            inside = rows < n
            losses = optax.softmax_cross_entropy_with_integer_labels(x[rows % n] @ w, y[rows % n])
            return (losses * inside).sum() / inside.sum()

        def step(carry, rows):
            w, state = carry
            updates, state = optimizer.update(jax.grad(loss)(w, rows), state)
            return (optax.apply_updates(w, updates), state), None

        def epoch(carry, key):
            order = jnp.concatenate([jax.random.permutation(key, n), jnp.arange(n, batches * batch_size)])
            return jax.lax.scan(step, carry, order.reshape(batches, batch_size))

        w = jnp.zeros((x.shape[1], classes))
        keys = jax.random.split(jax.random.key(seed), epochs)
        (w, _), _ = jax.lax.scan(epoch, (w, optimizer.init(w)), keys)
        return w

    return jax.jit(jax.vmap(fit_one))(rates)


def _standardized(reference: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (x - reference.mean(0)) / (reference.std(0) + 1e-6)


def _with_ones(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((len(x), 1), x.dtype)], 1)


def _logits(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    return _with_ones(x) @ w
