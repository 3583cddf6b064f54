"""Where the time of an evaluation goes, at the size of CUB or of whatever is asked for, without the network's passes.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --train=200 --test=300 --classes=10 --channels=64 --maps=1    # to try it

Features are drawn around a centre for each class, maps of 7x7 cells around a place for each image; both stand in for a
network's. Everything that `evaluate` does with them is timed. Prints the seconds of each part and the peak memory, and
writes benchmarks/results/evaluation.json.
"""

import resource
import time

import numpy as np
from absl import app, flags

from benchmarks.common import write_results
from configs import common
from cvsa_jax import settings
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.boxes import box_score
from cvsa_jax.evaluation.knn import knn_predict, leave_one_out
from cvsa_jax.evaluation.probe import linear_probe
from cvsa_jax.evaluation.retrieval import retrieval

_TRAIN = flags.DEFINE_integer("train", 5994, "Images.")
_TEST = flags.DEFINE_integer("test", 5794, "Images.")
_CLASSES = flags.DEFINE_integer("classes", 200, "Of the images.")
_CHANNELS = flags.DEFINE_integer("channels", 2048, "Of the pooled features.")
_MAPS = flags.DEFINE_integer("maps", 5, "Maps of each test image.")
_SIZE = flags.DEFINE_integer("size", 224, "Side of the evaluated images, px.")


def main(argv: list[str]) -> None:
    del argv
    rng = np.random.default_rng(0)
    config = common.linear()
    knn, probe = settings.knn(config.eval), settings.probe(config)
    centres = rng.normal(size=(_CLASSES.value, _CHANNELS.value))
    y, y_test = (np.arange(n) % _CLASSES.value for n in (_TRAIN.value, _TEST.value))
    x, x_test = (
        np.maximum(centres[labels] + 6 * rng.normal(size=(len(labels), _CHANNELS.value)), 0).astype(np.float32)
        for labels in (y, y_test)
    )
    maps, masks, boxes = scenes(rng, _TEST.value, _SIZE.value)
    seconds: dict[str, float] = {}

    def timed(name: str, work):
        began = time.perf_counter()
        result = work()
        seconds[f"{name}_s"] = seconds.get(f"{name}_s", 0) + time.perf_counter() - began
        return result

    ks, temperature = knn.ks, knn.temperature
    timed("knn_leave_one_out", lambda: leave_one_out(x, y, ks, temperature))
    tops = (timed("knn", lambda: knn_predict(x, y, x_test, ks, temperature)) == y_test).mean(1)
    timed("retrieval", lambda: retrieval(x_test, y_test))
    result = timed("probe", lambda: linear_probe(x, y, x_test, y_test, _CLASSES.value, probe, 0))
    for _ in range(_MAPS.value):
        figures = timed("maps_against_masks", lambda: localization.score(maps, masks))
        figures |= timed("maps_against_boxes", lambda: box_score(maps, boxes, _SIZE.value))
    seconds["in_all_s"] = sum(seconds.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for name, value in seconds.items():
        print(f"{name:24} {value:8.1f}")
    print(
        f"kNN {tops.max():.3f}, probe {result.figures['top1']:.3f}, rate {result.learning_rate:g}; peak {peak:.2f} GiB"
    )
    asked = {flag.name: flag.value for flag in (_TRAIN, _TEST, _CLASSES, _CHANNELS, _MAPS, _SIZE)}
    write_results("evaluation", asked | seconds | {"peak_gib": peak, **figures})


def scenes(rng: np.random.Generator, count: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps (count, 7, 7) of a blob and noise, masks (count, size, size) and boxes of ellipses near the blob."""
    centre, radius = rng.uniform(0.3, 0.7, (count, 2)), rng.uniform(0.15, 0.3, (count, 2))
    cell, pixel = (np.arange(7) + 0.5) / 7, (np.arange(size) + 0.5) / size
    y, x = (((cell - centre[:, i, None]) / 0.25) ** 2 for i in (0, 1))
    maps = np.exp(-y[:, :, None] - x[:, None]) + 0.3 * rng.random((count, 7, 7))
    y, x = (((pixel - centre[:, i, None]) / radius[:, i, None]) ** 2 for i in (0, 1))
    masks = np.stack([rows[:, None] + columns <= 1 for rows, columns in zip(y, x, strict=True)])
    return maps.astype(np.float32), masks, np.concatenate([centre - radius, centre + radius], 1)


if __name__ == "__main__":
    app.run(main)
