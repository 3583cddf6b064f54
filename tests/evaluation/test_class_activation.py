import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support.compiling import quick

from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.encode import make_class_activation
from cvsa_jax.evaluation.evaluator import Evaluator
from cvsa_jax.evaluation.protocol import EvalSpec
from cvsa_jax.models.activation import class_activation, grad_cam
from cvsa_jax.models.classifier import Classifier
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime import distributed
from cvsa_jax.training import photometric
from cvsa_jax.training.state import Network

IMAGES, SIDE, CHANNELS, CLASSES = 5, 3, 4, 6


def given(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of both signs, weights with biases that are not small, and a class for each image."""
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 1, (IMAGES, SIDE, SIDE, CHANNELS)).astype(np.float32)
    weights = rng.normal(0, 1, (CHANNELS + 1, CLASSES)).astype(np.float32)
    return features, weights, np.array([2, 0, 5, 2, 3])


def read(method, features: np.ndarray, weights: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.asarray(method(jnp.asarray(features), jnp.asarray(weights), jnp.asarray(classes)))


def logit(cells: np.ndarray, weights: np.ndarray, label: int) -> float:
    """Of one image (h, w, c), in float64."""
    return cells.astype(float).mean((0, 1)) @ weights[:-1, label].astype(float) + weights[-1, label]


def by_definition(features, weights, classes) -> np.ndarray:
    maps = np.zeros(features.shape[:3])
    for b, y, x in np.ndindex(maps.shape):
        maps[b, y, x] = sum(float(features[b, y, x, c]) * float(weights[c, classes[b]]) for c in range(CHANNELS))
    return maps


def test_class_activation_matches_definition():
    features, weights, classes = given()
    maps = read(class_activation, features, weights, classes)
    np.testing.assert_allclose(maps, by_definition(features, weights, classes), rtol=1e-5, atol=1e-6)


def test_grad_cam_matches_numerical_differentiation():
    features, weights, classes = given(1)
    expected = np.zeros((IMAGES, SIDE, SIDE))
    for b in range(IMAGES):
        gradient = np.zeros((SIDE, SIDE, CHANNELS))
        for place in np.ndindex(gradient.shape):
            step = np.zeros(gradient.shape)
            step[place] = 1e-3
            higher, lower = (logit(features[b] + s, weights, classes[b]) for s in (step, -step))
            gradient[place] = (higher - lower) / 2e-3
        # Equations 1 and 2 of the paper: the gradient's average over the cells weighs the channels.
        importance = gradient.mean((0, 1))
        expected[b] = np.maximum((features[b] * importance).sum(-1), 0)
    np.testing.assert_allclose(read(grad_cam, features, weights, classes), expected, rtol=1e-4, atol=1e-6)
    # The rectification had something to cut.
    assert 0.3 < (expected == 0).mean() < 0.7


def random_network(model: Siamese, size: int) -> Network:
    """Random values of the network's shapes; no residual branch is scaled by 0."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(
        lambda key: model.clone(axis_name=None).init(key, jnp.zeros((2, size, size, 3)), True), jax.random.key(0)
    )

    def values(path, leaf):
        centre = path[-1].key in ("scale", "var")
        spread = 0.3 if leaf.ndim == 1 else 1.5 * np.prod(leaf.shape[:-1]) ** -0.5
        return (centre + spread * rng.uniform(-1, 1, leaf.shape)).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(values, shapes)
    return Network(variables["params"], variables["batch_stats"])


@pytest.fixture(scope="module")
def activations(mesh_of):
    """Of one random network, 16 images and a classifier: what 1 and 8 devices give, and the backbone's features."""
    model = Siamese(depth=8, width=4, stem="small", head_hidden=4, head_out=4, axis_name=distributed.AXIS)
    network = random_network(model, 24)
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (16, 24, 24, 3), np.uint8)

    @quick
    def backbone(images):
        views = photometric.normalize(photometric.to_float(images))
        return model.clone(axis_name=None).apply(network.variables, views, method="features")[0]

    features = np.asarray(backbone(images))
    weights = rng.normal(0, 1, (17, CLASSES)).astype(np.float32)
    # No class wins everywhere.
    weights[-1] = -features.mean((0, 1, 2)) @ weights[:-1]
    ended = {}
    for devices in (1, 8):
        mesh = mesh_of(devices)
        placed = jax.device_put((network, weights, np.zeros(1, np.float32)), distributed.replicated(mesh))
        rows = distributed.to_mesh({"images": images}, mesh)["images"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "jit", quick)
            ended[devices] = jax.tree.map(np.asarray, make_class_activation(model, mesh)(placed, rows))
    return ended, features, weights


def test_activation_maps_are_of_the_predicted_class(activations):
    found, features, weights = activations
    logits = features.astype(float).mean((1, 2)) @ weights[:-1] + weights[-1]
    classes = logits.argmax(1)
    assert len(set(classes)) > 2
    np.testing.assert_allclose(found[8].logits, logits, rtol=1e-4, atol=1e-4)
    cam = np.einsum("bhwc,cb->bhw", features.astype(float), weights[:-1, classes])
    assert cam.shape == (16, 3, 3)
    np.testing.assert_allclose(found[8].cam, cam, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[8].grad_cam, np.maximum(cam, 0) / 9, rtol=1e-4, atol=1e-5)


def test_activation_on_8_devices_matches_1_device(activations):
    found, *_ = activations
    for on8, on1 in zip(found[8], found[1], strict=True):
        np.testing.assert_allclose(on8, on1, rtol=1e-4, atol=1e-5)


class Pixels(Classifier):
    """Its feature map is the image itself, and its fourth channel is 1 everywhere."""

    def setup(self):
        pass

    @nn.nowrap
    def features(self, images):
        cells = jnp.concatenate([images, jnp.ones_like(images[..., :1])], -1)
        return cells, cells.mean((1, 2))


def red_squares(count: int = 6, size: int = 16) -> Source:
    """Images that are red on their masks and blue elsewhere."""
    encoded, masks = [], []
    for k in range(count):
        mask = np.zeros((size, size), np.uint8)
        mask[k : k + 4, 10 - k : 15 - k] = 255
        buffer = io.BytesIO()
        Image.fromarray(np.stack([mask, 0 * mask, 255 - mask], -1)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
        masks.append(mask)
    return Source(
        name="squares",
        names=tuple(f"{k}.png" for k in range(count)),
        labels=np.zeros(count, np.int32),
        classes=("square", "other"),
        splits={"test": np.arange(count)},
        read=lambda i: encoded[i],
        mask=lambda i: masks[i],
        identify=lambda kind: "0",
    )


@pytest.mark.parametrize(("winner", "found"), [(0, True), (1, False)], ids=["object", "background"])
def test_probe_maps_point_where_the_predicted_class_is_read(mesh_of, winner, found):
    # Class 0 looks at the red of the object, class 1 at the blue around it; the bias decides which is predicted.
    source, test = red_squares(), np.arange(6)
    evaluator = Evaluator(Pixels(2), mesh_of(1), source, EvalSpec(16, 16, 4, "others"))
    weights = np.zeros((5, 2))
    weights[0, 0] = weights[2, 1] = 1
    weights[-1, winner] = 100
    maps = evaluator.class_maps(Network({}, {}), weights, test)
    assert maps.keys() == {"cam", "grad_cam"}
    masks = evaluator.masks(test)
    for values in maps.values():
        assert values.shape == (6, 16, 16)
        figures = evaluator.localization(values, test, masks)
        assert figures["pointing_game"] == float(found)
        if found:
            perfect = {"pointing_game": 1, "mask_iou": 1, "mask_iou_best": 1, "pixel_ap": 1}
            assert figures == perfect | {"max_box_acc_v2": 1, "corloc": 1}
