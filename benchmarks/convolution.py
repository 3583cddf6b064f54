"""The layers of two ResNets on a CPU, forward and gradients: with the library that this package asks XLA to take for
convolutions (cvsa_jax/__init__.py) and with the one that XLA takes by itself; and max-pooling in our form and in XLA's.

    python -m benchmarks.convolution --peer=.venv-peers/bin/python

Each side is a process, and they measure in turn; the peer, an environment with PyTorch, may be left out. Writes
benchmarks/results/convolution.json: for each layer the milliseconds of all sides, medians of the rounds, and the
medians of their ratios to ours.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.common import asked, write_results
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="of each layer")
    parser.add_argument("--peer", help="Python of the environment for PyTorch")
    parser.add_argument("--worker", action="store_true", help="answer tasks: what the command calls itself")
    given = parser.parse_args()
    if given.worker:
        work()
        return
    ours = [sys.executable, "-m", "benchmarks.convolution", "--worker"]
    sides = {"ours": worker(ours, os.environ["XLA_FLAGS"]), "xla": worker(ours)}
    if given.peer:
        sides["torch"] = worker([given.peer, str(Path(__file__).with_name("peers_torch.py"))])
    results = {}
    for kernel, images, side, channels, out, stride in LAYERS:
        name = f"{kernel}x{kernel}_{images}x{side}px_{channels}_to_{out}_stride{stride}"
        task = {"layer": (kernel, images, side, channels, out, stride)}
        results |= compared(name, {name: (process, task) for name, process in sides.items()}, given.rounds)
    pooling = {form: (sides["ours"], {"layer": form}) for form in ("ours", "xla")}
    results |= compared("8x112px_max_pool", pooling, given.rounds)
    for process in sides.values():
        process.stdin.close()
        process.wait()
    write_results("convolution", results)


def worker(command: list[str], flags: str = "") -> subprocess.Popen:
    environment = os.environ | {"BENCHMARK_XLA_FLAGS": flags}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def work() -> None:
    """Answers each task on standard input, a layer, with the seconds that it took."""
    os.environ["XLA_FLAGS"] = os.environ["BENCHMARK_XLA_FLAGS"]  # read when the first program is compiled
    for line in sys.stdin:
        asked_for = json.loads(line)["layer"]
        run, arguments = layer(asked_for if isinstance(asked_for, str) else tuple(asked_for))
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


@functools.cache
def layer(asked_for: str | tuple[int, ...]):
    """Forward pass and all gradients of one of LAYERS, or of the form `ours` or `xla` of max-pooling, compiled, and its
    arguments."""
    if isinstance(asked_for, str):
        window = functools.partial(
            lax.reduce_window,
            init_value=-jnp.inf,
            computation=lax.max,
            window_dimensions=(1, 3, 3, 1),
            window_strides=(1, 2, 2, 1),
            padding=((0, 0), (1, 1), (1, 1), (0, 0)),
        )
        form, shapes = {"ours": convolution.max_pool, "xla": window}[asked_for], [(8, 112, 112, 64)]
    else:
        kernel, images, side, channels, out, stride = asked_for
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


def compared(name: str, sides: dict[str, tuple[subprocess.Popen, dict]], rounds: int) -> dict[str, float]:
    """Each side in turn."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for k in range(rounds + 1):
        for side, (process, task) in sides.items():
            milliseconds = 1000 * asked(process, task)["seconds"]
            if k > 0:  # the first is to warm up
                times[side].append(milliseconds)
    figures = {f"{side}_ms": statistics.median(values) for side, values in times.items()}
    for side in list(sides)[1:]:
        ratios = [other / mine for mine, other in zip(times["ours"], times[side], strict=True)]
        figures[f"{side}_over_ours"] = statistics.median(ratios)
    print(f"{name:36} " + "  ".join(f"{key} {value:6.2f}" for key, value in figures.items()), flush=True)
    return {f"{name}_{key}": value for key, value in figures.items()}


if __name__ == "__main__":
    main()
