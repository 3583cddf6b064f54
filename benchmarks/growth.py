"""What a step and a search cost as work grows: images/s against batch, px and devices; seconds against gallery.

    python -m benchmarks.growth                                # and to try it:
    python -m benchmarks.growth --galleries=1000 --queries=256 --batches=8 --sizes=32 --devices=1 --rounds=1

The step is that of benchmarks/train_step.py, a ResNet-8 on a CPU. The devices are simulated on the cores of this
machine, so they show what splitting a step costs, not what a second chip brings. Each setting has a process of its
own. How start-up and memory of the host grow with the set is in benchmarks/memory.py. Writes
benchmarks/results/growth.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import write_results
from cvsa_jax.evaluation.knn import knn_predict
from cvsa_jax.evaluation.retrieval import retrieval

BATCH, SIZE, CHANNELS, CLASSES = 32, 48, 256, 100


def main() -> None:
    given = parser().parse_args()
    if given.search:
        print(json.dumps(search(given.search, given.queries)))
        return
    rows = []
    for batch in given.batches:
        rows.append({"grows": "batch", "batch": batch, **step(given.rounds, batch=batch)})
    for size in given.sizes:
        rows.append({"grows": "size", "size": size, **step(given.rounds, size=size)})
    for devices in given.devices:
        rows.append({"grows": "devices", "devices": devices, **step(given.rounds, devices=devices)})
    for gallery in given.galleries:
        command = [f"--search={gallery}", f"--queries={given.queries}"]
        rows.append({"grows": "gallery", "gallery": gallery, **json.loads(output_of("benchmarks.growth", command))})
    for row in rows:
        print("  ".join(f"{key} {value:.4g}" if key != "grows" else f"{value:8}" for key, value in row.items()))
    about = {"batch": BATCH, "size": SIZE, "queries": given.queries, "channels": CHANNELS}
    write_results("growth", about | {"rows": rows})


def parser() -> argparse.ArgumentParser:
    def integers(value: str) -> list[int]:
        return [int(part) for part in value.split(",")]

    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--batches", type=integers, default=[8, 32, 128], help="images of a step")
    asked.add_argument("--sizes", type=integers, default=[32, 64, 128], help="of the views, px")
    asked.add_argument("--devices", type=integers, default=[1, 2, 4, 8], help="simulated")
    asked.add_argument("--galleries", type=integers, default=[10_000, 100_000, 1_000_000], help="features searched")
    asked.add_argument("--queries", type=int, default=2048, help="of a search")
    asked.add_argument("--rounds", type=int, default=3, help="of each step")
    asked.add_argument("--search", type=int, help="search a gallery of this size here: what the command calls itself")
    return asked


def step(rounds: int, batch: int = BATCH, size: int = SIZE, devices: int = 1) -> dict[str, float]:
    """Images/s of both methods' steps, and the memory that the compiler planned for a device."""
    options = [f"--batch_sizes={batch}", f"--size={size}", f"--rounds={rounds}", "--steps=3", "--name=growth_step"]
    options += ["--depth=8", "--stem=small", "--dtype=float32"]
    output_of("benchmarks.train_step", options, XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")
    path = Path(__file__).parent / "results" / "growth_step.json"
    figures = json.loads(path.read_text())
    path.unlink()
    prefix = f"batch_{batch}_"
    return {
        key.removeprefix(prefix): value
        for key, value in figures.items()
        if key.startswith(prefix) and isinstance(value, float)
    }


def search(gallery: int, queries: int) -> dict[str, float]:
    """Seconds of kNN of the queries in the gallery, of retrieval among as many queries, and MiB: of the features, and
    the most that the process held."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((gallery, CHANNELS), np.float32)
    labels = np.arange(gallery) % CLASSES
    asked, theirs = features[:queries] + 1, labels[:queries]
    knn_predict(features[:queries], theirs, asked[:256], (20,), 0.07)  # starts what is started once
    began = time.perf_counter()
    knn_predict(features, labels, asked, (20,), 0.07)
    knn_s, began = time.perf_counter() - began, time.perf_counter()
    retrieval(asked, theirs)
    figures = {"knn_s": knn_s, f"retrieval_of_{queries}_s": time.perf_counter() - began}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return figures | {"features_mib": features.nbytes / 2**20, "peak_mib": peak}


def output_of(module: str, options: list[str], **environment: str) -> str:
    """The last line that a benchmark prints."""
    command = [sys.executable, "-m", module, *options]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
