"""The layers of two ResNets on a CPU: our forms (cvsa_jax/models/convolution.py) against XLA's, forward and gradients.

    python -m benchmarks.convolution

Writes benchmarks/results/convolution.json: for each layer the milliseconds of both forms, medians of rounds in turn.
Layers in which both forms are the same function are not listed.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax

from benchmarks.common import write_results
from cvsa_jax.models import convolution

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Timed rounds of each layer.")
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Images, side of the map, channels in and out, stride: ResNet-50 at 224 px, and a ResNet-8 of width 64 at 48 px.
POINTWISE = [
    (8, 56, 64, 64, 1),
    (8, 56, 64, 256, 1),
    (8, 56, 256, 64, 1),
    (8, 56, 256, 512, 2),
    (8, 28, 128, 512, 1),
    (8, 28, 512, 128, 1),
    (8, 14, 256, 1024, 1),
    (8, 14, 1024, 256, 1),
    (8, 7, 512, 2048, 1),
    (8, 7, 2048, 512, 1),
    (64, 24, 64, 128, 2),
    (64, 12, 128, 256, 2),
]


def main(argv: list[str]) -> None:
    del argv
    results = {}
    for images, side, channels, out, stride in POINTWISE:
        x, kernel = _random(images, side, side, channels), _random(1, 1, channels, out)
        forms = {
            name: functools.partial(conv, window_strides=(stride, stride), padding="VALID", dimension_numbers=_LAYOUT)
            for name, conv in (("ours", convolution.conv_general_dilated), ("xla", lax.conv_general_dilated))
        }
        results |= _compared(f"{images}x{side}px_{channels}_to_{out}_stride{stride}", forms, x, kernel)
    window = functools.partial(
        lax.reduce_window,
        init_value=-jnp.inf,
        computation=lax.max,
        window_dimensions=(1, 3, 3, 1),
        window_strides=(1, 2, 2, 1),
        padding=((0, 0), (1, 1), (1, 1), (0, 0)),
    )
    results |= _compared("8x112px_max_pool", {"ours": convolution.max_pool, "xla": window}, _random(8, 112, 112, 64))
    write_results("convolution", results)


def _random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def _compared(layer: str, forms: dict, *arguments: jax.Array) -> dict[str, float]:
    """Forward pass and all gradients of each form, in turn."""

    def both(form, *arguments):
        out, backward = jax.vjp(form, *arguments)
        return backward(out)

    compiled = {name: jax.jit(functools.partial(both, form)) for name, form in forms.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for run in compiled.values():
        jax.block_until_ready(run(*arguments))
    for _ in range(_ROUNDS.value):
        for name, run in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            times[name].append(1000 * (time.perf_counter() - began))
    medians = {f"{layer}_{name}_ms": statistics.median(values) for name, values in times.items()}
    ratio = statistics.median(x / o for o, x in zip(times["ours"], times["xla"], strict=True))
    print(f"{layer:36} " + "  ".join(f"{k[len(layer) + 1 :]} {v:6.1f}" for k, v in medians.items()), f" ×{ratio:.2f}")
    return medians | {f"{layer}_xla_over_ours": ratio}


if __name__ == "__main__":
    app.run(main)
