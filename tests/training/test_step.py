"""The training step on 8 simulated devices against 1, and against the method written without any collective.

A compilation takes most of a test's time, so the compiled steps are shared, and tau is a table over the step's number:
a test sets the step in the state to choose its tau.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from support.comparing import assert_close, assert_equal, assert_moved, numpy_of
from support.compiling import kernels_summed, on_mesh, quick

from cvsa_jax import losses
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime import distributed
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import photometric
from cvsa_jax.training import step as steps
from cvsa_jax.training.accumulation import Pass, Stats, Vectors, accumulated
from cvsa_jax.training.state import Network, TrainState, init_state, target_parts
from cvsa_jax.training.step import Alignment, StepSpec

BATCH, SIZE, MASK, SEED = 16, 16, 4, 7
LEARNING_RATE = 0.01
WEIGHT = 2.0
TAUS = (1.0, 0.0, 0.75)  # at steps 0, 1 and 2
MODEL = Siamese(depth=8, width=4, stem="small", head_hidden=16, head_out=8, axis_name=distributed.AXIS)
# Plain gradient descent, so that a gradient that is N times too large moves the parameters N times too far.
OPTIMIZER = optax.sgd(LEARNING_RATE)
AUGMENT1 = photometric.Photometric(0.4, 0.4, 0.2, 0.1, 0.8, 0.2, 1.0, 0.0)
AUGMENT2 = photometric.Photometric(0.4, 0.4, 0.2, 0.1, 0.8, 0.2, 0.1, 0.2)
# Two devices hold nothing usable, two hold one usable pair of two, four hold usable pairs only.
EMPTY_MASK1, EMPTY_MASK2 = [0, 1, 2, 9], [3, 9, 12]
USABLE = 10


@functools.cache
def start() -> TrainState:
    """NumPy values in the state's shape, the target unlike the online network and no residual branch scaled by 0."""
    shapes = jax.eval_shape(lambda key: init_state(MODEL, OPTIMIZER, SIZE, key), jax.random.key(0))
    rng = np.random.default_rng(0)

    def values(path, leaf):
        if leaf.dtype == jnp.int32:
            return np.zeros(leaf.shape, np.int32)
        name = path[-1].key
        if leaf.ndim > 1:
            return (rng.standard_normal(leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5).astype(np.float32)
        return ((name in ("scale", "var")) + rng.uniform(-0.3, 0.3, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(values, shapes)


@functools.cache
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    masks = rng.integers(0, 256, (2, BATCH, MASK, MASK), np.uint8)
    masks[0, EMPTY_MASK1] = 0
    masks[1, EMPTY_MASK2] = 0
    views = rng.integers(0, 256, (2, BATCH, SIZE, SIZE, 3), np.uint8)
    return {
        "view1": views[0],
        "view2": views[1],
        "mask1": masks[0],
        "mask2": masks[1],
        "position": np.stack([np.full(BATCH, 3), 2**31 + np.arange(BATCH)], 1).astype(np.uint32),
    }


def spec_of(weight: float, accumulate: int = 1, name: str = "byol") -> StepSpec:
    return StepSpec(
        objective=losses.OBJECTIVES[name],
        temperature=0.2,
        align=Alignment(weight, "kl", 0.2),
        augment=(AUGMENT1, AUGMENT2),
        tau=lambda step: jnp.array(TAUS)[step],
        seed=SEED,
        accumulate=accumulate,
    )


def train_step_on(mesh, weight: float, accumulate: int = 1) -> Callable:
    return steps.make_train_step(MODEL, OPTIMIZER, mesh, spec_of(weight, accumulate))


@pytest.fixture(scope="module")
def run(mesh_of) -> Callable:
    """run(devices, weight, batch=…, step=…): the state and the metrics after one step from `start`, as NumPy."""

    @functools.cache
    def compiled(devices: int, weight: float):
        mesh = mesh_of(devices)
        step = train_step_on(mesh, weight)
        # The step that most tests use is compiled as in a run, the two others as quickly as can be.
        return mesh, step if (devices, weight) == (8, WEIGHT) else quick(step)

    def one(devices: int, weight: float, rows: dict | None = None, step: int = 0) -> tuple[TrainState, dict]:
        mesh, step_fn = compiled(devices, weight)
        # The state goes to the mesh first. The copy is there because the step donates its state's buffers, which on
        # the CPU may be those of the NumPy arrays.
        state = jax.tree.map(np.copy, start()).replace(step=np.int32(step))
        state = jax.device_put(state, distributed.replicated(mesh))
        rows = batch() if rows is None else rows
        if weight == 0:
            rows = {name: values for name, values in rows.items() if not name.startswith("mask")}
        return numpy_of(step_fn(state, distributed.to_mesh(rows, mesh)))

    return one


@pytest.fixture(scope="module")
def by_definition() -> tuple[dict, dict, Network, Network]:
    """(losses, their gradients, online, target) of one step on the whole batch at once, without a mesh; the networks
    hold the new batch statistics."""
    model, old, rows = MODEL.clone(axis_name=None), start(), batch()
    fold = jax.random.fold_in
    keys = [fold(fold(jax.random.key(SEED), high), low) for high, low in rows["position"]]
    augment = jax.jit(photometric.augment)
    view1 = augment(jnp.asarray(rows["view1"]), jnp.stack([fold(key, 0) for key in keys]), AUGMENT1)
    view2 = augment(jnp.asarray(rows["view2"]), jnp.stack([fold(key, 1) for key in keys]), AUGMENT2)
    views = jnp.concatenate([view1, view2])
    cells = SIZE // model.stride
    mask1, mask2 = (losses.cell_masks(jnp.asarray(rows[m], jnp.float32) / 255, cells) for m in ("mask1", "mask2"))
    usable = np.setdiff1d(np.arange(BATCH), EMPTY_MASK1 + EMPTY_MASK2)
    assert len(usable) == USABLE

    @quick
    @functools.partial(jax.jacrev, has_aux=True)
    def loss_fn(params):
        target, target_stats = model.apply(old.target.variables, views, True, method="project", mutable=["batch_stats"])
        out, stats = model.apply(
            {"params": params, "batch_stats": old.online.batch_stats}, views, True, mutable=["batch_stats"]
        )
        of1, of2 = slice(0, BATCH), slice(BATCH, 2 * BATCH)
        contrastive = losses.regression(out.prediction[of1], target.projection[of2])
        contrastive += losses.regression(out.prediction[of2], target.projection[of1])
        kl = losses.ALIGNMENT_FORMS["kl"]
        aligned = kl(out.prediction_map[of1], target.projection_map[of2], mask1, mask2, 0.2)
        aligned += kl(out.prediction_map[of2], target.projection_map[of1], mask2, mask1, 0.2)
        both = {"contrastive": contrastive.mean(), "align": aligned[usable].mean()}
        return both, (both, stats["batch_stats"], target_stats["batch_stats"])

    gradients, (both, stats, target_stats) = numpy_of(loss_fn(old.online.params))
    return both, gradients, Network(old.online.params, stats), Network(old.target.params, target_stats)


@pytest.mark.parametrize(
    "weight",
    [pytest.param(0.0, id="without alignment", marks=pytest.mark.slow), pytest.param(WEIGHT, id="with alignment")],
)
def test_gradient_on_8_devices_equals_whole_batch_gradient(run, by_definition, weight):
    _, gradients, *_ = by_definition
    expected = jax.tree.map(lambda c, a: c + weight * a, gradients["contrastive"], gradients["align"])
    state, metrics = run(8, weight)
    moved = jax.tree.map(lambda old, new: (old - new) / LEARNING_RATE, start().online.params, state.online.params)
    for (path, got), want in zip(jax.tree.leaves_with_path(moved), jax.tree.leaves(expected), strict=True):
        # By norms and not too tight, as rounding can turn a single activation on; mostly it is 1e-5.
        assert np.linalg.norm(got - want) <= 5e-3 * np.linalg.norm(want) + 1e-4, jax.tree_util.keystr(path)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(expected)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-3)


def test_losses_on_8_devices_equal_whole_batch_losses(run, by_definition):
    expected, *_ = by_definition
    _, metrics = run(8, WEIGHT)
    expected["loss"] = expected["contrastive"] + WEIGHT * expected["align"]
    assert_close({name: metrics[name] for name in expected}, expected)
    np.testing.assert_allclose(metrics["usable_pairs"], USABLE / BATCH, rtol=1e-6)


def test_batch_statistics_on_8_devices_equal_whole_batch_statistics(run, by_definition):
    *_, online, target = by_definition
    state, _ = run(8, WEIGHT)
    assert_close(state.online.batch_stats, online.batch_stats)
    assert_close(state.target.batch_stats, target.batch_stats)


@pytest.mark.slow
def test_step_on_8_devices_equals_step_on_1(run):
    (on8, metrics8), (on1, metrics1) = run(8, WEIGHT, step=2), run(1, WEIGHT, step=2)
    assert_moved(on8.online.params, start().online.params)
    # One activation that rounding turns on moves a parameter by about 1e-5; N times the gradient, by 1e-2.
    assert_close((on8.online, on8.target), (on1.online, on1.target), atol=5e-5)
    assert metrics8.keys() == metrics1.keys()
    assert_close(metrics8, metrics1, rtol=1e-3)
    assert on8.step == on1.step == 3


def test_target_gets_no_gradient(run):
    state, metrics = run(8, WEIGHT, step=0)
    assert metrics["tau"] == 1
    assert_equal(state.target.params, start().target.params)
    assert_moved(state.online.params, start().online.params)


def test_target_follows_the_updated_online_network(run):
    for step, tau in ((1, 0.0), (2, 0.75)):
        state, metrics = run(8, WEIGHT, step=step)
        assert metrics["tau"] == tau
        new, old = target_parts(state.online.params), start().target.params
        assert_close(state.target.params, jax.tree.map(lambda o, n, t=tau: t * o + (1 - t) * n, old, new), atol=1e-6)


def test_photometric_parameters_follow_the_position(run):
    _, plain = run(8, WEIGHT)
    order = np.random.default_rng(2).permutation(BATCH)
    permuted = {name: values[order] for name, values in batch().items()}
    _, moved_along = run(8, WEIGHT, permuted)
    assert_close(moved_along["loss"], plain["loss"])

    _, left_behind = run(8, WEIGHT, permuted | {"position": batch()["position"]})
    assert abs(left_behind["loss"] - plain["loss"]) > 1e-4
    for word in (0, 1):
        position = batch()["position"].copy()
        position[:, word] += BATCH
        _, elsewhere = run(8, WEIGHT, batch() | {"position": position})
        assert abs(elsewhere["loss"] - plain["loss"]) > 1e-4


def test_step_without_alignment_leaves_conv_heads_unchanged(run):
    state, metrics = run(8, 0.0)
    assert metrics["loss"] == metrics["contrastive"]
    assert not {"align", "align_hit", "usable_pairs"} & metrics.keys()
    before, after = start(), state
    for name in ("conv_projector", "conv_predictor"):
        assert_equal(after.online.params[name], before.online.params[name])
        assert_equal(after.online.batch_stats[name], before.online.batch_stats[name])
    assert_equal(after.target.batch_stats["conv_projector"], before.target.batch_stats["conv_projector"])
    for name in ("backbone", "projector", "predictor"):
        assert_moved(after.online.params[name], before.online.params[name])


def test_align_hit_is_the_share_of_pairs_attending_most_to_the_object(mesh_of):
    # 2x2 cells of one-hot features. The object of view 2 is at cell 3 and has feature 0, so view 1 attends to the cell
    # of view 1 that has feature 0: it is on view 1's object in three of four usable pairs.
    count, where = 8, [0, 1, 2, 3, 0, 1, 2, 3]
    keys = jnp.tile(jnp.eye(4)[jnp.array([1, 2, 3, 0])], (count, 1, 1)).reshape(count, 2, 2, 4)
    queries = jnp.stack([jnp.roll(jnp.eye(4), cell, 0) for cell in where]).reshape(count, 2, 2, 4)
    mask1, mask2 = np.zeros((count, 4), np.uint8), np.zeros((count, 4), np.uint8)
    mask1[np.arange(count), where] = 255
    mask2[:, 3] = 255
    mask1[1] = [255, 0, 0, 0]  # attended: cell 1
    mask2[4:] = 0  # not usable
    rows = {"mask1": jnp.asarray(mask1.reshape(count, 2, 2)), "mask2": jnp.asarray(mask2.reshape(count, 2, 2))}

    def alignment(queries1, queries2, keys1, keys2, rows):
        both = jnp.concatenate([queries1, queries2]), jnp.concatenate([keys1, keys2])
        return steps._alignment(spec_of(1.0).align, *both, steps._masks_in_cells(rows, 2, 1))[1]

    got = on_mesh(alignment, mesh_of(8))(queries, queries, keys, keys, rows)
    assert got == {"align_hit": 0.75, "usable_pairs": 0.5}


@pytest.mark.slow
def test_equal_micro_batches_give_the_whole_batch_step(mesh_of):
    # Each device's rows are twice the same, so that batch statistics of a part are those of the whole; and one of four
    # pairs is unusable.
    half = {name: np.repeat(values[8:12].reshape(2, 1, 2, *values.shape[1:]), 2, 1) for name, values in batch().items()}
    rows = {name: values.reshape(8, *values.shape[3:]) for name, values in half.items()}
    mesh, ended = mesh_of(2), {}
    for parts in (1, 2):
        step = quick(train_step_on(mesh, WEIGHT, accumulate=parts))
        state = jax.device_put(jax.tree.map(np.copy, start()), distributed.replicated(mesh))
        ended[parts] = numpy_of(step(state, distributed.to_mesh(rows, mesh)))
    (whole, metrics), (state, of_parts) = ended[1], ended[2]
    assert of_parts.keys() == metrics.keys() and of_parts["usable_pairs"] == 0.75
    assert_close(of_parts, metrics, rtol=1e-4)
    assert_close(state.online.params, whole.online.params, rtol=1e-3)
    assert_close(state.target.params, whole.target.params)
    assert_moved(state.online.params, start().online.params)
    # The running averages have moved twice by a tenth of the way.
    once, twice, before = (s.online.batch_stats["backbone"]["stem_bn"]["mean"] for s in (whole, state, start()))
    assert_close((twice - before) / 0.19, (once - before) / 0.1, rtol=1e-3)


@pytest.mark.parametrize("parts", [1, 2], ids=["whole batch", "two micro-batches"])
def test_kernel_gradients_are_summed_once_in_float32(mesh_of, parts):
    mesh, model = mesh_of(2), MODEL.clone(dtype=jnp.bfloat16)
    step = steps.make_train_step(model, OPTIMIZER, mesh, spec_of(WEIGHT, parts))
    state = jax.device_put(jax.tree.map(np.copy, start()), distributed.replicated(mesh))
    once, in_loops = kernels_summed(step, state.online.params, state, distributed.to_mesh(batch(), mesh))
    kernels = [leaf for leaf in jax.tree.leaves(start().online.params) if leaf.ndim > 1]
    assert in_loops == []
    assert sorted(once) == sorted((kernel.shape, "float32") for kernel in kernels)


def test_accumulation_averages_over_usable_pairs_and_keeps_vector_order(mesh_of):
    # Three of four usable pairs lie in the first part of the two devices.
    usable = np.array([1, 1, 0, 1, 1, 0, 0, 0], bool)
    value, params = np.arange(8, dtype=np.float32) ** 2, {"scale": jnp.float32(3)}
    rows = {
        "mask1": np.where(usable, 255, 0).astype(np.uint8)[:, None, None],
        "mask2": np.full((8, 1, 1), 255, np.uint8),
        "value": value,
    }

    def one(stats, rows):
        def loss_fn(params):
            loss = jax.lax.psum((rows["weight"] * rows["value"] * params["scale"]).sum(), distributed.AXIS)
            vectors = jnp.concatenate([rows["value"], -rows["value"]])[:, None]
            return loss, Pass(stats, {"loss": loss}, Vectors(*(k * vectors for k in (1, 2, 3, 4))))

        return jax.grad(loss_fn, has_aux=True)(params)

    def whole(rows):
        rows = rows | steps._masks_in_cells(rows, 1, 2)
        grads, done = accumulated(one, params, Stats({}, None), rows, 2)
        return grads["scale"], done.metrics["loss"], done.vectors.key[:, 0]

    mesh, split, same = mesh_of(2), PartitionSpec(distributed.AXIS), PartitionSpec()
    grad, loss, keys = jax.jit(jax.shard_map(whole, mesh=mesh, in_specs=split, out_specs=(same, same, split)))(rows)
    assert grad == value[usable].mean() and loss == 3 * value[usable].mean()
    # On each device view 1 of its rows, then view 2.
    np.testing.assert_array_equal(keys, 4 * np.concatenate([value[:4], -value[:4], value[4:], -value[4:]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, r"config\.contrast\.temperature=0 must be above 0"),
        ({"accumulate": 0}, r"config\.accumulate_steps=0 must be at least 1"),
        ({"accumulate": 2, "objective": losses.OBJECTIVES["simclr"]}, r"config\.accumulate_steps=2 would split"),
    ],
    ids=["temperature", "accumulation", "accumulation of SimCLR"],
)
def test_invalid_step_spec_names_the_key(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(spec_of(0.0), **change)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-1.0, "kl", 0.2), r"config\.align\.weight=-1 must be at least 0"),
        ((1.0, "kld", 0.2), r"config\.align\.form='kld' is unknown; take one of kl, "),
        ((1.0, "kl", 0.0), r"config\.align\.temperature=0 must be above 0"),
    ],
    ids=["weight", "form", "temperature"],
)
def test_invalid_alignment_names_the_key(values, message):
    with pytest.raises(UserError, match=message):
        Alignment(*values)
