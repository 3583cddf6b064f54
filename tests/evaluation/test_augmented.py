"""The linear probe on augmented crops: its step, its fitting, and what the evaluator makes of it.

Except where it is about a network, features are colours of parts of the image: nothing to compile.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.compiling import quick

from cvsa_jax.data import sources
from cvsa_jax.data.index import Order
from cvsa_jax.data.pipeline import crop_batches
from cvsa_jax.data.reading import load_image
from cvsa_jax.data.sources import procedural
from cvsa_jax.evaluation import recognition as summary
from cvsa_jax.evaluation.augmented import fit_crops
from cvsa_jax.evaluation.encode import Encoded
from cvsa_jax.evaluation.evaluator import Evaluator
from cvsa_jax.evaluation.labelled import fraction_rows
from cvsa_jax.evaluation.probe import MOMENTUM, ProbeResult, Standardization
from cvsa_jax.evaluation.protocol import EvalSpec, Knn, Probe
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime import distributed
from cvsa_jax.training.finetune_step import ProbeState, make_probe_step
from cvsa_jax.training.state import Network, init_state

CLASSES, SIZE = 3, 16
SOURCE = sources.load("procedural", "", procedural.Spec(0, CLASSES, train_per_class=8, test_per_class=8, size=SIZE))
TRAIN, TEST = SOURCE.split("train"), SOURCE.split("test")
# A crop of all the area and of aspect exactly 1 never fits, so that the whole square image is taken.
WHOLE = (1.0, 1.0)
PROBE = Probe(
    learning_rates=(0.1, 1.0),
    epochs=3,
    batch_size=8,
    validation_share=0.25,
    folds=1,
    fractions=(1.0,),
    seeds=(0,),
    list_seed=0,
    crop_area=(0.3, 1.0),
)
NOTHING = Network({}, {})


def descend(batches: list[tuple[np.ndarray, np.ndarray]], rate: float, classes: int) -> np.ndarray:
    """Softmax regression in float64 from (features, labels) of each step: SGD with Nesterov momentum, cosine to 0."""
    weights = velocity = np.zeros((batches[0][0].shape[1] + 1, classes))
    for step, (x, y) in enumerate(batches):
        x = np.concatenate([x, np.ones((len(x), 1))], 1)
        shares = np.exp(x @ weights)
        shares /= shares.sum(1, keepdims=True)
        gradient = x.T @ (shares - np.eye(classes)[y]) / len(x)
        velocity = gradient + MOMENTUM * velocity
        schedule = (1 + np.cos(np.pi * step / len(batches))) / 2
        weights = weights - rate * schedule * (gradient + MOMENTUM * velocity)
    return weights


@pytest.mark.parametrize("devices", [1, 8], ids=["1 device", "8 devices"])
def test_probe_step_matches_float64_descent_for_each_rate(mesh_of, devices):
    rates, total = (0.05, 0.5, 3.0), 6
    rng = np.random.default_rng(0)
    mean, std = rng.normal(0, 1, 5), rng.uniform(0.5, 2, 5)
    batches = [
        ((mean + std * rng.normal(0, 1, (16, 5))).astype(np.float32), rng.integers(0, 4, 16).astype(np.int32))
        for _ in range(total)
    ]
    mesh = mesh_of(devices)
    optimizer = optax.sgd(optax.cosine_decay_schedule(1.0, total), MOMENTUM, nesterov=True)
    step = make_probe_step(optimizer, mesh, rates, jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))
    weights = jnp.zeros((3, 6, 4))
    state = jax.device_put(ProbeState(weights, optimizer.init(weights)), distributed.replicated(mesh))
    for x, y in batches:
        # Rows of no weight, of whatever they hold, count for nothing.
        filled = {"pooled": np.pad(x, [(0, 8), (0, 0)], constant_values=99.0), "label": np.pad(y, (0, 8))}
        filled["weight"] = np.pad(np.ones(16, np.float32), (0, 8))
        state = step(state, distributed.to_mesh(filled, mesh))
    expected = [descend([((x - mean) / std, y) for x, y in batches], rate, 4) for rate in rates]
    np.testing.assert_allclose(state.weights, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected[2]).max() > 1


def colours(network: Network, images) -> Encoded:
    """Mean colours of the four quarters of images (B, S, S, 3)."""
    x = jnp.asarray(images, jnp.float32) / 255
    middle = x.shape[1] // 2
    halves = (slice(0, middle), slice(middle, None))
    quarters = [x[:, rows, columns].mean((1, 2)) for rows in halves for columns in halves]
    return Encoded(jnp.concatenate(quarters, 1))


class Seen:
    """An encoder that keeps the images and the features it has given."""

    def __init__(self, encode=colours):
        self.encode, self.images, self.pooled = encode, [], []

    def __call__(self, network, images) -> Encoded:
        encoded = self.encode(network, images)
        self.images.append(np.asarray(images))
        self.pooled.append(np.asarray(encoded.pooled))
        return encoded

    def of(self, network) -> Callable:
        """What encodes images by one network."""
        return functools.partial(self, network)


def whole_images(indices: np.ndarray) -> np.ndarray:
    return np.stack([load_image(SOURCE, int(i)) for i in indices])


def scale_of(indices: np.ndarray) -> Standardization:
    return Standardization.of(np.asarray(colours(NOTHING, whole_images(indices)).pooled))


def fitted(mesh, rows: np.ndarray, rates=(0.1, 1.0), seed: int = 4, **changes):
    """(classifiers of standardised colours, the encoder's record) for `rows` of the train images in reverse order."""
    seen, probe = Seen(), dataclasses.replace(PROBE, **changes)
    fit = fit_crops(seen.of(NOTHING), mesh, SOURCE, TRAIN[::-1], scale_of(TRAIN), probe, size=SIZE, seed=seed)
    return fit(rows, rates), seen


def test_fit_descends_on_fresh_crops_of_selected_rows(mesh_of):
    rows, rates = np.arange(3, 24, 2), (0.1, 2.0)
    weights, seen = fitted(mesh_of(1), rows, rates)
    # 3 epochs of 11 images in batches of 8.
    assert len(seen.pooled) == round(3 * 11 / 8)
    pool = TRAIN[::-1][rows]
    given = crop_batches(SOURCE, pool, Order(8, range(4), seed=4), area=(0.3, 1.0), size=SIZE)
    scale, batches = scale_of(TRAIN), []
    for batch, images, pooled in zip(given, seen.images, seen.pooled, strict=True):
        np.testing.assert_array_equal(images, batch["image"])
        batches.append(((pooled - scale.mean) / scale.std, batch["label"]))
    expected = [descend(batches, rate, CLASSES) for rate in rates]
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("devices", "rows", "batch_size", "batches"),
    [
        pytest.param(1, 24, 8, [8] * 9, id="three epochs"),
        pytest.param(1, 5, 100, [5] * 3, id="batch larger than the set"),
        pytest.param(8, 24, 9, [16] * 8, id="padded to 8 devices"),
        pytest.param(8, 5, 100, [8] * 3, id="fewer rows than devices"),
        pytest.param(1, 1, 100, [1] * 3, id="one row"),
    ],
)
def test_fit_batch_sizes_and_step_count(mesh_of, devices, rows, batch_size, batches):
    _, seen = fitted(mesh_of(devices), np.arange(rows), batch_size=batch_size)
    assert [len(images) for images in seen.images] == batches
    # Of few images a batch shows some twice, but each in a crop of its own.
    flat = np.concatenate(seen.images).reshape(sum(batches), -1)
    flat = flat[flat.any(1)]  # without what fills up
    assert len(np.unique(flat, axis=0)) == len(flat) == len(batches) * min(batch_size, rows)


def test_fit_on_8_devices_matches_1_device(mesh_of):
    for rows in (24, 12, 5):  # the latter of few labels, which do not divide by eight
        on1, on8 = (fitted(mesh_of(devices), np.arange(rows), batch_size=12)[0] for devices in (1, 8))
        np.testing.assert_allclose(on8, on1, rtol=1e-4, atol=1e-5)
        assert np.abs(on1).max() > 0.1


def test_fit_is_deterministic_in_its_seed(mesh_of):
    first, again, other = (fitted(mesh_of(1), np.arange(24), seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_diverging_rate_does_not_affect_others(mesh_of):
    both, alone = (fitted(mesh_of(1), np.arange(24), rates)[0] for rates in ((0.1, 50.0), (0.1,)))
    np.testing.assert_allclose(both[0], alone[0], rtol=1e-5, atol=1e-6)


def test_feature_absent_from_centre_crops_does_not_diverge(mesh_of):
    # As a channel behind a ReLU, which with few labelled images is often 0 in all of them, and not in all their crops.
    plain = {image.tobytes() for image in whole_images(TRAIN)}

    def encode(network, images):
        cropped = [
            image.tobytes() not in plain and image[:, ::-1].tobytes() not in plain for image in np.asarray(images)
        ]
        return Encoded(jnp.concatenate([colours(network, images).pooled, jnp.array(cropped, float)[:, None]], 1))

    centre = np.asarray(encode(NOTHING, whole_images(TRAIN)).pooled)
    assert (centre[:, -1] == 0).all()
    seen = Seen(encode)
    fit = fit_crops(seen.of(NOTHING), mesh_of(1), SOURCE, TRAIN, Standardization.of(centre), PROBE, size=SIZE, seed=0)
    weights = fit(np.arange(24), (0.1,))
    assert np.concatenate(seen.pooled)[:, -1].mean() > 0.5
    assert np.abs(weights).max() < 1000


@functools.cache
def tiny_network(model: Siamese) -> Network:
    network = quick(functools.partial(init_state, model, optax.identity(), SIZE))(jax.random.key(0)).online
    # Residual branches start at 0; here they count.
    params = jax.tree.map(lambda leaf: leaf + 0.1 if leaf.ndim == 1 else leaf, network.params)
    return Network(params, network.batch_stats)


def test_full_area_crops_give_centre_crop_features_or_their_mirrors(mesh_of):
    model = Siamese(depth=8, width=4, stem="small", head_hidden=4, head_out=4, axis_name=distributed.AXIS)
    network, mesh = tiny_network(model), mesh_of(1)
    network = jax.device_put(network, distributed.replicated(mesh))
    evaluator = Evaluator(model, mesh, SOURCE, EvalSpec(SIZE, SIZE, 24, "others"))
    centre = evaluator.features(network, TRAIN)
    mirrored = evaluator.encode[False](network, jnp.asarray(whole_images(TRAIN)[:, :, ::-1])).pooled
    assert np.abs(centre - mirrored).max() > 1e-2
    seen = Seen(evaluator.encode[False])
    probe = dataclasses.replace(PROBE, crop_area=WHOLE, batch_size=24, epochs=4)
    fit_crops(seen.of(network), mesh, SOURCE, TRAIN, Standardization.of(centre), probe, size=SIZE, seed=0)(
        np.arange(24), (0.1,)
    )
    pooled = np.concatenate(seen.pooled)
    far = np.stack([np.abs(pooled[:, None] - features).max(-1) for features in (centre, mirrored)])
    # Each crop is one of the two, and both occur.
    assert far.min((0, 2)).max() < 1e-4
    flipped = far.min(2).argmin(0)
    assert 0.3 < flipped.mean() < 0.7
    # In each epoch every image once.
    for epoch in far.min(0).argmin(1).reshape(4, 24):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(24))


def recognition(mesh, source=SOURCE, **changes) -> summary.Recognition:
    evaluator = Evaluator(Siamese(), mesh, source, EvalSpec(SIZE, SIZE, 24, "others"))
    evaluator.encode = {False: colours}
    return evaluator.recognition(NOTHING, TRAIN, TEST, knn=Knn((), 0.07), probe=dataclasses.replace(PROBE, **changes))


def figures_of(mesh, **changes) -> dict[str, float]:
    return recognition(mesh, **changes).figures


@pytest.mark.slow
def test_seeds_and_fractions_are_averaged_from_single_runs(mesh_of):
    mesh, given = mesh_of(1), {"fractions": (1.0, 0.25), "learning_rates": (0.3,)}
    figures = figures_of(mesh, seeds=(3, 6), **given)
    names = [f"linear_{name}{suffix}" for name in ("top1", "top5", "mean_class") for suffix in ("", "_at_25")]
    rates = {f"learning_rate{suffix}_{seed}": 0.3 for suffix in ("", "_at_25") for seed in (3, 6)}
    found = {name for name in figures if name.startswith(("linear", "learning"))}
    assert found == {*names, *(f"{name}_std" for name in names), *rates}
    alone = [figures_of(mesh, seeds=(seed,), **given) for seed in (3, 6)]
    for name in names:
        first, second = (single[name] for single in alone)
        assert figures[name] == pytest.approx((first + second) / 2)
        # The deviation of two is half of their difference, times √2.
        assert figures[f"{name}_std"] == pytest.approx(abs(first - second) / 2**0.5)
    # Seeds differ, and so do fractions.
    assert figures["linear_top1_std"] > 0
    assert figures["linear_top1"] != figures["linear_top1_at_25"]


def test_seed_summary_by_hand():
    tops, rates = {7: 0.5, 2: 0.75, 9: 0.7}, {7: 0.1, 2: 3.0, 9: 0.3}
    results = [ProbeResult({"top1": tops[seed]}, rates[seed], {}, np.zeros((2, 2))) for seed in tops]
    assert summary._summary(results, (7, 2, 9), "_at_1") == {
        "linear_top1_at_1": pytest.approx(0.65),
        "linear_top1_at_1_std": pytest.approx(((0.15**2 + 0.1**2 + 0.05**2) / 2) ** 0.5),
        "learning_rate_at_1_7": 0.1,
        "learning_rate_at_1_2": 3.0,
        "learning_rate_at_1_9": 0.3,
    }
    assert summary._summary(results[:1], (7,), "") == {"linear_top1": 0.5, "learning_rate": 0.1}


def test_test_labels_do_not_affect_rate_choice(mesh_of):
    labels = SOURCE.labels.copy()
    labels[TEST] = np.roll(labels[TEST], 5)
    shuffled = dataclasses.replace(SOURCE, labels=labels)
    first, other = (recognition(mesh_of(1), source, learning_rates=(0.0, 0.03, 1.0)) for source in (SOURCE, shuffled))
    assert first.figures["linear_top1"] != other.figures["linear_top1"]
    assert first.figures["learning_rate"] == other.figures["learning_rate"] > 0
    np.testing.assert_array_equal(first.weights, other.weights)


def test_crop_area_changes_the_fitted_probe(mesh_of):
    mesh = mesh_of(1)
    whole, crops, cached = (
        recognition(mesh, learning_rates=(0.3,), crop_area=area).weights for area in (WHOLE, (0.1, 0.3), None)
    )
    assert np.abs(whole - crops).max() > 0.05
    assert np.abs(whole - cached).max() > 1e-3


@pytest.mark.parametrize("area", [None, WHOLE], ids=["cached", "augmented"])
def test_each_probe_gets_rows_labels_and_seed_of_its_fraction(mesh_of, monkeypatch, area):
    calls, real = [], summary.linear_probe

    def recorded(x, y, *rest):
        result = real(x, y, *rest)
        *_, seed, fit = rest
        calls.append((x, y, {"seed": seed, "fit": fit}, result))
        return result

    monkeypatch.setattr(summary, "linear_probe", recorded)
    given = {"fractions": (1.0, 0.25), "seeds": (3, 5), "list_seed": 9, "learning_rates": (0.3,), "crop_area": area}
    found = recognition(mesh_of(1), **given)
    features = colours(NOTHING, jnp.asarray(whole_images(TRAIN))).pooled
    assert [options["seed"] for _, _, options, _ in calls] == [3, 5, 3, 5]
    assert [options["fit"] is None for _, _, options, _ in calls] == [area is None] * 4
    for (x, y, _, _), fraction in zip(calls, (0.25, 0.25, 1.0, 1.0), strict=True):
        rows = fraction_rows(SOURCE.labels[TRAIN], fraction, 9)
        np.testing.assert_array_equal(y, SOURCE.labels[TRAIN][rows])
        np.testing.assert_allclose(x, features[rows], rtol=1e-6)
    # Of all labels, and of the first seed.
    np.testing.assert_array_equal(found.weights, calls[2][3].weights)
