"""The layers of two ResNets on a CPU, forward and gradients: with the library that this package asks XLA to take for
convolutions (cvsa_jax/__init__.py) and with the one that XLA takes by itself; and max-pooling in our form and in XLA's.

    python -m benchmarks.convolution

The libraries are asked for in two processes, which measure in turn. Writes benchmarks/results/convolution.json: for
each layer the milliseconds of both sides, medians of the rounds, and the median of their ratios.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.common import write_results
from cvsa_jax.models import convolution

# Kernel, images, side of the map, channels in and out, stride: ResNet-50 at 224 px, a ResNet-8 of width 64 at 48 px.
LAYERS = [
    (7, 8, 224, 3, 64, 2),
    (1, 8, 56, 64, 256, 1),
    (1, 8, 56, 256, 64, 1),
    (1, 8, 28, 512, 128, 1),
    (1, 8, 14, 256, 1024, 1),
    (1, 8, 7, 2048, 512, 1),
    (3, 8, 56, 64, 64, 1),
    (3, 8, 28, 128, 128, 1),
    (3, 8, 14, 256, 256, 1),
    (3, 8, 7, 512, 512, 1),
    (3, 64, 24, 64, 64, 1),
    (3, 64, 12, 128, 128, 1),
    (3, 64, 24, 64, 128, 2),
]
POOLING = len(LAYERS), len(LAYERS) + 1  # our form, XLA's


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=9, help="of each layer")
    asked.add_argument("--worker", action="store_true", help="measure what is asked for: what the command calls itself")
    given = asked.parse_args()
    if given.worker:
        work()
        return
    workers = {"ours": worker(os.environ["XLA_FLAGS"]), "xla": worker("")}
    results = {}
    for k, (kernel, images, side, channels, out, stride) in enumerate(LAYERS):
        layer = f"{kernel}x{kernel}_{images}x{side}px_{channels}_to_{out}_stride{stride}"
        results |= compared(layer, {name: (one, k) for name, one in workers.items()}, given.rounds)
    pooling = dict(zip(workers, [(workers["ours"], k) for k in POOLING], strict=True))
    results |= compared("8x112px_max_pool", pooling, given.rounds)
    for one in workers.values():
        one.stdin.close()
        one.wait()
    write_results("convolution", results)


def worker(flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.convolution", "--worker"]
    environment = os.environ | {"BENCHMARK_XLA_FLAGS": flags}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def work() -> None:
    """Answers each number of a layer on standard input with the milliseconds that it took."""
    os.environ["XLA_FLAGS"] = os.environ["BENCHMARK_XLA_FLAGS"]  # read when the first program is compiled
    for line in sys.stdin:
        run, arguments = layer(int(line))
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        print(1000 * (time.perf_counter() - began), flush=True)


@functools.cache
def layer(k: int):
    """Forward pass and all gradients of a layer, compiled, and its arguments."""
    if k in POOLING:
        window = functools.partial(
            lax.reduce_window,
            init_value=-jnp.inf,
            computation=lax.max,
            window_dimensions=(1, 3, 3, 1),
            window_strides=(1, 2, 2, 1),
            padding=((0, 0), (1, 1), (1, 1), (0, 0)),
        )
        form, shapes = (convolution.max_pool, window)[k - POOLING[0]], [(8, 112, 112, 64)]
    else:
        kernel, images, side, channels, out, stride = LAYERS[k]
        layout = ("NHWC", "HWIO", "NHWC")
        padding = ((kernel // 2, kernel // 2),) * 2
        form = functools.partial(
            lax.conv_general_dilated, window_strides=(stride, stride), padding=padding, dimension_numbers=layout
        )
        shapes = [(images, side, side, channels), (kernel, kernel, channels, out)]

    def both(*arguments):
        out, backward = jax.vjp(form, *arguments)
        return backward(out)

    arguments = [jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32) for shape in shapes]
    run = jax.jit(both)
    jax.block_until_ready(run(*arguments))
    return run, arguments


def compared(name: str, sides: dict[str, tuple[subprocess.Popen, int]], rounds: int) -> dict[str, float]:
    """Each side in turn."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds + 1):
        for side, (process, k) in sides.items():
            process.stdin.write(f"{k}\n")
            process.stdin.flush()
            times[side].append(float(process.stdout.readline()))
    medians = {f"{name}_{side}_ms": statistics.median(values[1:]) for side, values in times.items()}
    ratio = statistics.median(x / o for o, x in zip(times["ours"][1:], times["xla"][1:], strict=True))
    print(f"{name:36} " + "  ".join(f"{k[len(name) + 1 :]} {v:6.1f}" for k, v in medians.items()), f" ×{ratio:.2f}")
    return medians | {f"{name}_xla_over_ours": ratio}


if __name__ == "__main__":
    main()
