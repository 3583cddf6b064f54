"""What watches a pre-training: the figures of collapse, and the online probe."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from support.comparing import assert_close, assert_moved, numpy_of
from support.compiling import on_mesh
from support.small_step import CHANNELS, CLASSES, batch, define, start, without

from cvsa_jax.runtime import distributed
from cvsa_jax.training.health import OnlineProbe, collapse_figures, init_probe, probe_step


def test_collapse_indicators_of_isotropic_projections(mesh_of):
    dimensions, count = 8, 512
    rng = np.random.default_rng(3)
    projection, query, key = rng.standard_normal((3, count, dimensions)).astype(np.float32)
    figures = on_mesh(collapse_figures, mesh_of(8))(projection, query, key)

    unit = (projection / np.linalg.norm(projection, axis=1, keepdims=True)).astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(unit.T, bias=True))
    cosines = (query * key).sum(1) / np.linalg.norm(query, axis=1) / np.linalg.norm(key, axis=1)
    expected = {
        "projection_std": unit.std(0).mean() * dimensions**0.5,
        "effective_rank": eigenvalues.sum() ** 2 / (eigenvalues**2).sum(),
        "target_cosine": cosines.mean(),
    }
    assert_close(numpy_of(figures), expected, rtol=1e-4)
    assert 0.97 < figures["projection_std"] < 1.03
    assert 0.95 * dimensions < figures["effective_rank"] <= dimensions


def test_collapse_indicators_of_collapsed_projections(mesh_of):
    rng = np.random.default_rng(4)
    figures_of = on_mesh(collapse_figures, mesh_of(8))
    vector = rng.standard_normal(8).astype(np.float32)
    constant = np.tile(vector, (64, 1))
    collapsed = figures_of(constant, constant, 3 * constant)
    assert collapsed["projection_std"] < 5e-3
    np.testing.assert_allclose(collapsed["target_cosine"], 1, rtol=1e-5)
    assert np.isfinite(collapsed["effective_rank"])

    # All projections on one line: one dimension is left.
    line = rng.choice([-1.0, 1.0], (64, 1)).astype(np.float32) * vector
    on_line = figures_of(line, line, -line)
    np.testing.assert_allclose(on_line["effective_rank"], 1, rtol=1e-3)
    np.testing.assert_allclose(on_line["target_cosine"], -1, rtol=1e-5)


def test_online_probe_does_not_affect_the_network(run):
    watched, metrics = run("simclr", 8)
    alone, metrics_alone = run("simclr", 8, start("simclr").replace(probe=None), without(batch(), "label"))
    assert alone.probe is None
    assert metrics.keys() - metrics_alone.keys() == {"online_top1"}
    assert_close(watched.online, alone.online, rtol=1e-6, atol=1e-7)
    assert_moved(watched.probe.weights, start("simclr").probe.weights)
    np.testing.assert_allclose(metrics["grad_norm"], metrics_alone["grad_norm"], rtol=1e-6)


def probe_reference(weights: np.ndarray, features: np.ndarray, labels: np.ndarray, done: int, mu, nu):
    """(weights, mu, nu, accuracy before) of one step of Adam at 1e-3 on standardised features, in float64."""
    features = np.asarray(features, np.float64)
    x = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    logits = x @ weights
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = x.T @ (softmax - np.eye(weights.shape[1])[labels]) / len(x)
    mu, nu = 0.9 * mu + 0.1 * gradient, 0.999 * nu + 0.001 * gradient**2
    step = mu / (1 - 0.9 ** (done + 1)) / (np.sqrt(nu / (1 - 0.999 ** (done + 1))) + 1e-8)
    return weights - 1e-3 * step, mu, nu, (logits.argmax(1) == labels).mean()


def test_online_top1_is_the_probe_accuracy_before_its_update(run):
    before = start("simclr").probe.weights
    labels = np.tile(batch()["label"], 2)
    weights, *_, accuracy = probe_reference(before, define("simclr").pooled, labels, 0, 0, 0)
    state, metrics = run("simclr", 8)
    assert 0 < accuracy < 1
    np.testing.assert_allclose(metrics["online_top1"], accuracy, rtol=1e-6)
    # The views' features meet their own labels.
    np.testing.assert_allclose(state.probe.weights, weights, atol=2e-5)


@pytest.fixture(scope="module")
def probe_on(mesh_of) -> Callable:
    """probe_on(devices)(probe, features, labels)"""

    @functools.cache
    def on(devices: int):
        split, whole = PartitionSpec(distributed.AXIS), PartitionSpec()
        specs = {"in_specs": (whole, split, split), "out_specs": whole}
        return jax.jit(jax.shard_map(probe_step, mesh=mesh_of(devices), **specs))

    return on


def features_of(count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Features about a centre for each class, on very different scales; the last is always 0, as of a dead unit."""
    rng = np.random.default_rng(3)
    labels = np.arange(count, dtype=np.int32) % CLASSES
    centers = rng.standard_normal((CLASSES, CHANNELS))
    features = centers[labels] + noise * rng.standard_normal((count, CHANNELS))
    features = features * np.geomspace(0.01, 100, CHANNELS) + 7
    features[:, -1] = 0
    return features.astype(np.float32), labels


def new_probe(scale: float) -> OnlineProbe:
    weights = scale * np.random.default_rng(4).standard_normal((CHANNELS + 1, CLASSES)).astype(np.float32)
    return init_probe(CHANNELS, CLASSES)._replace(weights=jnp.asarray(weights))


@pytest.mark.parametrize("devices", [8, 1])
def test_probe_step_is_adam_on_standardised_features(probe_on, devices):
    features, labels = features_of(64, noise=1.0)
    probe = new_probe(0.5)
    first = np.asarray(probe.weights)
    weights, mu, nu = first.astype(np.float64), 0.0, 0.0
    for done in range(3):
        probe, hits = probe_on(devices)(probe, features, labels)
        weights, mu, nu, accuracy = probe_reference(weights, features, labels, done, mu, nu)
        np.testing.assert_allclose(hits, accuracy, rtol=1e-6)
        np.testing.assert_allclose(probe.weights, weights, atol=1e-5)
        # Adam's steps are the same for any multiple of a gradient; its averages are not.
        (adam, _) = probe.opt_state
        assert adam.count == done + 1
        np.testing.assert_allclose(adam.mu, mu, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(adam.nu, nu, rtol=1e-3, atol=1e-9)
    np.testing.assert_array_equal(probe.weights[CHANNELS - 1], first[CHANNELS - 1])


def test_probe_learns_separable_classes(probe_on):
    features, labels = features_of(64, noise=0.3)
    probe, accuracies = new_probe(0.0), []
    for _ in range(40):
        probe, accuracy = probe_on(8)(probe, features, labels)
        accuracies.append(float(accuracy))
    # Weights of 0 say class 0 of everything.
    assert accuracies[0] == np.mean(labels == 0)
    assert accuracies[-1] == 1
