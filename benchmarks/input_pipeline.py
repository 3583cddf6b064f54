"""Images per second and core of the host's input, stage by stage, beside decoding alone and Pillow's two crops.

    python -m benchmarks.input_pipeline
    python -m benchmarks.input_pipeline --images=8 --seconds=0.3    # to try it

The images are JPEGs of 689x500 pixels, cut out of a photograph that scikit-image brings along, so that all sides
measure the same files; `kept` are the images of `config.data.cache`, `small` those of 256 px. Every stage runs on one
core, in turn over several rounds, each in a process of its own,
so that none has the other's memory. Writes benchmarks/results/input_pipeline.json.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
from absl import app, flags
from PIL import Image
from skimage import data

from benchmarks.common import write_results

_IMAGES = flags.DEFINE_integer("images", 64, "JPEGs.")
_SIZE = flags.DEFINE_integer("size", 224, "Side of the views, px.")
_SECONDS = flags.DEFINE_float("seconds", 4, "Of each stage in a round.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Of all stages.")
_STAGE = flags.DEFINE_string("stage", None, "Measure this one here, and print images/s: what the command calls itself.")
HEIGHT, WIDTH, QUALITY = 500, 689, 90
CROP, SWAP = {"views.kind": "random_resized_crop"}, {"views.kind": "saliency_swap"}


def main(argv: list[str]) -> None:
    del argv
    if _STAGE.value:
        print(json.dumps(STAGES[_STAGE.value]()))
        return
    rates: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for _ in range(_ROUNDS.value):
        for stage, measured in rates.items():
            measured.append(_on_one_core(stage))
    figures = {}
    for stage, measured in rates.items():
        ratio = statistics.median(a / b for a, b in zip(measured, rates["pillow_decode_two_crops"], strict=True))
        figures |= {f"{stage}_images_per_s": statistics.median(measured), f"{stage}_over_pillow": ratio}
        spread = f"{min(measured):.0f} to {max(measured):.0f}"
        print(f"{stage:28} {statistics.median(measured):7.1f} images/s ({spread})  ×{ratio:.2f} of Pillow")
    write_results("input_pipeline", {"size": _SIZE.value, "image": f"{WIDTH}x{HEIGHT} JPEG", **figures})


def _on_one_core(stage: str) -> float:
    core = min(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "benchmarks.input_pipeline", f"--stage={stage}"]
    command += [f"--{flag.name}={flag.value}" for flag in (_IMAGES, _SIZE, _SECONDS)]
    limits = os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        command,
        env=limits,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def encoded() -> list[bytes]:
    """The JPEGs: pieces of one photograph at several scales."""
    photograph = Image.fromarray(data.chelsea())
    rng = np.random.default_rng(0)
    files = []
    for _ in range(_IMAGES.value):
        side = rng.uniform(0.5, 1)
        w, h = side * photograph.width, side * photograph.height
        x, y = rng.uniform(0, photograph.width - w), rng.uniform(0, photograph.height - h)
        piece = photograph.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, (x, y, x + w, y + h))
        file = io.BytesIO()
        piece.save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return files


def _rate(images: Iterator[int]) -> float:
    """Images per second; each item says how many it is worth. The first tenth of the time only warms up."""
    began, count, start = time.perf_counter(), 0, None
    for worth in images:
        now = time.perf_counter()
        if start is None and now - began > _SECONDS.value / 10:
            start, count = now, 0
            continue
        count += worth
        if start is not None and now - start > _SECONDS.value:
            return count / (now - start)
    raise AssertionError("the images came to an end")


def _forever(work: Callable[[bytes, int], object]) -> Iterator[int]:
    files, k = encoded(), 0
    while True:
        work(files[k % len(files)], k)
        k += 1
        yield 1


def pillow_decode() -> float:
    return _rate(_forever(lambda file, k: np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))))


def pillow_decode_two_crops() -> float:
    rng = np.random.default_rng(0)
    size = (_SIZE.value, _SIZE.value)

    def work(file: bytes, k: int) -> None:
        image = Image.open(io.BytesIO(file)).convert("RGB")
        for _ in range(2):
            area, aspect = rng.uniform(0.08, 1) * WIDTH * HEIGHT, np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = min(WIDTH, (area * aspect) ** 0.5), min(HEIGHT, (area / aspect) ** 0.5)
            x, y = rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h)
            np.asarray(image.resize(size, Image.Resampling.BILINEAR, (x, y, x + w, y + h)))

    return _rate(_forever(work))


def decode() -> float:
    from cvsa_jax.data.decode import opened

    return _rate(_forever(lambda file, k: np.asarray(opened(file).pixels())))


def _views(changes: dict) -> float:
    """The whole pipeline of training, as a config with such changes has it."""
    from configs import common
    from cvsa_jax import settings
    from cvsa_jax.data.index import Order
    from cvsa_jax.data.pipeline import train_batches
    from cvsa_jax.data.sources import Source
    from cvsa_jax.data.stored import Squares

    config = common.pretrain()
    config.views.size = _SIZE.value
    config.update_from_flattened_dict(changes)
    files, batch = encoded(), 16
    names, everything = tuple(map(str, range(len(files)))), np.arange(len(files))
    source = Source("pieces", names, None, (), {"train": everything}, files.__getitem__, None, lambda kind: "")
    grid = np.linspace(-1, 1, 64)
    blob = 255 * np.exp(-((grid[:, None] - 0.1) ** 2 + (grid[None] + 0.2) ** 2) / 0.2)
    maps = np.tile(blob.astype(np.uint8), (len(files), 1, 1))
    order = Order(batch, range(10**6), 0)
    spec = settings.view_spec(config, 32)
    swapped = spec.kind == "saliency_swap"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        squares = Squares(source, everything, spec.square) if config.data.cache else None
        batches = train_batches(source, everything, maps if swapped else None, spec, order, squares=squares)
        return _rate(batch for _ in batches)


STAGES = {
    "pillow_decode_two_crops": pillow_decode_two_crops,
    "pillow_decode": pillow_decode,
    "decode": decode,
    "random_resized_crop": lambda: _views(CROP),
    "saliency_swap": lambda: _views(SWAP),
    "random_resized_crop_kept": lambda: _views(CROP | {"data.cache": True}),
    "saliency_swap_kept": lambda: _views(SWAP | {"data.cache": True}),
    "random_resized_crop_kept_small": lambda: _views(CROP | {"data.cache": True, "views.stored": 256}),
    "saliency_swap_kept_small": lambda: _views(SWAP | {"data.cache": True, "views.stored": 256}),
}


if __name__ == "__main__":
    app.run(main)
