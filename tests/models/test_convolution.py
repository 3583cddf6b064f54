"""The forms of convolution and pooling for a CPU and a GPU, against XLA's own and against windows walked one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cvsa_jax.models import convolution

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("stride", "channels", "side"), [(1, (5, 3), 6), (2, (3, 5), 7), (2, (4, 4), 8)])
def test_a_pointwise_convolution_and_its_gradients_are_those_of_xla(stride, channels, side):
    x = jnp.asarray(RNG.normal(size=(2, side, side, channels[0])), jnp.float32)
    kernel = jnp.asarray(RNG.normal(size=(1, 1, *channels)), jnp.float32)
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def ours(x, kernel):
        return convolution.conv_general_dilated(x, kernel, (stride, stride), "VALID", **layout)

    def expected(x, kernel):
        return lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", **layout)

    assert "conv" not in str(jax.make_jaxpr(ours)(x, kernel))
    out, backward = jax.vjp(ours, x, kernel)
    expected_out, expected_backward = jax.vjp(expected, x, kernel)
    cotangent = jnp.asarray(RNG.normal(size=expected_out.shape), jnp.float32)
    np.testing.assert_allclose(out, expected_out, atol=1e-5)
    for got, wanted in zip(backward(cotangent), expected_backward(cotangent), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("side", [7, 8])
def test_max_pool_and_its_gradient_of_windows_walked_one_by_one(side):
    x = (
        RNG.permutation(np.arange(2 * side * side * 3, dtype=np.float32)).reshape(2, side, side, 3) - 1000
    )  # the padding is not 0
    out, backward = jax.vjp(convolution.max_pool, jnp.asarray(x))
    cotangent = RNG.normal(size=out.shape).astype(np.float32)
    expected, gradient = np.zeros(out.shape, np.float32), np.zeros_like(x)
    for image, row, column, channel in np.ndindex(*out.shape):
        top, left = max(2 * row - 1, 0), max(2 * column - 1, 0)
        window = x[image, top : 2 * row + 2, left : 2 * column + 2, channel]
        expected[image, row, column, channel] = window.max()
        y, z = np.unravel_index(window.argmax(), window.shape)
        gradient[image, top + y, left + z, channel] += cotangent[image, row, column, channel]
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_allclose(backward(cotangent)[0], gradient, atol=1e-6)


@pytest.mark.parametrize(("kernel", "padding"), [(7, 3), (3, 1), (5, 2)])
@pytest.mark.parametrize("side", [12, 13])
def test_a_gpus_convolution_of_images_and_its_gradient_are_those_of_xla(kernel, padding, side, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.asarray(RNG.normal(size=(2, side, 16, 3)), jnp.float32)
    weights = jnp.asarray(RNG.normal(size=(kernel, kernel, 3, 4)), jnp.float32)
    arguments = (2, 2), ((padding, padding),) * 2
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def ours(x, weights):
        return convolution.conv_general_dilated(x, weights, *arguments, **layout)

    # Of blocks with twelve channels and four of zeros, where there are such blocks.
    assert ("[2,6,8,16]" in str(jax.make_jaxpr(ours)(x, weights))) == (side == 12)
    out, backward = jax.vjp(ours, x, weights)
    expected, expected_backward = jax.vjp(
        lambda x, weights: lax.conv_general_dilated(x, weights, *arguments, **layout), x, weights
    )
    np.testing.assert_allclose(out, expected, atol=1e-4)
    cotangent = jnp.asarray(RNG.normal(size=out.shape), jnp.float32)
    for got, wanted in zip(backward(cotangent), expected_backward(cotangent), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)
