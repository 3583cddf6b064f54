"""What a look head gives: a frozen network's features under every pooling, on several sets.

    python -m benchmarks.look --run=model.pth --name=augnet --sets=birds=data/birds,pets=data/pets --detectors=rbd,masks

A set is a name and a folder as configs/folder.py takes it, with classes and a test split. Its images go through the
network once, whole, squeezed to `--size`, and their cells are kept in `<out>/<name>/<set>.npz`, as `evaluate --runs=`
takes them; `--run` may also be an ONNX file and the name of a tensor of tokens in it (`model.onnx:tensor`), as of a
vision transformer. Maps are in `<out>/<set>/<detector>`, made where they are not there. Rows of a set: the average, the
maximum of each channel, the first component, the maps of each detector, a head taught by each on all train images, on
`--images` of them with each of `--seeds`, and heads fitted to all train images of the other sets. Each is a line of
`<out>/look.jsonl`: linear probe, ridge classifier, kNN and, of a head, localisation on the test images. The same
command goes on where it was interrupted.
"""

import argparse
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from sklearn.linear_model import RidgeClassifierCV

from benchmarks.common import commit
from benchmarks.detectors import named_detector
from configs import common
from cvsa_jax import settings
from cvsa_jax.data import reading, sources
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.evaluator import Evaluator
from cvsa_jax.evaluation.external_features import ExternalFeatures
from cvsa_jax.evaluation.features import encoded_batches
from cvsa_jax.evaluation.look import Guide, LookHead
from cvsa_jax.evaluation.protocol import EvalSpec
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detector import squeezed
from cvsa_jax.saliency.detectors.onnx import IMAGENET
from cvsa_jax.saliency.store import SaliencyStore
from cvsa_jax.weights import frozen

KEPT = ("linear_top1", "knn_top1", "recall_at_1")


def main() -> None:
    args = parser().parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    roots = dict(entry.partition("=")[::2] for entry in args.sets.split(","))
    prepared = {name: Prepared.of(args, name, root) for name, root in roots.items()}
    path = args.out / "look.jsonl"
    done = {json.loads(line)["key"] for line in path.read_text().splitlines()} if path.exists() else set()
    for name, one in prepared.items():
        others = {other: it for other, it in prepared.items() if other != name}
        for row in rows_of(one, others, args):
            key = f"{args.name}/{row.key}"
            if key not in done:
                told = {"key": key, "network": args.name, "set": name, "test": len(one.test), "commit": commit()}
                line = told | measure(one, row)
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{key}: {', '.join(f'{k} {v}' for k, v in line.items() if k not in told)}", flush=True)


def parser() -> argparse.ArgumentParser:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--run", required=True, help="workdir of a run, file of weights, or model.onnx:tensor")
    given.add_argument("--name", required=True, help="of the network, in the lines and of the folder of its cells")
    given.add_argument("--sets", required=True, help="name=folder, with commas")
    given.add_argument("--detectors", default="rbd", help="of maps and teachers, with commas; also isnet=FILE")
    given.add_argument("--images", default="20,50,100,200", help="train images of a head besides all, with commas")
    given.add_argument("--seeds", default="0,1,2,3,4", help="that draw these, with commas")
    given.add_argument("--size", default=224, type=int, help="px")
    given.add_argument("--out", default=Path("runs/look"), type=Path)
    return given


class Prepared(NamedTuple):
    """A set with its cells and maps."""

    name: str
    source: Source
    cells: Path
    stores: dict[str, SaliencyStore]
    size: int

    @property
    def train(self) -> np.ndarray:
        return self.source.split("train")

    @property
    def test(self) -> np.ndarray:
        return self.source.split("test")

    @classmethod
    def of(cls, args: argparse.Namespace, name: str, root: str) -> "Prepared":
        source, stores = sources.load("folder", root), {}
        for entry in args.detectors.split(","):
            detector = entry.partition("=")[0]
            if detector != "masks" or source.mask is not None:
                folder = args.out / name / detector
                compute(source, named_detector(entry, source), folder, threshold=0.5, on_bad_image="stop")
                stores[detector] = SaliencyStore(folder, source)
        kept, made_by = args.out / args.name / f"{name}.npz", f"{args.run} at {args.size} px"
        if not kept.is_file():
            cells = tokens(args, source) if ".onnx:" in args.run else cells_of(args, source)
            kept.parent.mkdir(exist_ok=True)
            vectors = cells.mean((1, 2), dtype=np.float32)
            written = kept.with_suffix(".part.npz")
            np.savez(written, names=np.array(source.names), vectors=vectors, patches=cells, made_by=made_by)
            written.replace(kept)
        with np.load(kept) as arrays:
            if str(arrays["made_by"]) != made_by:
                raise SystemExit(
                    f"{kept} is of {arrays['made_by']}, and not of {made_by}: take another --name or --out"
                )
            maxima = arrays["patches"].max((1, 2)).astype(np.float32)
            np.savez(kept.with_name(f"{name}.maximum.npz"), names=arrays["names"], vectors=maxima)
        return cls(name, source, kept, stores, args.size)

    def features(self, pooling: str, guide: Guide) -> ExternalFeatures:
        """Its cells under one pooling of the package, or the `maximum` of each channel."""
        file = self.cells.with_name(f"{self.name}.maximum.npz") if pooling == "maximum" else self.cells
        pooling = "average" if pooling == "maximum" else pooling
        return ExternalFeatures(file, self.source, EvalSpec(self.size, self.size, 64, "others", pooling), None, guide)

    def head(self, detector: str, images: int = 0, seed: int = 0) -> LookHead:
        """The head of the train images, or of some."""
        store, train = self.stores[detector], self.train
        if images:
            train = np.sort(np.random.default_rng(seed).choice(train, images, replace=False))
        return self.features("head", Guide(maps=store)).fit_head(None, train)


def cells_of(args: argparse.Namespace, source: Source) -> np.ndarray:
    """The feature maps of a run, or of a file of weights: (n, h, w, channels), float16."""
    mesh = make_mesh()
    network = frozen.load(args.run, mesh)
    evaluator = Evaluator(network.model, mesh, source, EvalSpec(args.size, args.size, 64, "others"))
    how = {"size": args.size, "resize": 0, "batch_size": 64}
    batches = encoded_batches(
        lambda images: evaluator.encode_cells(network.network, images), mesh, source, np.arange(len(source)), **how
    )
    return np.concatenate([part.astype(np.float16) for _, part in batches])


def tokens(args: argparse.Namespace, source: Source) -> np.ndarray:
    """The patch tokens of an ONNX model: (n, h, w, channels), float16. The class token before them is left out."""
    file, _, tensor = args.run.rpartition(":")
    model = onnx.load(file)
    model.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    mean, std = (np.array(IMAGENET[key], np.float32) for key in ("mean", "std"))
    found = []
    for image in (squeezed(reading.load_image(source, i), args.size) for i in range(len(source))):
        normalised = ((image / np.float32(255) - mean) / std).transpose(2, 0, 1)[None]
        each = session.run([tensor], {session.get_inputs()[0].name: normalised.astype(np.float32)})[0][0]
        side = math.isqrt(len(each))
        found.append(each[-side * side :].reshape(side, side, -1).astype(np.float16))
    return np.stack(found)


class Row(NamedTuple):
    """One reading of a set: its pooling, and what weights the cells."""

    key: str
    pooling: str
    guide: Callable[[], Guide]


def taught(one: Prepared, detector: str, images: int = 0, seed: int = 0) -> Callable[[], Guide]:
    """Fits a head when it is asked for."""
    return lambda: Guide(head=one.head(detector, images, seed))


def rows_of(one: Prepared, others: dict[str, Prepared], args: argparse.Namespace) -> Iterator[Row]:
    """The rows of a set."""
    name = one.name
    yield Row(f"{name}/average", "average", Guide)
    yield Row(f"{name}/maximum", "maximum", Guide)
    yield Row(f"{name}/component", "attention", Guide)
    for detector, store in one.stores.items():
        yield Row(f"{name}/maps/{detector}", "saliency", functools.partial(Guide, maps=store))
        yield Row(f"{name}/head/{detector}", "head", taught(one, detector))
        for other, it in others.items():
            if detector in it.stores:
                yield Row(f"{name}/head/{detector}/of {other}", "head", taught(it, detector))
        for images in map(int, args.images.split(",") if args.images else ()):
            for seed in map(int, args.seeds.split(",")):
                if images < len(one.train):
                    key = f"{name}/head/{detector}/{images}/{seed}"
                    yield Row(key, "head", taught(one, detector, images, seed))


def ridge(features: ExternalFeatures, one: Prepared) -> float:
    """Top-1 of scikit-learn's ridge classifier, its penalty chosen by leave-one-out on the train images: a linear
    probe that does not overfit a small set."""
    key = features.key(None, one.train)
    train, test = (features.features(images, key) for images in (one.train, one.test))
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    labels = one.source.labels
    fitted = RidgeClassifierCV(alphas=np.logspace(0, 6, 13)).fit((train - mean) / deviation, labels[one.train])
    return float(fitted.score((test - mean) / deviation, labels[one.test]))


def measure(one: Prepared, row: Row) -> dict[str, float]:
    """Figures of a row, in %."""
    config = common.linear()
    guide = row.guide()
    features = one.features(row.pooling, guide)
    how = {"knn": settings.knn(config.eval), "probe": settings.probe(config)}
    found = features.recognition(None, one.train, one.test, **how).figures
    figures = {name: found[name] for name in KEPT} | {"ridge_top1": ridge(features, one)}
    if guide.head is not None and (one.source.mask is not None or one.source.box is not None):
        key = guide.head.vector
        maps = features.maps(None, one.test, key)["look"]
        masks = None if one.source.mask is None else features.masks(one.test)
        figures |= {f"look_{name}": value for name, value in features.localization(maps, one.test, masks).items()}
    told = {name: round(100 * float(value), 2) for name, value in figures.items()}
    if guide.head is not None:
        told |= {"power": guide.head.power, "explained": round(guide.head.explained, 4)}
    return told


if __name__ == "__main__":
    main()
