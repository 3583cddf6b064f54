"""Training from views that the device or the host makes, beside training on one repeated batch: what the views cost.

    python -m benchmarks.device_views
    taskset -c 0 python -m benchmarks.device_views       # with one host core
    python -m benchmarks.device_views --batch=16 --depth=8 --stem=small --size=48 --images=64 --rounds=3 --dtype=float32

Random Resized Crop and Saliency Swap each, in turn with the repeated batch (A B A B …) in one process. The host reads
JPEGs; `…_alone` is the host's rate while nothing is trained, an upper limit for the training. Writes
benchmarks/results/device_views.json.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.common import photographs, synthetic_batch, write_results
from configs import common
from cvsa_jax import settings
from cvsa_jax.data import pipeline
from cvsa_jax.data.index import Order
from cvsa_jax.data.resample import with_masks
from cvsa_jax.data.sources import Source
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.distributed import make_mesh, replicated, to_mesh
from cvsa_jax.training import device_views
from cvsa_jax.training.state import init_state
from cvsa_jax.training.step import make_train_step

_BATCH = flags.DEFINE_integer("batch", 256, "Images of a step.")
_DEPTH = flags.DEFINE_integer("depth", 50, "Of the ResNet.")
_STEM = flags.DEFINE_enum("stem", "imagenet", ["imagenet", "small"], "Of the ResNet.")
_SIZE = flags.DEFINE_integer("size", 224, "Side of the views, px.")
_IMAGES = flags.DEFINE_integer("images", 2048, "Of the set.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds of each.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps in a round.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of the convolutions.")


def main(argv: list[str]) -> None:
    del argv
    mesh = make_mesh()
    runs = {name: _Run(mesh, *how) for name, how in KINDS.items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS.value):
        for name, run in runs.items():
            rates[name].append(run.rate())
    for name, (_, where) in KINDS.items():
        if where == "host":
            rates[f"{name}_alone"] = [runs[name].rate_alone() for _ in range(_ROUNDS.value)]
    figures = {}
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["repeated_batch"], strict=True))
        figures |= {f"{name}_images_per_s": statistics.median(values), f"{name}_over_repeated": ratio}
        figures |= {f"{name}_min": min(values), f"{name}_max": max(values)}
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"{name:20} {statistics.median(values):9.1f} images/s ({spread})  ×{ratio:.3f} of the repeated batch")
    about = {"device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}", "batch": _BATCH.value, "size": _SIZE.value}
    about |= {"depth": _DEPTH.value, "dtype": _DTYPE.value, "stored": 2 * _SIZE.value, "images": _IMAGES.value}
    write_results("device_views", about | figures)


# Name -> kind of the views, and who makes them.
KINDS = {
    "repeated_batch": (None, "device"),
    "random_resized_crop": ("random_resized_crop", "device"),
    "saliency_swap": ("saliency_swap", "device"),
    "host_random_resized_crop": ("random_resized_crop", "host"),
    "host_saliency_swap": ("saliency_swap", "host"),
}


class _Run:
    """CVSA's training step, fed in one of the ways of KINDS."""

    def __init__(self, mesh, kind: str | None, where: str):
        config = common.pretrain()
        config.batch_size, config.total_steps, config.optim.warmup_steps = _BATCH.value, 10**5, 10
        config.views.update({"size": _SIZE.value, "where": where, "kind": kind or "saliency_swap"})
        model = Siamese(_DEPTH.value, 64, _STEM.value, dtype=jnp.dtype(_DTYPE.value), axis_name="data")
        optimizer, _ = settings.optimizer(config, _IMAGES.value)
        views = settings.view_spec(config, model.stride)
        make_views = None if kind is None else device_views.make_views(views, seed=0)
        if where == "host":
            make_views = functools.partial(with_masks, size=views.size, xp=jnp)
        step = make_train_step(model, optimizer, mesh, settings.step_spec(config, _IMAGES.value), make_views)
        order = Order(_BATCH.value, range(10**6), 0)
        if kind is None:
            batch = to_mesh(synthetic_batch(_BATCH.value, _SIZE.value), mesh)
            self.batches = iter(lambda: batch, None)
        elif where == "host":
            self.batches = pipeline.train_batches(*_encoded(), views, order)
        else:
            self.batches = device_views.device_batches(_resident(views, mesh), _IMAGES.value, order, None)
        initialize = functools.partial(init_state, model, optimizer, _SIZE.value)
        self.state = jax.jit(initialize, out_shardings=replicated(mesh))(jax.random.key(0))
        self.mesh, self.step = mesh, step
        self.rate()  # compiles

    def rate(self) -> float:
        """Images/s of a round, by the loop of a training: the host stays one step ahead."""
        began, metrics = time.perf_counter(), {}
        for _ in range(_STEPS.value):
            self.state, ahead = self.step(self.state, to_mesh(next(self.batches), self.mesh))
            jax.block_until_ready(metrics)
            metrics = ahead
        jax.block_until_ready(metrics)
        return _BATCH.value * _STEPS.value / (time.perf_counter() - began)

    def rate_alone(self) -> float:
        """Images/s of the batches of a round."""
        began = time.perf_counter()
        for _ in range(_STEPS.value):
            next(self.batches)
        return _BATCH.value * _STEPS.value / (time.perf_counter() - began)


@functools.lru_cache
def _encoded() -> tuple[Source, np.ndarray, np.ndarray]:
    """JPEGs, all of them, and one soft blob as the map of each."""
    files, everything = photographs(min(64, _IMAGES.value)), np.arange(_IMAGES.value)

    def read(i: int) -> bytes:
        return files[i % len(files)]

    names = tuple(map(str, everything))
    source = Source("pieces", names, None, (), {"train": everything}, read, None, lambda kind: f"{len(names)} pieces")
    return source, everything, np.tile(_blob(), (_IMAGES.value, 1, 1))


def _blob() -> np.ndarray:
    grid = np.linspace(-1, 1, 64)
    return (255 * np.exp(-((grid[:, None] - 0.1) ** 2 + (grid[None] + 0.2) ** 2) / 0.2)).astype(np.uint8)


@functools.lru_cache
def _resident(views, mesh) -> device_views.Resident:
    """Noise, and one soft blob as the map of all images."""
    rng, side = np.random.default_rng(0), 2 * views.size
    images = rng.integers(0, 256, (_IMAGES.value, side, side, 3), np.uint8)
    maps = np.tile(_blob(), (_IMAGES.value, 1, 1))
    shapes = np.tile(np.array([500, 689], np.float32), (_IMAGES.value, 1))
    return device_views.placed(images, shapes, maps, views, mesh)


if __name__ == "__main__":
    app.run(main)
