"""The forms of convolution for a GPU and of pooling, against XLA's own and against windows walked one by one."""

import importlib.util
import os
import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import cvsa_jax
from cvsa_jax.models import convolution


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("side", [7, 8])
def test_max_pool_and_gradient_match_a_loop_over_windows(rng, side):
    x = (
        rng.permutation(np.arange(2 * side * side * 3, dtype=np.float32)).reshape(2, side, side, 3) - 1000
    )  # the padding is not 0
    out, backward = jax.vjp(convolution.max_pool, jnp.asarray(x))
    cotangent = rng.normal(size=out.shape).astype(np.float32)
    expected, gradient = np.zeros(out.shape, np.float32), np.zeros_like(x)
    for image, row, column, channel in np.ndindex(*out.shape):
        top, left = max(2 * row - 1, 0), max(2 * column - 1, 0)
        window = x[image, top : 2 * row + 2, left : 2 * column + 2, channel]
        expected[image, row, column, channel] = window.max()
        y, z = np.unravel_index(window.argmax(), window.shape)
        gradient[image, top + y, left + z, channel] += cotangent[image, row, column, channel]
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_allclose(backward(cotangent)[0], gradient, atol=1e-6)


@pytest.mark.parametrize(("kernel", "padding", "side"), [(7, 3, 12), (3, 1, 12), (5, 2, 12), (7, 3, 13)])
def test_gpu_convolution_and_gradient_match_xla(rng, kernel, padding, side, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.asarray(rng.normal(size=(2, side, 16, 3)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(kernel, kernel, 3, 4)), jnp.float32)
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
    cotangent = jnp.asarray(rng.normal(size=out.shape), jnp.float32)
    for got, wanted in zip(backward(cotangent), expected_backward(cotangent), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)


x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flag is set on x86 alone")


@x86
def test_cpu_convolution_avoids_the_slow_library():
    x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))

    def layer(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def program(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().as_text()

    assert "ynn" not in program(layer, x, kernel)
    # The word is the one to look for: matrix products are given to it.
    assert "ynn" in program(jnp.matmul, jnp.ones((256, 256)), jnp.ones((256, 256)))


OWN = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"


def flags_after_import(monkeypatch, flags: str) -> str:
    """XLA_FLAGS once the package has been imported with `flags`."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    spec = importlib.util.spec_from_file_location("imported_again", cvsa_jax.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return os.environ["XLA_FLAGS"]


@x86
@pytest.mark.parametrize(
    ("before", "kept"),
    [("--xla_cpu_enable_fast_math=false", "--xla_cpu_enable_fast_math=false --"), (OWN, OWN)],
    ids=["another flag", "the same flag"],
)
def test_xla_flags_of_the_environment_are_kept(monkeypatch, before, kept):
    after = flags_after_import(monkeypatch, before)
    assert after.startswith(kept)
    assert after.count("ynn_fusion_type") == 1


def test_xla_flags_file_is_kept(monkeypatch):
    assert flags_after_import(monkeypatch, "folder/flags.txt") == "folder/flags.txt"


def test_gpu_convolution_accepts_padding_names(rng, monkeypatch):
    # As of a shortcut of a network of width 4, on a GPU.
    monkeypatch.setattr(convolution.jax, "default_backend", lambda: "gpu")
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 8, 8, 4), (1, 1, 4, 6)))
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    for words in ("SAME", "VALID"):
        found = convolution.conv_general_dilated(x, kernel, (2, 2), words, **layout)
        expected = lax.conv_general_dilated(x, kernel, (2, 2), words, **layout)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
