"""Features pooled by where the network itself looks, against the same sums written out in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compiling import quick

from configs import common
from cvsa_jax import settings
from cvsa_jax.data import sources
from cvsa_jax.data.pipeline import image_batches
from cvsa_jax.data.sources import procedural
from cvsa_jax.evaluation.evaluator import Evaluator
from cvsa_jax.evaluation.localization import attention_maps, foreground_key
from cvsa_jax.evaluation.protocol import EvalSpec, Knn
from cvsa_jax.models.activation import first_component
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import photometric
from cvsa_jax.training.state import Network

SIZE, TAU = 32, 0.2
MODEL = Siamese(depth=8, width=4, stem="small", head_hidden=8, head_out=4)
SOURCE = sources.load("procedural", "", procedural.Spec(0, 2, 5, 3, 40))
TRAIN, TEST = SOURCE.split("train"), SOURCE.split("test")


@pytest.fixture(scope="module")
def network() -> Network:
    variables = quick(lambda key: MODEL.init(key, jnp.zeros((1, SIZE, SIZE, 3)), True))(jax.random.key(0))
    return Network(variables["params"], variables["batch_stats"])


def spec_of(reading: str, pooling: str = "attention") -> EvalSpec:
    return EvalSpec(SIZE, 40, 8, "others", pooling, reading, TAU)


def evaluator_of(mesh, reading: str, pooling: str = "attention") -> Evaluator:
    return Evaluator(MODEL, mesh, SOURCE, spec_of(reading, pooling))


@pytest.fixture(scope="module")
def cells(network) -> dict[str, np.ndarray]:
    """Feature map, unit queries and keys, and raw predictions of all images, train before test."""
    indices = np.concatenate([TRAIN, TEST])
    ((images, _),) = image_batches(SOURCE, indices, resize=40, size=SIZE, batch_size=len(indices))

    @quick
    def outputs(variables, images):
        views = photometric.normalize(photometric.to_float(images))
        return MODEL.apply(variables, views, method="features")[0], MODEL.apply(variables, views, train=False)

    features, out = outputs(network.variables, images)
    unit = [np.asarray(m).reshape(len(m), -1, m.shape[-1]) for m in (out.prediction_map, out.projection_map)]
    unit = [m / np.maximum(np.linalg.norm(m, axis=-1, keepdims=True), 1e-12) for m in unit]
    found = {"features": features, "queries": unit[0], "keys": unit[1], "predicted": out.prediction_map}
    return {name: np.asarray(value, np.float64) for name, value in found.items()} | {"maps": np.asarray(features)}


def averaged(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    weights = weights.reshape(len(features), -1, 1)
    flat = features.reshape(*weights.shape[:2], -1)
    return (weights * flat).sum(1) / weights.sum(1)


def test_foreground_key_is_the_attention_weighted_mean_key(cells):
    queries, keys = (cells[name][: len(TRAIN)].astype(np.float32) for name in ("queries", "keys"))
    total, mass = np.zeros(keys.shape[-1]), 0.0
    for k, attention in enumerate(attention_maps(queries, keys).reshape(len(keys), -1)):
        weights = ((attention - attention.min()) / (attention.max() - attention.min())) ** 2
        total += sum(w * key for w, key in zip(weights, keys[k], strict=True))
        mass += weights.sum()
    np.testing.assert_allclose(foreground_key(queries, keys), total / mass, atol=1e-5)


def test_attention_pooling_weighs_by_the_alignment_posterior(mesh_of, network, cells):
    evaluator = evaluator_of(mesh_of(2), "attention")
    key = evaluator.key(network, TRAIN)
    queries, keys = (cells[name][: len(TRAIN)].astype(np.float32) for name in ("queries", "keys"))
    np.testing.assert_allclose(key, foreground_key(queries, keys), atol=1e-4)
    posterior = np.exp(cells["queries"] @ key / TAU)
    expected = averaged(posterior, cells["features"])
    pooled = evaluator.features(network, np.concatenate([TRAIN, TEST]), key)
    np.testing.assert_allclose(pooled, expected, atol=1e-4)
    plain = evaluator_of(mesh_of(2), "attention", "average").features(network, TRAIN)
    assert np.abs(plain - expected[: len(TRAIN)]).max() > 1e-3


def test_mask_and_component_pooling_match_definition(mesh_of, network, cells):
    component, _ = first_component(jnp.asarray(cells["maps"]))
    scaled = np.asarray(component, np.float64)
    scaled = scaled - scaled.min((1, 2), keepdims=True)
    scaled = scaled / scaled.max((1, 2), keepdims=True)
    weights = {"mask": 1 / (1 + np.exp(-cells["predicted"][..., 0])), "component": scaled**2}
    for reading, expected in weights.items():
        evaluator = evaluator_of(mesh_of(1), reading)
        pooled = evaluator.features(network, TEST, evaluator.key(network, TRAIN))
        np.testing.assert_allclose(pooled, averaged(expected, cells["features"])[len(TRAIN) :], atol=1e-3)


@pytest.mark.parametrize("reading", ["attention", "mask", "component"])
def test_class_activation_is_of_the_class_of_pooled_features(mesh_of, network, reading):
    evaluator = evaluator_of(mesh_of(1), reading)
    evaluator.spec = dataclasses.replace(evaluator.spec, resize=SIZE)  # features of the squares that maps are of
    key = evaluator.key(network, TRAIN)
    pooled = evaluator.features(network, TEST, key)
    plain = evaluator_of(mesh_of(1), reading, "average")
    plain.spec = evaluator.spec
    averaged = plain.features(network, TEST)
    # Which of the two classes is ahead turns, of the first image, on how it is pooled.
    weights = np.zeros((pooled.shape[1] + 1, 2))
    weights[:-1, 0] = pooled[0] - averaged[0]
    weights[-1, 0] = -((pooled[0] + averaged[0]) / 2) @ weights[:-1, 0]
    logits = pooled.astype(np.float64) @ weights[:-1] + weights[-1]
    assert logits[0].argmax() == 0 and (averaged[0] @ weights[:-1] + weights[-1]).argmax() == 1
    ((images, _),) = image_batches(SOURCE, TEST, resize=0, size=SIZE, batch_size=len(TEST))

    @quick
    def feature_map(variables, images):
        views = photometric.normalize(photometric.to_float(images))
        return MODEL.apply(variables, views, method="features")[0]

    features = np.asarray(feature_map(network.variables, images), np.float64)
    expected = np.einsum("bhwc,cb->bhw", features, weights[:-1, logits.argmax(1)])
    maps = evaluator.class_maps(network, weights, TEST, key)
    np.testing.assert_allclose(maps["cam"], expected, atol=1e-4)


def test_attention_key_of_one_image_is_refused(mesh_of, network):
    with pytest.raises(UserError, match="two images or more"):
        evaluator_of(mesh_of(1), "attention").key(network, TRAIN[:1])


def test_recognition_and_neighbors_use_pooled_features(mesh_of, network):
    evaluator = evaluator_of(mesh_of(2), "attention")
    found = evaluator.recognition(network, TRAIN, TEST, knn=Knn((1,), 0.07))
    key = evaluator.key(network, TRAIN)
    np.testing.assert_allclose(found.key, key)
    np.testing.assert_allclose(found.features, evaluator.features(network, TEST, key), atol=1e-5)
    # What guards against a key of the test images: they give another one.
    assert np.abs(evaluator.key(network, TEST) - key).max() > 1e-4
    assert 0 <= evaluator.neighbors(network, TRAIN, Knn((1,), 0.07))["knn_top1"] <= 1


@pytest.mark.parametrize(
    ("changes", "reading"),
    [
        ({}, "attention"),
        ({"align.form": "mask_head"}, "mask"),
        ({"align.weight": 0.0}, "component"),
        ({"align.weight": 0.0, "align.form": "mask_head"}, "component"),
    ],
    ids=["default alignment", "mask head", "no alignment", "unused mask head"],
)
def test_pooling_reads_what_the_run_trained(changes, reading):
    config = common.pretrain()
    config.update_from_flattened_dict({"eval.pooling": "attention", "align.temperature": 0.3} | changes)
    spec = settings.evaluation(config.eval, config)
    assert (spec.pooling, spec.reading) == ("attention", reading)
    assert spec.temperature == (1.0 if reading == "component" else 0.3)
    assert settings.evaluation(common.finetune().eval, common.finetune()).reading == "component"
    with pytest.raises(UserError, match=r"config\.eval\.pooling='max' .*average, attention"):
        dataclasses.replace(spec, pooling="max")
