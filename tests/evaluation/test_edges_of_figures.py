"""Figures at their edges: empty masks, low temperatures, tiny features, few labels, maps of four cells."""

import contextlib

import jax.numpy as jnp
import numpy as np
import pytest

from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation import knn
from cvsa_jax.evaluation.evaluator import chance
from cvsa_jax.evaluation.labelled import count_rows, fraction_rows
from cvsa_jax.evaluation.localization import pointing_score, score, upsample
from cvsa_jax.evaluation.probe import Standardization, linear_probe
from cvsa_jax.evaluation.protocol import Knn, Probe
from cvsa_jax.evaluation.recognition import Labelled, recognized
from cvsa_jax.models.activation import first_component

PROBE = Probe((0.1, 1.0), 20, 32, 0.2, 2, (1.0,), (0,), 0, None)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_chance_skips_images_with_empty_masks():
    masks = np.zeros((4, 8, 8), bool)
    masks[0, :4], masks[1, :, :4] = True, True  # two of four are empty
    source = Source("x", tuple("abcd"), None, (), {}, lambda i: b"", lambda i: masks[i], lambda kind: "0")
    figures = chance(source, np.arange(4), masks)
    flat = np.zeros((4, 8, 8))
    assert figures["pointing_game"] == score(flat, masks)["pointing_game"] == 0.5
    assert figures["mask_iou_best"] == score(flat, masks)["mask_iou_best"] == 0.5
    assert figures["pixel_ap"] == 0.25 == pytest.approx(score(flat, masks)["pixel_ap"])
    empty = chance(source, np.arange(2, 4), masks[2:])
    assert empty == {"pixel_ap": 0.0}


@pytest.mark.parametrize("temperature", [1e-6, 0.07], ids=["tiny", "usual"])
def test_knn_votes_stay_finite_at_low_temperature(temperature):
    # The nearest, at a cosine of about .8, is of class 2; as exp(cosine / temperature) all votes would be 0.
    train = np.array([[1.0, 0.75], [1.0, -2.0], [-1.0, 1.0]], np.float32)
    predicted = knn.knn_predict(train, np.array([2, 0, 1]), np.array([[1.0, 0.0]], np.float32), (1, 3), temperature)
    assert (predicted == 2).all()


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e6], ids=["tiny", "unit", "huge"])
def test_probe_is_invariant_to_feature_scale(rng, scale):
    labels = np.repeat(np.arange(4), 30)
    x = (np.eye(4)[labels] @ rng.normal(size=(4, 12)) + 0.4 * rng.normal(size=(120, 12))).astype(np.float32)
    x[:, 5] = 3.0  # does not vary
    x, test = scale * x[::2], scale * x[1::2]
    found = linear_probe(x, labels[::2], test, labels[1::2], 4, PROBE, 0)
    assert found.figures["top1"] > 0.9
    assert np.isfinite(found.weights).all() and Standardization.of(x).std[5] == 1


def test_upsample_is_scale_invariant_and_constant_maps_become_0(rng):
    map_, mask = rng.random((7, 7)).astype(np.float32), rng.random((20, 20)) < 0.3
    for factor in (1e-14, 1.0, 1e12):
        np.testing.assert_allclose(upsample(factor * map_, 20), upsample(map_, 20), atol=1e-5)
    for level in (-3.0, 0.0, 1e-14, 0.3, 1e6):
        assert (upsample(np.full((7, 7), level, np.float32), 20) == 0).all()
    assert 0 < pointing_score(upsample(np.full((7, 7), 0.3, np.float32), 20), mask) == pytest.approx(mask.mean())


def test_label_lists_differ_between_seeds_and_draws():
    labels = np.repeat(np.arange(5), 40)
    for rows_of in (
        lambda seed, draw: count_rows(labels, 4, seed, draw),
        lambda s, d: fraction_rows(labels, 0.1, s, d),
    ):
        lists = {(seed, draw): tuple(rows_of(seed, draw)) for seed in range(3) for draw in range(3)}
        assert len(set(lists.values())) == 9
        assert lists[0, 0] == tuple(rows_of(0, 0))


def test_kept_classifier_is_of_the_most_labels(rng):
    labels = np.repeat(np.arange(3), 40)
    x = (np.eye(3)[labels] @ rng.normal(size=(3, 6)) + rng.normal(size=(120, 6))).astype(np.float32)
    halves = Labelled(x[::2], labels[::2]), Labelled(x[1::2], labels[1::2])

    def weights(**amounts):
        probe = Probe((1.0,), 5, 32, 0.2, 1, amounts.get("fractions", (1.0,)), (0,), 0, None, amounts.get("counts", ()))
        timed = lambda part: contextlib.nullcontext()  # noqa: E731
        return recognized(*halves, 3, knn=Knn((), 1.0), probe=probe, timed=timed).weights

    # Sixteen of each class are more than a hundredth of twenty.
    many, few = weights(counts=(16,), fractions=(0.01,)), weights(fractions=(0.01,))
    assert np.abs(many - few).max() > 1e-3
    np.testing.assert_allclose(weights(counts=(2, 16), fractions=(0.01,)), many, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("side", "channels"), [(5, 40), (9, 6), (2, 30), (2, 3), (1, 8)])
def test_first_component_matches_svd(rng, side, channels):
    features = rng.normal(size=(3, side, side, channels)).astype(np.float32)
    features[:, side // 2 :, side // 2 :, 0] += 6  # an object, more active, in a corner of four cells
    maps, shares = first_component(jnp.asarray(features))
    for image, found, share in zip(features, np.asarray(maps), shares, strict=True):
        cells = image.reshape(-1, channels).astype(np.float64)
        centred = cells - cells.mean(0)
        left, values, _ = np.linalg.svd(centred, full_matrices=False)
        if side > 1:
            assert abs(np.dot(found.ravel(), left[:, 0])) == pytest.approx(1, abs=1e-3)
            assert float(share) == pytest.approx(values[0] ** 2 / (values**2).sum(), abs=1e-3)
        assert np.isfinite(found).all()
    if side == 2:  # no inside, by which the sign could be told: the object is what is more active
        assert (np.asarray(maps).reshape(3, -1).argmax(1) == 3).all()
