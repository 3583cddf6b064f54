"""Linear probe: softmax regression on frozen features, a classifier for every learning rate side by side.

Two protocols share the choice of the learning rate and the test: the fast one trains on cached features of centre
crops, the one for papers on features of freshly augmented crops (`augmented.py`).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from cvsa_jax.evaluation.accuracy import accuracy, cross_entropy, topk_hits
from cvsa_jax.evaluation.labelled import validation_rows
from cvsa_jax.evaluation.protocol import Probe
from cvsa_jax.runtime.progress import Progress

MOMENTUM = 0.9
ENOUGH = 1000  # rows to choose a learning rate on: the standard error of an accuracy is at most 1.6 points
# (rows of the train split, learning rates) -> one classifier of standardised features for each, (r, d + 1, c), biases
# in the last row.
Fit = Callable[[Int[np.ndarray, " k"], tuple[float, ...]], Float[np.ndarray, "r d1 c"]]


class ProbeResult(NamedTuple):
    """`figures`: top1, top5 and mean_class on all test rows. `learning_rate`: the one that won on the validation part,
    and `validation` the accuracy of each there ({} where too few labels leave no such part). `weights`: (d + 1, c) of
    the classifier on features as they are, biases in the last row."""

    figures: dict[str, float]
    learning_rate: float
    validation: dict[float, float]
    weights: np.ndarray


def linear_probe(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, " m"],
    classes: int,
    probe: Probe,
    seed: int,
    fit: Fit | None = None,
) -> ProbeResult:
    """Softmax regression by SGD with Nesterov momentum, cosine schedule, no weight decay, on features standardised
    with the train rows' mean and deviation.

    The learning rate is chosen on `probe.validation_share` of the train rows, drawn by class, `probe.folds` times with
    other rows and other classifiers, or fewer where ENOUGH rows have been asked: the highest accuracy over all of them
    wins, of equals the lower cross-entropy. The classifier is then trained anew on all train rows. The test rows take
    no part in the choice. Where each class has one row, there is nothing to choose on, and the middle rate of the list
    is taken.

    Args:
        fit: what trains the classifiers; by default `fit_features` on `train`.
    """
    scale = Standardization.of(train)
    if fit is None:
        x = scale.apply(train)

        def fit(rows, rates):
            return fit_features(
                x[rows],
                train_labels[rows],
                rates,
                classes=classes,
                epochs=probe.epochs,
                batch_size=probe.batch_size,
                seed=seed,
            )

    learning_rates = probe.learning_rates
    best, scores = learning_rates[(len(learning_rates) - 1) // 2], {}
    if len(learning_rates) > 1 and len(train) > len(np.unique(train_labels)):
        hits, losses = [], []
        for fold in range(probe.folds):
            held = validation_rows(train_labels, probe.validation_share, seed, fold)
            predicted = [logits(scale.folded(w), train[held]) for w in fit(np.flatnonzero(~held), learning_rates)]
            hits.append([topk_hits(p, train_labels[held], 1) for p in predicted])
            losses.append([cross_entropy(p, train_labels[held]) for p in predicted])
            if (fold + 1) * held.sum() >= ENOUGH:
                break
        tops, lost = (np.concatenate(parts, 1).mean(1) for parts in (hits, losses))
        scores = {rate: float(top) for rate, top in zip(learning_rates, tops, strict=True)}
        best = learning_rates[np.lexsort((lost, -tops))[0]]
    weights = scale.folded(fit(np.arange(len(train)), (best,))[0])
    return ProbeResult(accuracy(logits(weights, test), test_labels), best, scores, weights)


def warn_at_the_end(key: str, best: float, scores: dict[float, float]) -> None:
    """Says so where the best of some learning rates is the lowest or the highest of them, and better than the next."""
    rates = sorted(scores)
    if len(rates) > 1 and best in (rates[0], rates[-1]):
        low = best == rates[0]
        if scores[best] > scores[rates[1] if low else rates[-2]]:
            print(
                f"warning: learning rate {best:g} is the {'lowest' if low else 'highest'} of {key}: one "
                f"{'below' if low else 'above'} it may be better still"
            )


class Standardization(NamedTuple):
    """Mean and deviation of each feature; 1 where it does not vary, as a channel that is 0 in all of a few images."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, x: Float[np.ndarray, "n d"]) -> "Standardization":
        mean, std = x.mean(0), x.std(0)
        # Of what does not vary, rounding leaves a deviation that is small beside its mean, or those of the others.
        least = 1e-6 * np.maximum(std.max(initial=0), np.abs(mean))
        return cls(mean, np.where(std > least, std, 1).astype(x.dtype))

    def apply(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        return (x - self.mean) / self.std

    def folded(self, weights: Float[np.ndarray, "d1 c"]) -> Float[np.ndarray, "d1 c"]:
        """Weights for features as they are, from those for standardised ones."""
        scaled = weights[:-1] / self.std[:, None]
        return np.concatenate([scaled, weights[-1:] - self.mean @ scaled])


def logits(weights: Float[np.ndarray, "d1 c"], x: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m c"]:
    """What a classifier gives for features."""
    return x @ weights[:-1] + weights[-1]


def fit_features(
    x: Float[np.ndarray, "n d"],
    y: Int[np.ndarray, " n"],
    rates: tuple[float, ...],
    *,
    classes: int,
    epochs: int,
    batch_size: int,
    seed: int,
) -> Float[np.ndarray, "r d1 c"]:
    """One classifier for each learning rate, trained on the same batches of the features given; biases in the last
    row. Every epoch sees each row once, the last batch filled up with rows of weight 0."""
    batch_size = min(batch_size, len(x))
    total = epochs * -(-len(x) // batch_size)
    features, labels = jnp.concatenate([x, jnp.ones((len(x), 1), jnp.float32)], 1), jnp.asarray(y)
    # Columns side by side, so that all classifiers share one matrix product.
    weights = jnp.zeros((features.shape[1], len(rates) * classes))
    state = (weights, _optimizer(total).init(weights))
    progress = Progress("probe", epochs, unit="epochs")
    for done, key in enumerate(jax.random.split(jax.random.key(seed), epochs), start=1):
        state = _epoch(state, key, features, labels, jnp.asarray(rates), batch_size=batch_size, total=total)
        jax.block_until_ready(state)
        progress.update(done)
    return np.asarray(state[0]).reshape(-1, len(rates), classes).swapaxes(0, 1)


@functools.partial(jax.jit, static_argnames=("batch_size", "total"), donate_argnums=0)
def _epoch(state, key, x, y, rates, *, batch_size: int, total: int):
    """`state`: weights (d + 1, r · c) and the optimiser's."""
    n, optimizer = len(x), _optimizer(total)
    rate_of_column = jnp.repeat(rates, state[0].shape[1] // len(rates))

    def loss(weights, rows):
        inside = rows < n
        logits = (x[rows % n] @ weights).reshape(batch_size, len(rates), -1)
        wanted = jnp.broadcast_to(y[rows % n, None], logits.shape[:2])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted).sum(1)
        return (losses * inside).sum() / inside.sum()

    def step(state, rows):
        weights, kept = state
        updates, kept = optimizer.update(jax.grad(loss)(weights, rows), kept)
        return (weights + rate_of_column * updates, kept), None

    order = jnp.concatenate([jax.random.permutation(key, n), jnp.arange(n, n + -n % batch_size)])
    return jax.lax.scan(step, state, order.reshape(-1, batch_size))[0]


def _optimizer(total: int) -> optax.GradientTransformation:
    return optax.sgd(optax.cosine_decay_schedule(1.0, total), MOMENTUM, nesterov=True)
