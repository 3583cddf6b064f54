"""Networks that pad as TensorFlow's SAME does, against XLA's own SAME."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.compiling import quick
from support.torch_files import torch_weights

from cvsa_jax.models.resnet import ResNet
from cvsa_jax.weights import torchvision


def reference(weights: dict[str, np.ndarray], x: jax.Array, padding: str) -> jax.Array:
    """A ResNet of torchvision's names on (b, c, h, w), every convolution and the pooling padded by XLA."""

    def conv(x, name, stride):
        kernel = weights[f"{name}.weight"]
        side = kernel.shape[2] // 2
        pads = padding if padding == "SAME" else [(side, side)] * 2
        return lax.conv_general_dilated(x, kernel, (stride, stride), pads, precision="highest")

    def norm(x, name):
        scale, bias, mean, var = (
            jnp.asarray(weights[f"{name}.{leaf}"])[:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return scale * (x - mean) / jnp.sqrt(var + 1e-5) + bias

    def block(x, name, stride):
        convs = [part for part in ("conv1", "conv2", "conv3") if f"{name}.{part}.weight" in weights]
        out = x
        for part in convs:
            strided = stride if part == ("conv2" if len(convs) == 3 else "conv1") else 1
            out = norm(conv(out, f"{name}.{part}", strided), f"{name}.{part.replace('conv', 'bn')}")
            out = jax.nn.relu(out) if part != convs[-1] else out
        if f"{name}.downsample.0.weight" in weights:
            x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return jax.nn.relu(x + out)

    x = jax.nn.relu(norm(conv(x, "conv1", 2), "bn1"))
    pads = padding if padding == "SAME" else [(0, 0), (0, 0), (1, 1), (1, 1)]
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), pads)
    for layer in (1, 2, 3, 4):
        number = 0
        while f"layer{layer}.{number}.conv1.weight" in weights:
            x = block(x, f"layer{layer}.{number}", 2 if layer > 1 and number == 0 else 1)
            number += 1
    return x


@functools.cache
def weights_of(depth: int) -> dict[str, np.ndarray]:
    return torch_weights(depth, 8)


@pytest.mark.parametrize(
    ("padding", "depth", "size"), [("same", 18, 64), ("same", 18, 65), ("same", 50, 71), ("symmetric", 50, 65)]
)
def test_features_match_xla_padding_at_odd_and_even_sizes(padding, depth, size):
    weights, images = weights_of(depth), np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    trees = torchvision.to_backbone(weights)
    model = ResNet(depth=depth, width=8, padding=padding)
    ours, _ = quick(functools.partial(model.apply, train=False))(trees, images)
    theirs = quick(functools.partial(reference, weights, padding=padding.upper()))(images.transpose(0, 3, 1, 2))
    theirs = theirs.transpose(0, 2, 3, 1)
    side = -(-size // 32)
    assert ours.shape == theirs.shape == (2, side, side, 8 * 8 * (4 if depth == 50 else 1))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-4 * float(jnp.abs(theirs).max()))
