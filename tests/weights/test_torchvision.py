"""Weights under torchvision's names against torchvision's ResNet v1.5, written here in float64 NumPy.

The reference reads the same file with torch's layouts, (out, in, h, w) and channels first, and knows nothing of ours.
"""

import jax
import numpy as np
import pytest
from support.compiling import quick
from support.torch_files import torch_weights, write

from cvsa_jax.models.siamese import Siamese
from cvsa_jax.weights import backbones, torchvision


# 8 is our three-stage network; torchvision has none of it, but its names say it too.
def resnet_v1_5(weights: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Feature map (b, c, h, w) of images (b, 3, s, s), as torchvision's `_forward_impl` up to `layer4`."""
    weights = {name: np.asarray(array, np.float64) for name, array in weights.items()}

    def windows(x, size, stride, pad, value=0.0):
        """Offsets of a kernel, and the input that each of them meets."""
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=value)
        last_y, last_x = x.shape[2] - size + 1, x.shape[3] - size + 1
        for i in range(size):
            for j in range(size):
                yield i, j, x[:, :, i : i + last_y : stride, j : j + last_x : stride]

    def conv(x, name, stride=1, pad=0):
        kernel = weights[f"{name}.weight"]
        met = windows(x, kernel.shape[2], stride, pad)
        return sum(np.einsum("oc,bchw->bohw", kernel[:, :, i, j], part) for i, j, part in met)

    def norm(x, name):
        scale, bias, mean, var = (
            weights[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def block(x, name, stride):
        if f"{name}.conv3.weight" in weights:
            out = np.maximum(norm(conv(x, f"{name}.conv1"), f"{name}.bn1"), 0)
            # v1.5: here, and not in the 1x1 convolution before it.
            out = np.maximum(norm(conv(out, f"{name}.conv2", stride, pad=1), f"{name}.bn2"), 0)
            out = norm(conv(out, f"{name}.conv3"), f"{name}.bn3")
        else:
            out = np.maximum(norm(conv(x, f"{name}.conv1", stride, pad=1), f"{name}.bn1"), 0)
            out = norm(conv(out, f"{name}.conv2", pad=1), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in weights:
            x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return np.maximum(out + x, 0)

    x = np.maximum(norm(conv(images, "conv1", 2, pad=3), "bn1"), 0)
    x = np.max([part for _, _, part in windows(x, 3, 2, 1, -np.inf)], axis=0)
    for layer in range(1, 5):
        number = 0
        while f"layer{layer}.{number}.conv1.weight" in weights:
            x = block(x, f"layer{layer}.{number}", 2 if layer > 1 and number == 0 else 1)
            number += 1
    return x


@pytest.mark.parametrize(
    ("depth", "width", "kind", "prefix"),
    [
        pytest.param(18, 8, "npz", "", id="basic blocks"),
        pytest.param(50, 4, "safetensors", "module.encoder_q.", id="bottlenecks"),
    ],
)
def test_features_equal_torchvisions(tmp_path, mesh_of, depth, width, kind, prefix):
    weights = torch_weights(depth, width, prefix=prefix)
    path = write(tmp_path / f"weights.{kind}", weights)
    model = Siamese(depth=depth, width=width, head_hidden=8, head_out=4)
    network = backbones.load_file(path, model, mesh_of(2))
    images = np.random.default_rng(1).standard_normal((2, 64, 64, 3)).astype(np.float32)

    feature_map, pooled = quick(lambda v, x: model.apply(v, x, method="features"))(network.variables, images)

    bare = {name.removeprefix(prefix): array for name, array in weights.items()}
    expected = resnet_v1_5(bare, images.transpose(0, 3, 1, 2).astype(np.float64))
    assert expected.shape == (2, 8 * width * (4 if depth == 50 else 1), 2, 2)
    # Most of what the network says is not 0, so that equality says something.
    assert (expected > 0.01).mean() > 0.3
    atol = 1e-4 * expected.max()
    np.testing.assert_allclose(feature_map, expected.transpose(0, 2, 3, 1), rtol=1e-4, atol=atol)
    np.testing.assert_allclose(pooled, expected.mean((2, 3)), rtol=1e-4, atol=atol)


def leaves(trees: dict) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(trees)}


def assert_same_trees(a: dict, b: dict):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_kernels_are_transposed_and_float32():
    weights = torch_weights(8, 4)
    trees = torchvision.to_backbone({name: w.astype(np.float64) for name, w in weights.items()})
    kernel = trees["params"]["stage2_block1"]["conv1"]["kernel"]
    for out, inputs, y, x in np.ndindex(8, 4, 3, 3):
        assert kernel[y, x, inputs, out] == weights["layer2.0.conv1.weight"][out, inputs, y, x]
    assert {leaf.dtype for leaf in jax.tree.leaves(trees)} == {np.dtype(np.float32)}


def test_classifier_and_counters_are_left_out():
    trees = torchvision.to_backbone(torch_weights(8, 4))
    # A stem and three blocks of two convolutions, two of them with a shortcut: each has a kernel and a normalisation.
    convolutions = 1 + 3 * 2 + 2
    assert len(leaves(trees["params"])) == 3 * convolutions
    assert len(leaves(trees["batch_stats"])) == 2 * convolutions


def test_from_backbone_inverts_to_backbone():
    weights = torch_weights(50, 4)
    trees = torchvision.to_backbone(weights)
    back = torchvision.from_backbone(trees["params"], trees["batch_stats"])
    outside = {name for name in weights if name.startswith("fc.") or name.endswith("num_batches_tracked")}
    assert back.keys() == weights.keys() - outside
    for name, array in back.items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
