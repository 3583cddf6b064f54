"""Images per second of the host's input, stage by stage, beside decoding alone and Pillow's two crops.

    python -m benchmarks.input_pipeline
    python -m benchmarks.input_pipeline --before=../before         # a checkout of an earlier commit, in turn with ours
    python -m benchmarks.input_pipeline --images=8 --seconds=0.3   # to try it

The images are JPEGs of 689x500 pixels, cut out of a photograph that scikit-image brings along, so that all sides
measure the same files; `kept` are the images of `config.data.cache`, `small` those of 256 px; in `overhead` constants
take the place of decoding and resizing, which leaves what one process can do with any number of cores. Every stage runs
on one core, and those of SCALED on all cores as well, in turn over several rounds, each in a process of its own, so
that none has the other's memory. Writes benchmarks/results/input_pipeline.json.
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

from benchmarks.common import HEIGHT, WIDTH, photographs, write_results

_IMAGES = flags.DEFINE_integer("images", 64, "JPEGs.")
_SIZE = flags.DEFINE_integer("size", 224, "Side of the views, px.")
_SECONDS = flags.DEFINE_float("seconds", 4, "Of each stage in a round.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Of all stages.")
_BEFORE = flags.DEFINE_string("before", None, "A checkout of an earlier commit, whose stages run in turn.")
_STAGE = flags.DEFINE_string("stage", None, "Measure this one here, and print images/s: what the command calls itself.")
CROP, SWAP = {"views.kind": "random_resized_crop"}, {"views.kind": "saliency_swap"}


def main(argv: list[str]) -> None:
    del argv
    if _STAGE.value:
        print(json.dumps(STAGES[_STAGE.value]()))
        return
    cores = len(os.sched_getaffinity(0))
    measured: dict[str, list[float]] = {}
    for _ in range(_ROUNDS.value):
        for stage in STAGES:
            if stage not in ON_ALL_CORES:
                measured.setdefault(stage, []).append(_rate_of(stage, 1))
                if _BEFORE.value:
                    measured.setdefault(f"before_{stage}", []).append(_rate_of(stage, 1, _BEFORE.value))
            if stage in (*SCALED, *ON_ALL_CORES):
                measured.setdefault(f"{stage}_on_{cores}_cores", []).append(_rate_of(stage, cores))
    figures = {}
    for name, rates in measured.items():
        figures[f"{name}_images_per_s"] = statistics.median(rates)
        told = f"{name:40} {statistics.median(rates):8.1f} images/s ({min(rates):.0f} to {max(rates):.0f})"
        stage = name.removesuffix(f"_on_{cores}_cores")
        for other, what in (("pillow_decode_two_crops", "Pillow"), (f"before_{name}", "before"), (stage, "one core")):
            if other in measured and other != name:
                ratio = statistics.median(a / b for a, b in zip(rates, measured[other], strict=True))
                figures[f"{name}_over_{other}"] = ratio
                told += f"  ×{ratio:.2f} of {what}"
        print(told)
    write_results("input_pipeline", {"size": _SIZE.value, "image": f"{WIDTH}x{HEIGHT} JPEG", "cores": cores, **figures})


def _rate_of(stage: str, cores: int, tree: str = ".") -> float:
    """Of a stage on so many cores, as the checkout `tree` has it."""
    command = [sys.executable, "-m", "benchmarks.input_pipeline", f"--stage={stage}"]
    command += [f"--{flag.name}={flag.value}" for flag in (_IMAGES, _SIZE, _SECONDS)]
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    paths = f".{os.pathsep}{os.environ.get('PYTHONPATH', '')}"  # the checkout's own modules first
    done = subprocess.run(
        command,
        cwd=tree,
        env=os.environ | {"OMP_NUM_THREADS": str(cores), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": paths},
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


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
    files, k = photographs(_IMAGES.value), 0
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


def _overhead(changes: dict) -> float:
    """What is left of the pipeline where nothing is decoded, resized or pasted."""
    import tensorflow as tf

    from cvsa_jax.data import pixels

    image = tf.zeros([HEIGHT, WIDTH, 3], tf.uint8)
    view = tf.zeros([_SIZE.value, _SIZE.value, 3], tf.uint8)
    pixels.decoded = lambda *args: image
    pixels.resized = pixels.pasted = lambda *args: view
    return _views(changes, batch=256)


def _views(changes: dict, batch: int = 16) -> float:
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
    files = photographs(_IMAGES.value) * max(1, 4 * batch // _IMAGES.value)
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
    "overhead_random_resized_crop": lambda: _overhead(CROP),
    "overhead_saliency_swap": lambda: _overhead(SWAP),
}
SCALED = ("random_resized_crop", "saliency_swap")
ON_ALL_CORES = ("overhead_random_resized_crop", "overhead_saliency_swap")


if __name__ == "__main__":
    app.run(main)
