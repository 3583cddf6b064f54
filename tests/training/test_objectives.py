"""MoCo, SimCLR and SimSiam: their step on 8 simulated devices against 1 and against their papers' formulas written
without any collective, MoCo's queue, the probe that watches, and what a run of another objective needs of the rest.

A compilation takes most of a test's time. So the step's network has a stand-in for the ResNet, views are normalised
and not augmented (test_steps.py has both), and one compiled step serves many tests.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import Step, logged
from jax.sharding import PartitionSpec

from configs import common, demo, folder
from cvsa_jax import losses, settings
from cvsa_jax.models.heads import Head
from cvsa_jax.models.resnet import batch_norm
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runs import pretrain
from cvsa_jax.runtime import distributed
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import checkpoint, photometric
from cvsa_jax.training import step as steps
from cvsa_jax.training.optim import online_probe_optimizer
from cvsa_jax.training.state import OnlineProbe, Queue, TrainState, init_state, target_parts

BATCH, SIZE, MASK, CLASSES, CHANNELS = 16, 16, 4, 5, 16
LEARNING_RATE, TEMPERATURE, WEIGHT, TAU = 0.1, 0.3, 2.0, 0.75
TURNS = 3  # the queue holds the keys of so many batches
KEYS = 2 * BATCH
# Plain gradient descent, so that a gradient that is N times too large moves the parameters N times too far.
OPTIMIZER = optax.sgd(LEARNING_RATE)
NEW = ("moco", "simclr", "simsiam")  # BYOL is the subject of test_steps.py
FIRST_VIEWS, SECOND_VIEWS = slice(0, BATCH), slice(BATCH, KEYS)
# One photometric parameter set is as good as another where `augment` is replaced.
STILL = photometric.Photometric(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

numpy_of = functools.partial(jax.tree.map, np.asarray)
assert_equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)
# Takes half the time to compile.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Patches(nn.Module):
    """One smooth layer in the ResNet's place."""

    axis_name: str | None

    @nn.compact
    def __call__(self, images, train: bool):
        x = nn.Conv(CHANNELS, (8, 8), 8, use_bias=False)(images)
        x = nn.tanh(batch_norm(train, self.axis_name, name="bn")(x))
        return x, x.mean((1, 2))


class Small(Siamese):
    def setup(self):
        self.backbone = Patches(self.axis_name)
        head = lambda: Head(self.head_hidden, self.head_out, self.axis_name, self.dtype)  # noqa: E731
        self.projector, self.predictor = head(), head()
        self.conv_projector, self.conv_predictor = head(), head()


MODEL = Small(depth=8, width=4, stem="small", head_hidden=16, head_out=8, axis_name=distributed.AXIS)


@pytest.fixture(scope="module")
def still_views():
    def normalized(views, keys, strengths):
        return photometric.normalize(photometric.to_float(views))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps.photometric, "augment", normalized)
        yield


def assert_close(got, expected, rtol: float = 1e-5, atol: float = 1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, expected)


def assert_moved(got, old):
    """Every leaf of rank > 1 has changed (the bias before a normalisation has no gradient)."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(old), strict=True):
        assert a.ndim == 1 or np.any(a != b)


@functools.cache
def start(name: str) -> TrainState:
    """A state with a probe as NumPy values; the target is unlike the online network."""
    objective = losses.OBJECTIVES[name]
    build = functools.partial(
        init_state,
        MODEL,
        OPTIMIZER,
        SIZE,
        target=objective.target,
        queue=TURNS * KEYS if objective.loss == "info_nce" else 0,
        classes=CLASSES,
    )
    rng = np.random.default_rng(0)

    def values(path, leaf):
        if leaf.ndim > 1:
            return (rng.standard_normal(leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5).astype(np.float32)
        one = getattr(path[-1], "key", "") in ("scale", "var")
        return np.asarray(one + rng.uniform(-0.3, 0.3, leaf.shape), np.float32)

    state = jax.eval_shape(build, jax.random.key(0))
    random = functools.partial(jax.tree_util.tree_map_with_path, values)
    weights = random(state.probe.weights)
    return state.replace(
        step=np.zeros((), np.int32),
        online=random(state.online),
        target=random(state.target),
        queue=None if state.queue is None else Queue(unit(random(state.queue.keys))),
        probe=OnlineProbe(weights, numpy_of(online_probe_optimizer().init(weights))),
    )


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def batch(number: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([1, number])
    views = rng.integers(0, 256, (2, BATCH, SIZE, SIZE, 3), np.uint8)
    masks = rng.integers(0, 256, (2, BATCH, MASK, MASK), np.uint8)
    return {
        "view1": views[0],
        "view2": views[1],
        "mask1": masks[0],
        "mask2": masks[1],
        "position": np.stack([np.zeros(BATCH), number * BATCH + np.arange(BATCH)], 1).astype(np.uint32),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
    }


def without(rows: dict, *names: str) -> dict:
    return {name: values for name, values in rows.items() if name not in names}


@pytest.fixture(scope="module")
def run(mesh_of, still_views) -> Callable:
    """run(objective, devices, …): the state and the metrics after one step, as NumPy."""

    @functools.cache
    def compiled(name: str, devices: int, weight: float):
        mesh = mesh_of(devices)
        step = steps.make_train_step(
            MODEL,
            OPTIMIZER,
            mesh,
            objective=losses.OBJECTIVES[name],
            temperature=TEMPERATURE,
            tau=lambda step: jnp.float32(TAU),
            augment1=STILL,
            augment2=STILL,
            align_form="kl",
            align_weight=weight,
            seed=0,
        )
        return mesh, quick(step)

    def one(
        name: str,
        devices: int,
        state: TrainState | None = None,
        rows: dict | None = None,
        weight: float = WEIGHT,
    ) -> tuple[TrainState, dict]:
        mesh, step_fn = compiled(name, devices, weight)
        # A copy, as the step donates its state's buffers, which on the CPU may be those of the NumPy arrays.
        state = jax.tree.map(np.copy, start(name) if state is None else state)
        state = jax.device_put(state, distributed.replicated(mesh))
        return numpy_of(step_fn(state, distributed.to_mesh(batch() if rows is None else rows, mesh)))

    return one


class Definition(NamedTuple):
    losses: dict
    gradients: dict
    batch_stats: dict
    pooled: np.ndarray
    cosine: np.ndarray  # of the mean pair of query and key


def contrast(name: str, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """The objective of the whole batch, as its paper has it; rows are view 1 of all images, then view 2."""
    one = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    other = np.roll(np.arange(KEYS), BATCH)
    queries, keys = one(queries), one(keys)
    cosine = (queries * keys[other]).sum(-1)
    if name == "simsiam":
        return -(cosine[FIRST_VIEWS].mean() + cosine[SECOND_VIEWS].mean()) / 2
    if name == "moco":
        logits, right = jnp.concatenate([cosine[:, None], queries @ start(name).queue.keys.T], 1), 0
    else:
        logits, right = jnp.fill_diagonal(queries @ queries.T, -jnp.inf, inplace=False), other
    return -jax.nn.log_softmax(logits / TEMPERATURE)[np.arange(KEYS), right].mean()


@pytest.fixture(scope="module")
def by_definition(still_views) -> Callable:
    """by_definition(objective): one step from `start` on the whole batch at once, without a mesh."""

    @functools.cache
    def define(name: str) -> Definition:
        model, old, rows = MODEL.clone(axis_name=None), start(name), batch()
        views = jnp.concatenate([photometric.augment(jnp.asarray(rows[v]), None, STILL) for v in ("view1", "view2")])
        cells = SIZE // model.stride
        mask1, mask2 = (losses.cell_masks(jnp.asarray(rows[m], jnp.float32) / 255, cells) for m in ("mask1", "mask2"))

        @quick
        @functools.partial(jax.jacrev, has_aux=True)
        def loss_fn(params):
            variables = {"params": params, "batch_stats": old.online.batch_stats}
            out, stats = model.apply(variables, views, True, mutable=["batch_stats"])
            goal = out
            if name == "moco":
                goal, _ = model.apply(old.target.variables, views, True, method="project", mutable=["batch_stats"])
            queries = out.prediction if name == "simsiam" else out.projection
            keys = jax.lax.stop_gradient(goal.projection)
            p, z = out.prediction_map, jax.lax.stop_gradient(goal.projection_map)
            aligned = losses.alignment("kl", p[FIRST_VIEWS], z[SECOND_VIEWS], mask1, mask2)
            aligned += losses.alignment("kl", p[SECOND_VIEWS], z[FIRST_VIEWS], mask2, mask1)
            both = {"contrastive": contrast(name, queries, keys), "align": aligned.mean()}
            return both, (both, stats["batch_stats"], out.pooled, queries, keys)

        gradients, (both, stats, pooled, queries, keys) = numpy_of(loss_fn(old.online.params))
        cosine = (unit(queries) * np.roll(unit(keys), BATCH, 0)).sum(-1).mean()
        return Definition(both, gradients, stats, pooled, cosine)

    return define


def assert_gradient(before, after, expected):
    """Gradient descent has made this step."""
    moved = jax.tree.map(lambda old, new: (old - new) / LEARNING_RATE, before, after)
    for (path, got), want in zip(jax.tree.leaves_with_path(moved), jax.tree.leaves(expected), strict=True):
        # By norms, as rounding can turn on a single unit of a head.
        assert np.linalg.norm(got - want) <= 1e-3 * np.linalg.norm(want) + 2e-5, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", NEW)
def test_gradient_on_8_devices_is_that_of_the_whole_batch(run, by_definition, name):
    gradients = by_definition(name).gradients
    expected = jax.tree.map(lambda c, a: c + WEIGHT * a, gradients["contrastive"], gradients["align"])
    state, metrics = run(name, 8)
    assert_gradient(start(name).online.params, state.online.params, expected)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(expected)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-3)


@pytest.mark.parametrize("name", NEW)
def test_losses_on_8_devices_are_those_of_the_whole_batch(run, by_definition, name):
    expected = by_definition(name)
    _, metrics = run(name, 8)
    whole = expected.losses | {"loss": expected.losses["contrastive"] + WEIGHT * expected.losses["align"]}
    assert_close({key: metrics[key] for key in whole}, whole)
    assert metrics["align"] > 0.01
    # The query of one view and the key of the other.
    np.testing.assert_allclose(metrics["target_cosine"], expected.cosine, atol=1e-5)


@pytest.mark.parametrize("name", NEW)
def test_step_on_8_devices_equals_step_on_1(run, name):
    (on8, metrics8), (on1, metrics1) = run(name, 8), run(name, 1)
    assert_close(on8, on1, atol=2e-5)
    assert metrics8.keys() == metrics1.keys()
    assert_close(metrics8, metrics1, rtol=1e-4)
    assert on8.step == on1.step == 1


@pytest.mark.parametrize("name", NEW)
def test_metrics_of_an_objective(run, name):
    _, metrics = run(name, 8)
    expected = {"loss", "contrastive", "grad_norm", "align", "align_hit", "usable_pairs", "online_top1"}
    expected |= {"projection_std", "effective_rank", "target_cosine"}
    assert metrics.keys() == expected | ({"tau"} if name == "moco" else set())


@pytest.mark.parametrize("name", ["simclr", "simsiam"])
def test_objectives_without_a_target_network(run, name):
    state, _ = run(name, 8)
    assert start(name).target is None and start(name).queue is None
    assert state.target is None and state.queue is None


def test_target_of_moco_follows_the_updated_online_network(run):
    state, metrics = run("moco", 8)
    assert metrics["tau"] == TAU
    new, old = target_parts(state.online.params), start("moco").target.params
    assert_close(state.target.params, jax.tree.map(lambda o, n: TAU * o + (1 - TAU) * n, old, new), atol=1e-6)


@pytest.mark.parametrize("name", NEW)
def test_heads_that_an_objective_with_alignment_trains(run, by_definition, name):
    before, (state, _) = start(name).online, run(name, 8)
    expected = by_definition(name).batch_stats
    trained = {"backbone", "projector", "conv_projector", "conv_predictor"} | (
        {"predictor"} if name == "simsiam" else set()
    )
    assert state.online.params.keys() == state.online.batch_stats.keys() == before.params.keys() >= trained
    for part in before.params:
        if part in trained:
            assert_moved(state.online.params[part], before.params[part])
            assert_close(state.online.batch_stats[part], expected[part])
        else:
            assert_equal(state.online.params[part], before.params[part])
            assert_equal(state.online.batch_stats[part], before.batch_stats[part])


def test_without_alignment_the_objective_alone_is_trained(run, by_definition):
    before, expected = start("simsiam").online, by_definition("simsiam")
    rows = without(batch(), "mask1", "mask2", "label")
    state, metrics = run("simsiam", 8, start("simsiam").replace(probe=None), rows, weight=0.0)
    assert_gradient(before.params, state.online.params, expected.gradients["contrastive"])
    assert metrics["loss"] == metrics["contrastive"]
    np.testing.assert_allclose(metrics["loss"], expected.losses["contrastive"], rtol=1e-5)
    assert not {"align", "align_hit", "usable_pairs", "online_top1"} & metrics.keys()
    for part in ("conv_projector", "conv_predictor"):
        assert_equal(state.online.params[part], before.params[part])
        assert_equal(state.online.batch_stats[part], before.batch_stats[part])


# MoCo's queue.


@pytest.fixture(scope="module")
def keys_of(still_views) -> Callable:
    """(target network, batch) -> its unit projections, view 1 of all images and then view 2, without a mesh."""

    @quick
    def project(network, views):
        views = photometric.augment(views, None, STILL)
        model = MODEL.clone(axis_name=None)
        return model.apply(network.variables, views, True, method="project", mutable=["batch_stats"])[0].projection

    return lambda network, rows: unit(np.asarray(project(network, np.concatenate([rows["view1"], rows["view2"]]))))


@pytest.mark.parametrize("devices", [8, 1])
def test_queue_holds_the_target_projections_of_the_last_batches_in_global_order(run, keys_of, devices):
    state = start("moco")
    slots = np.split(state.queue.keys, TURNS)
    for step in range(TURNS + 1):
        # Those of the target network that the step starts with.
        slots[step % TURNS] = keys_of(state.target, batch(step))
        state, _ = run("moco", devices, state, batch(step))
        np.testing.assert_allclose(state.queue.keys, np.concatenate(slots), atol=2e-6, err_msg=f"step {step}")
        if step == TURNS - 1:
            # Nothing is left of the keys that the queue began with.
            assert not np.any(np.all(state.queue.keys == start("moco").queue.keys, axis=1))


def test_moco_is_compared_with_the_queue_as_it_was_before_the_step(run, keys_of):
    # Were the batch's own keys in the queue, a query would find its key there a second time, as a negative.
    _, plain = run("moco", 8)
    rows = batch()
    crowded = start("moco").queue.keys.copy()
    crowded[:KEYS] = keys_of(start("moco").target, rows)
    state, with_keys = run("moco", 8, start("moco").replace(queue=Queue(crowded)))
    assert with_keys["contrastive"] > plain["contrastive"] + 0.05
    # The slot is the one that the step writes, so the queue is afterwards the same.
    assert_close(state.queue.keys, run("moco", 8)[0].queue.keys, atol=2e-6)


def test_queue_of_one_batch_is_replaced_by_every_step(mesh_of):
    rng = np.random.default_rng(2)
    old, keys = rng.standard_normal((2, KEYS, 8)).astype(np.float32)
    keys[5] = 0
    split, whole = PartitionSpec(distributed.AXIS), PartitionSpec()
    enqueue = jax.jit(jax.shard_map(steps._enqueued, mesh=mesh_of(8), in_specs=(whole, split, whole), out_specs=whole))
    # On each device view 1 of its images, then view 2.
    global_order = np.concatenate([keys.reshape(8, 2, -1, 8)[:, view].reshape(-1, 8) for view in (0, 1)])
    expected = global_order / np.maximum(np.linalg.norm(global_order, axis=1, keepdims=True), 1e-9)
    for step in (0, 1, 7):
        got = enqueue(Queue(unit(old)), keys, np.int32(step))
        np.testing.assert_allclose(got.keys, expected, atol=1e-6)


# The probe that watches.


def test_the_probe_gives_the_network_nothing(run):
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


def test_online_top1_is_the_accuracy_before_the_probe_learns_from_the_batch(run, by_definition):
    before = start("simclr").probe.weights
    labels = np.tile(batch()["label"], 2)
    weights, *_, accuracy = probe_reference(before, by_definition("simclr").pooled, labels, 0, 0, 0)
    state, metrics = run("simclr", 8)
    assert 0 < accuracy < 1
    np.testing.assert_allclose(metrics["online_top1"], accuracy, rtol=1e-6)
    # The views' features meet their own labels.
    np.testing.assert_allclose(state.probe.weights, weights, atol=2e-5)


@pytest.fixture(scope="module")
def probe_step(mesh_of) -> Callable:
    """probe_step(devices)(probe, features, labels)"""

    @functools.cache
    def on(devices: int):
        split, whole = PartitionSpec(distributed.AXIS), PartitionSpec()
        specs = {"in_specs": (whole, split, split), "out_specs": whole}
        return jax.jit(jax.shard_map(steps._probe_step, mesh=mesh_of(devices), **specs))

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
    return OnlineProbe(jnp.asarray(weights), online_probe_optimizer().init(jnp.asarray(weights)))


@pytest.mark.parametrize("devices", [8, 1])
def test_probe_step_is_adam_on_standardised_features(probe_step, devices):
    features, labels = features_of(64, noise=1.0)
    probe = new_probe(0.5)
    first = np.asarray(probe.weights)
    weights, mu, nu = first.astype(np.float64), 0.0, 0.0
    for done in range(3):
        probe, hits = probe_step(devices)(probe, features, labels)
        weights, mu, nu, accuracy = probe_reference(weights, features, labels, done, mu, nu)
        np.testing.assert_allclose(hits, accuracy, rtol=1e-6)
        np.testing.assert_allclose(probe.weights, weights, atol=1e-5)
        # Adam's steps are the same for any multiple of a gradient; its averages are not.
        (adam, _) = probe.opt_state
        assert adam.count == done + 1
        np.testing.assert_allclose(adam.mu, mu, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(adam.nu, nu, rtol=1e-3, atol=1e-9)
    np.testing.assert_array_equal(probe.weights[CHANNELS - 1], first[CHANNELS - 1])


def test_probe_learns_classes_that_can_be_told_apart(probe_step):
    features, labels = features_of(64, noise=0.3)
    probe, accuracies = new_probe(0.0), []
    for _ in range(40):
        probe, accuracy = probe_step(8)(probe, features, labels)
        accuracies.append(float(accuracy))
    # Weights of 0 say class 0 of everything.
    assert accuracies[0] == np.mean(labels == 0)
    assert accuracies[-1] == 1


# The state at the start, and as a checkpoint.


@pytest.fixture(scope="module")
def initial() -> Callable:
    compiled = quick(
        functools.partial(init_state, MODEL, optax.adam(1e-3), SIZE),
        static_argnames=("target", "queue", "classes"),
    )
    return functools.cache(lambda **kwargs: numpy_of(compiled(jax.random.key(5), **kwargs)))


def test_initial_state_holds_what_was_asked_for(initial):
    plain, full = initial(target=False), initial(target=True, queue=24, classes=3)
    assert plain.target is None and plain.queue is None and plain.probe is None
    assert_equal(full.target.params, target_parts(full.online.params))
    assert full.queue.keys.shape == (24, 8)
    np.testing.assert_allclose(np.linalg.norm(full.queue.keys, axis=1), 1, rtol=1e-5)
    # Random directions: as many different ones as keys, about half to either side of any axis.
    assert np.abs(full.queue.keys.mean(0)).max() < 0.3
    assert np.abs(np.tril(full.queue.keys @ full.queue.keys.T, -1)).max() < 1 - 1e-4
    assert full.probe.weights.shape == (CHANNELS + 1, 3) and not np.any(full.probe.weights)
    # The rest does not depend on what else was asked for.
    assert_equal(plain.online, full.online)


def saved(folder, state, mesh) -> None:
    checkpoints = checkpoint.Checkpointer(folder)
    checkpoints.save(jax.device_put(state, distributed.replicated(mesh)), {"images": 3})
    checkpoints.close()


def restored(folder, like, mesh) -> TrainState:
    checkpoints = checkpoint.Checkpointer(folder)
    state, meta = checkpoints.restore(like, mesh)
    checkpoints.close()
    assert meta == {"images": 3}
    return state


def test_checkpoint_holds_what_the_state_has(tmp_path, initial, mesh_of):
    for name, kwargs in {
        "simclr": {"target": False},
        "moco": {"target": True, "queue": 24, "classes": 3},
    }.items():
        blank = initial(**kwargs)
        state = jax.tree.map(lambda x: x + np.asarray(1, x.dtype), blank)
        saved(tmp_path / name, state, mesh_of(8))
        items = {path.name for path in (tmp_path / name / "ckpt" / "1").iterdir() if path.is_dir()}
        expected = {"online", "opt_state", "meta"} | ({"target", "queue", "probe"} if name == "moco" else set())
        assert items == expected
        back = restored(tmp_path / name, blank, mesh_of(2))
        assert jax.tree.structure(back) == jax.tree.structure(state)
        assert_equal(numpy_of(back), state)
    queue, step = checkpoint.restore_item(tmp_path / "moco", "queue", blank.queue, mesh_of(2))
    assert_equal(numpy_of(queue), state.queue)
    assert step == 1
    with pytest.raises(UserError, match=r"simclr/ckpt/1 holds no 'target'"):
        checkpoint.restore_item(tmp_path / "simclr", "target", state.target, mesh_of(2))


def test_a_run_starts_from_a_run_of_another_objective(tmp_path, initial, mesh_of):
    simclr, moco = initial(target=False), initial(target=True, queue=24, classes=3)
    online = jax.tree.map(lambda x: x + 1, simclr.online)
    saved(tmp_path, simclr.replace(online=online), mesh_of(2))
    state, _ = checkpoint.init_from(tmp_path, moco, mesh_of(2))
    assert_equal(numpy_of(state.online), online)
    assert_equal(numpy_of(state.target.params), target_parts(online.params))
    assert_equal(numpy_of(state.target.batch_stats), target_parts(online.batch_stats))
    assert_equal((state.queue, state.probe, state.opt_state), (moco.queue, moco.probe, moco.opt_state))
    without_target, _ = checkpoint.init_from(tmp_path, simclr, mesh_of(2))
    assert_equal(numpy_of(without_target.online), online)
    assert without_target.target is None


# The settings.


def config_of(name: str, **changes):
    config = common.pretrain()
    config.objective = name
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def test_queue_scales_with_the_set():
    # In whole batches of 2 · 256 keys: as many as images, at least one batch, at most 65,536.
    sizes = {50: 512, 512: 512, 1023: 512, 1024: 1024, 5994: 5632, 65_536: 65_536, 1_281_167: 65_536}
    assert {images: settings.queue_size(config_of("moco"), images) for images in sizes} == sizes
    # 65,536 is no multiple of 2 · 96.
    assert settings.queue_size(config_of("moco", batch_size=96), 1_281_167) == 341 * 192
    assert settings.queue_size(config_of("moco", contrast__queue=1024), 50) == 1024


@pytest.mark.parametrize("name", ["byol", "simclr", "simsiam"])
def test_only_moco_has_a_queue(name):
    assert settings.queue_size(config_of(name, contrast__queue=1000), 5994) == 0


@pytest.mark.parametrize("queue", [-512, 0, 1, 256, 511, 513, 1000])
def test_queue_that_is_not_a_multiple_of_a_batch_s_keys(queue):
    with pytest.raises(UserError, match=rf"config\.contrast\.queue={queue} is not a multiple of the 512 keys"):
        settings.queue_size(config_of("moco", contrast__queue=queue), 5994)


def test_unknown_objective_lists_the_known_ones():
    with pytest.raises(UserError, match=r"config\.objective='mocov3' .*byol, moco, simclr, simsiam"):
        settings.objective(config_of("mocov3"))
    assert settings.objective(config_of("simsiam")) == losses.OBJECTIVES["simsiam"]


@pytest.mark.parametrize("name", common.OBJECTIVES)
def test_option_of_an_objective(name):
    plain, with_cvsa = folder.get_config(name), folder.get_config(f"{name},cvsa")
    assert plain.objective == with_cvsa.objective == name
    assert (plain.views.kind, plain.align.weight) == ("random_resized_crop", 0.0)
    assert (with_cvsa.views.kind, with_cvsa.align.weight) == ("saliency_swap", 1.0)
    # The recipe is the objective's either way.
    for part in ("optim", "target", "contrast", "augment"):
        assert plain[part].to_dict() == with_cvsa[part].to_dict()
    recipe = (plain.optim.name, plain.optim.lr, plain.optim.weight_decay, plain.contrast.temperature)
    assert (
        recipe
        == {
            "byol": ("lars", 0.45, 1e-6, 0.2),
            "moco": ("sgd", 0.03, 1e-4, 0.2),
            "simclr": ("lars", 0.3, 1e-6, 0.1),
            "simsiam": ("sgd", 0.05, 1e-4, 0.2),
        }[name]
    )
    assert (plain.target.tau, plain.target.cosine) == ((0.999, False) if name == "moco" else (0.99, True))


def test_two_objectives_at_a_time():
    with pytest.raises(ValueError, match=r"moco, simclr: one objective at a time"):
        demo.get_config("simclr,moco")


# Whole runs.


@pytest.fixture(scope="module")
def quick_runs(tmp_path_factory):
    # Runs of one configuration compile once, and not for speed; on two devices, with the stand-in for the ResNet, and
    # without the report at the end: test_run.py has whole runs.
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "make_mesh", lambda: distributed.make_mesh(jax.devices()[:2]))
        patch.setattr(settings, "model", lambda given: MODEL)
        patch.setattr(pretrain, "report_run", lambda *args, **kwargs: {})
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_compilation_cache_dir", None)


def tiny(name: str):
    """The demo's config on a budget of seconds; a queue of three batches."""
    config = demo.get_config(name)
    config.data.procedural.update(classes=3, train_per_class=7, test_per_class=1, size=32)
    config.views.size = config.eval.size = config.eval.resize = 32
    config.batch_size, config.total_steps, config.optim.warmup_steps = 8, 10, 2
    config.log_steps, config.checkpoint_steps, config.watch.knn_steps = 1, 5, 0
    config.contrast.queue = 48
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick_runs):
    """A run of MoCo that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    pretrain.train(tiny("moco"), workdir)
    return workdir


def final_state(workdir) -> TrainState:
    config = tiny("moco")
    optimizer, _ = settings.optimizer(config, 21)
    build = functools.partial(init_state, settings.model(config.model), optimizer, 32, queue=48, classes=3)
    checkpoints = checkpoint.Checkpointer(workdir)
    state, _ = checkpoints.restore(jax.eval_shape(build, jax.random.key(0)), pretrain.make_mesh())
    checkpoints.close()
    return numpy_of(state)


def kill_at(patch, step: int) -> None:
    """Makes the `step`-th training step of this process die."""
    make = pretrain.make_train_step

    def dying(*args, **kwargs):
        real = make(*args, **kwargs)

        def train_step(state, batch):
            if int(state.step) + 1 == step:
                raise KeyboardInterrupt
            return real(state, batch)

        return Step(train_step)

    patch.setattr(pretrain, "make_train_step", dying)


def test_moco_of_ten_steps_is_five_and_a_kill_and_five(tmp_path, monkeypatch, finished):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 8)
        pretrain.train(tiny("moco"), tmp_path / "run")
    assert [row["step"] for row in logged(tmp_path / "run")] == list(range(1, 8))
    pretrain.train(tiny("moco"), tmp_path / "run")
    state, expected = final_state(tmp_path / "run"), final_state(finished)
    for (path, got), want in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, want, err_msg=jax.tree_util.keystr(path))
    rows = logged(finished)
    assert logged(tmp_path / "run") == rows
    assert rows[0].keys() >= {"train/contrastive", "train/online_top1", "train/tau", "health/projection_std"}
    assert "train/align" not in rows[0]
    # What has been compared is not what a run begins with.
    assert state.step == 10 and np.any(state.probe.weights) and state.probe.opt_state[0].count == 10
    np.testing.assert_allclose(np.linalg.norm(state.queue.keys, axis=1), 1, rtol=1e-5)


def test_workdir_of_another_objective_is_refused(finished):
    with pytest.raises(
        UserError, match=r"(?s)holds a run with another config:.*\n  objective: moco -> simclr\n"
    ) as error:
        pretrain.train(tiny("simclr"), finished)
    assert "or give another --workdir" in str(error.value)
    assert logged(finished)[-1]["step"] == 10


@pytest.mark.parametrize(
    ("key", "value", "change"),
    [("contrast.queue", 32, "48 -> 32"), ("watch.online_probe", False, "True -> False")],
)
def test_workdir_of_another_queue_or_without_its_probe_is_refused(finished, key, value, change):
    config = tiny("moco")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=rf"{key.replace('.', r'[.]')}: {change}"):
        settings.compare_config(config, finished)


def test_temperature_of_a_run_may_change(finished):
    config = tiny("moco")
    config.contrast.temperature = 0.1
    assert settings.compare_config(config, finished) == ["contrast.temperature: 0.2 -> 0.1"]


def test_run_with_a_bad_queue_does_not_begin(tmp_path, quick_runs):
    config = tiny("moco")
    config.contrast.queue = 24
    with pytest.raises(UserError, match=r"config\.contrast\.queue=24 is not a multiple of the 16 keys of a batch"):
        pretrain.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
