"""The step of fine-tuning on 8 simulated devices against 1, and against the whole batch without a mesh."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.comparing import assert_close, numpy_of
from support.compiling import kernels_summed, quick

from cvsa_jax.models.classifier import Classifier
from cvsa_jax.runtime import distributed
from cvsa_jax.training.finetune_step import ClassifierState, init_classifier, make_finetune_step
from cvsa_jax.training.state import Network

BATCH, SIZE, CLASSES = 16, 16, 5
LEARNING_RATE = 0.01
MODEL = Classifier(CLASSES, depth=8, width=4, stem="small", axis_name=distributed.AXIS)
# Plain gradient descent, so that a gradient that is N times too large moves the parameters N times too far.
OPTIMIZER = optax.sgd(LEARNING_RATE)
# Unequal shares, and no device of eight that holds as many of each as another.
LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4], np.int32)


@functools.cache
def initial() -> ClassifierState:
    return numpy_of(quick(functools.partial(init_classifier, MODEL, OPTIMIZER, SIZE))(jax.random.key(0)))


@functools.cache
def start() -> ClassifierState:
    """Random values in the state's shape: a classifier of zeros would give the backbone no gradient, and a residual
    branch scaled by 0 its convolutions none."""
    rng = np.random.default_rng(0)

    def values(path, leaf):
        if leaf.ndim > 1:
            return (rng.standard_normal(leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5).astype(np.float32)
        return ((path[-1].key in ("scale", "var")) + rng.uniform(-0.3, 0.3, leaf.shape)).astype(np.float32)

    network = jax.tree_util.tree_map_with_path(values, initial().network)
    return initial().replace(network=network)


@functools.cache
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    # Images of very different brightness: the statistics of two of them are not those of all.
    images = rng.integers(0, 256, (BATCH, SIZE, SIZE, 3)) * np.linspace(0.1, 1, BATCH)[:, None, None, None]
    return {"image": images.astype(np.uint8), "label": LABELS}


@pytest.fixture(scope="module")
def run(mesh_of) -> Callable:
    """run(devices, state): the state and the metrics after one step, as NumPy."""

    @functools.cache
    def compiled(devices: int):
        mesh = mesh_of(devices)
        return mesh, quick(make_finetune_step(MODEL, OPTIMIZER, mesh))

    def one(devices: int, state: ClassifierState) -> tuple[ClassifierState, dict]:
        mesh, step = compiled(devices)
        # A copy, because the step donates its state's buffers, which on the CPU may be those of the NumPy arrays.
        placed = jax.device_put(jax.tree.map(np.copy, state), distributed.replicated(mesh))
        return numpy_of(step(placed, distributed.to_mesh(batch(), mesh)))

    return one


@pytest.fixture(scope="module")
def by_definition() -> tuple[dict, dict, Network]:
    """(metrics, gradients, network after one step) of the whole batch at once, without a mesh."""
    model, old, rows = MODEL.clone(axis_name=None), start().network, batch()
    # What ImageNet's networks are given.
    images = (rows["image"] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    images = jnp.asarray(images, jnp.float32)

    @quick
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_fn(params):
        variables = {"params": params, "batch_stats": old.batch_stats}
        logits, mutated = model.apply(variables, images, True, mutable=["batch_stats"])
        likelihoods = jnp.exp(logits) / jnp.exp(logits).sum(1, keepdims=True)
        return -jnp.log(likelihoods[np.arange(BATCH), LABELS]).mean(), (mutated["batch_stats"], logits)

    (loss, (stats, logits)), gradients = numpy_of(loss_fn(old.params))
    hits = int((logits.argmax(1) == LABELS).sum())
    assert 0 < hits < BATCH
    norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(gradients)))
    params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, old.params, gradients)
    return {"loss": loss, "top1": hits / BATCH, "grad_norm": norm}, gradients, Network(params, stats)


@pytest.mark.parametrize("devices", [1, 8])
def test_gradient_equals_whole_batch_gradient(run, by_definition, devices):
    _, gradients, _ = by_definition
    state, _ = run(devices, start())
    moved = jax.tree.map(lambda old, new: (old - new) / LEARNING_RATE, start().network.params, state.network.params)
    for (path, got), want in zip(jax.tree.leaves_with_path(moved), jax.tree.leaves(gradients), strict=True):
        # By norms and not too tight, as rounding can turn a single activation on; a gradient of 0 would be 1.
        assert np.linalg.norm(want) > 1e-3, jax.tree_util.keystr(path)
        assert np.linalg.norm(got - want) <= 5e-3 * np.linalg.norm(want), jax.tree_util.keystr(path)


@pytest.mark.parametrize("devices", [1, 8])
def test_metrics_equal_whole_batch_metrics(run, by_definition, devices):
    expected, *_ = by_definition
    _, metrics = run(devices, start())
    assert metrics.keys() == expected.keys()
    assert_close(metrics, expected, rtol=1e-3)
    assert metrics["top1"] == expected["top1"]


@pytest.mark.parametrize("devices", [1, 8])
def test_batch_statistics_equal_whole_batch_statistics(run, by_definition, devices):
    *_, network = by_definition
    state, _ = run(devices, start())
    assert_close(state.network.batch_stats, network.batch_stats)
    changed = jax.tree.map(lambda new, old: bool(np.any(new != old)), network.batch_stats, start().network.batch_stats)
    assert all(jax.tree.leaves(changed))


def test_step_on_8_devices_equals_step_on_1(run):
    (on8, metrics8), (on1, metrics1) = run(8, start()), run(1, start())
    # One activation that rounding turns on moves a parameter by about 1e-5; N times the gradient, by 1e-2.
    assert_close(on8.network, on1.network, atol=5e-5)
    assert_close(metrics8, metrics1, rtol=1e-3)
    assert on8.step == on1.step == 1


def test_kernels_gradients_are_summed_in_float32(mesh_of):
    mesh = mesh_of(2)
    step = make_finetune_step(MODEL.clone(dtype=jnp.bfloat16), OPTIMIZER, mesh)
    state = jax.device_put(jax.tree.map(np.copy, start()), distributed.replicated(mesh))
    once, in_loops = kernels_summed(step, state.network.params, state, distributed.to_mesh(batch(), mesh))
    kernels = [leaf for leaf in jax.tree.leaves(start().network.params) if leaf.ndim > 1]
    assert in_loops == [] and sorted(once) == sorted((kernel.shape, "float32") for kernel in kernels)


def test_first_step_of_zero_classifier_matches_hand_calculation(run):
    # All classes are equally likely: the loss is log 5 whatever the features, the first class counts as the guess,
    # and the biases move by the rate times the classes' frequencies less 1/5.
    state, metrics = run(8, initial())
    np.testing.assert_allclose(metrics["loss"], np.log(CLASSES), rtol=1e-6)
    assert metrics["top1"] == 5 / 16
    frequencies = np.array([5, 4, 3, 2, 2]) / 16
    bias = state.network.params["head"]["bias"]
    np.testing.assert_allclose(bias, LEARNING_RATE * (frequencies - 1 / CLASSES), rtol=1e-4, atol=1e-8)
    # Nothing passes through the zeros: the first step moves the classifier alone.
    jax.tree.map(np.testing.assert_array_equal, state.network.params["backbone"], initial().network.params["backbone"])


def test_initial_state_has_random_backbone_zero_classifier_and_step_0():
    state = initial()
    assert state.step == 0 and state.step.dtype == np.int32
    params, stats = state.network.params, state.network.batch_stats
    assert params.keys() == {"backbone", "head"} and stats.keys() == {"backbone"}
    assert params["head"]["kernel"].shape == (16, CLASSES)
    assert not params["head"]["kernel"].any() and not params["head"]["bias"].any()
    kernels = [leaf for leaf in jax.tree.leaves(params["backbone"]) if leaf.ndim == 4]
    assert len(kernels) == 9
    for kernel in kernels:  # He et al., by the outputs
        spread = (2 / (kernel.shape[0] * kernel.shape[1] * kernel.shape[3])) ** 0.5
        assert np.std(kernel) == pytest.approx(spread, rel=0.3)
    for path, leaf in jax.tree.leaves_with_path(stats):
        np.testing.assert_array_equal(leaf, 1.0 if path[-1].key == "var" else 0.0)


def test_initial_state_follows_the_key_and_holds_optimizer_state():
    optimizer = optax.sgd(0.1, momentum=0.9)
    make = quick(functools.partial(init_classifier, MODEL, optimizer, SIZE))
    again, other = (numpy_of(make(jax.random.key(k))) for k in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, again.network, initial().network)
    stem = lambda state: state.network.params["backbone"]["stem_conv"]["kernel"]  # noqa: E731
    assert (stem(again) != stem(other)).all()
    trace = again.opt_state[0].trace
    assert jax.tree.map(np.shape, trace) == jax.tree.map(np.shape, again.network.params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(trace))
