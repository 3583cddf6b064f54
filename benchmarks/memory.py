"""Does the memory of the host grow with the data set?

    python -m benchmarks.memory --images=2000,20000,200000

For each size: a folder of so many images (links to a few files) with a saliency store, and in a process of its own the
input pipeline of stage 2 on it; after 20 and after 200 batches, the process's own memory (without files that the system
may drop from memory again, as it can those of the store). Writes benchmarks/results/memory.json.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from PIL import Image

from benchmarks.common import write_results
from configs import common
from cvsa_jax import settings
from cvsa_jax.data import pipeline
from cvsa_jax.data.index import Order
from cvsa_jax.data.sources import load
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors.annotation import center
from cvsa_jax.saliency.store import SHARD_SIZE, SaliencyStore, shard_paths

_IMAGES = flags.DEFINE_list("images", ["2000", "20000", "200000"], "Sizes of the data set.")
_MEASURE = flags.DEFINE_string("measure", None, "Only measures the set in this folder, and prints the figures.")
FILES, BATCH, WARM, STEPS = 16, 64, 20, 200


def make_set(folder: Path, images: int) -> None:
    """`folder/images` and `folder/store`, each image a link to one of FILES."""
    rng = np.random.default_rng(0)
    files = []
    for k in range(FILES):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        files.append(folder / f"{k}.jpg")
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    for i in range(images):
        shelf = folder / "images" / f"{i // 10000:03d}"
        shelf.mkdir(parents=True, exist_ok=True)
        os.link(files[i % FILES], shelf / f"{i:07d}.jpg")
    # The maps' content does not matter: the file of the first maps stands for all.
    source = load("folder", str(folder / "images"))
    few = dataclasses.replace(source, names=source.names[:SHARD_SIZE])
    manifest = compute(few, center(few), folder / "store", threshold=0.5, on_bad_image="stop")
    (folder / "store" / "manifest.json").write_text(json.dumps(manifest | {"images": images}))
    first, *others = shard_paths(folder / "store", images)
    for path in others:
        os.link(first, path)


def measure(folder: Path) -> dict[str, float]:
    """MiB of this process before the data set, and after batches of it; seconds until the first batch."""
    config = common.pretrain()
    before, began = _own_mib(), time.monotonic()
    source = load("folder", str(folder / "images"))
    store = SaliencyStore(folder / "store", source)
    spec = settings.view_spec(config, 32)
    pool = source.split("train")
    batches = pipeline.train_batches(source, pool, store, spec, Order(BATCH, range(STEPS), seed=0))
    figures = {"images": len(source), "before_mib": before}
    for step, _ in enumerate(batches, 1):
        if step == 1:
            figures["first_batch_s"] = time.monotonic() - began
        if step in (WARM, STEPS):
            figures[f"after_{step}_mib"] = _own_mib()
    return figures


def _own_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")) / 1024


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.FATAL)
    if _MEASURE.value:
        print(json.dumps(measure(Path(_MEASURE.value))))
        return
    rows = []
    for images in map(int, _IMAGES.value):
        with tempfile.TemporaryDirectory() as folder:
            make_set(Path(folder), images)
            command = [sys.executable, "-m", "benchmarks.memory", f"--measure={folder}"]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append(json.loads(printed.splitlines()[-1]))
            print(rows[-1], flush=True)
    write_results("memory", {"batch": BATCH, "rows": rows})


if __name__ == "__main__":
    app.run(main)
