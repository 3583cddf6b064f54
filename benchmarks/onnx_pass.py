"""A saliency pass by an ONNX model beside onnxruntime alone, in turn: what decoding, squeezing and writing cost.

    python -m benchmarks.onnx_pass --model=u2net.onnx --preset=u2net --images=my_images
    python -m benchmarks.onnx_pass --detector=focus --images=my_images --rounds=1

Alone, the same session gets batches of floats that are ready, of the size that the pass gives it. The pass reads the
files, and makes a whole store. Writes benchmarks/results/onnx_pass.json.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import write_results
from cvsa_jax.data import sources
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors import onnx
from cvsa_jax.saliency.registry import Options, build


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--images", required=True, help="folder of images")
    given.add_argument("--detector", default="onnx", choices=("onnx", "focus", "rembg"))
    given.add_argument("--model", help="of onnx and rembg")
    given.add_argument("--preset", help="of onnx")
    given.add_argument("--count", default=200, type=int, help="images")
    given.add_argument("--rounds", default=3, type=int)
    args = given.parse_args()
    source = sources.load("folder", args.images)
    count = min(args.count, len(source))
    source = dataclasses.replace(
        source, names=source.names[:count], labels=None, splits={"train": np.arange(count)}, masked=None
    )
    opened: list = []
    open_session = onnx._session
    onnx._session = lambda path: opened.append(open_session(path)) or opened[-1]
    detector = build(args.detector, source, Options(model=args.model, preset=args.preset))
    (session, _), size = opened[0], detector.settings["size"]
    batches = np.random.default_rng(0).normal(size=(detector.batch_size, 3, size, size)).astype(np.float32)
    name = session.get_inputs()[0].name
    session.run(None, {name: batches})  # what it takes at first
    rates: dict[str, list[float]] = {"alone": [], "pass": []}
    for _ in range(args.rounds):
        began = time.monotonic()
        for first in range(0, count, detector.batch_size):
            session.run(None, {name: batches[: count - first]})
        rates["alone"].append(count / (time.monotonic() - began))
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            compute(source, detector, Path(folder) / "store", threshold=0.5, on_bad_image="stop")
            rates["pass"].append(count / (time.monotonic() - began))
    shares = [ours / theirs for ours, theirs in zip(rates["pass"], rates["alone"], strict=True)]
    figures = {"model": detector.settings, "images": count, "images_per_s": rates, "share": shares}
    print(f"alone {rates['alone']}, pass {rates['pass']}: {statistics.median(shares):.2f} of it")
    write_results("onnx_pass", figures)


if __name__ == "__main__":
    main()
