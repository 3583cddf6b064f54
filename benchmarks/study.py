"""The study: what each part of the method brings, on several sets and over seeds, with the recipe that each row names.

    python -m benchmarks.study --sets=procedural,butterflies=data/butterflies --out=runs/study
    python -m benchmarks.study --suite=ablation --sets=butterflies=data/butterflies --out=runs/study
    python -m benchmarks.study --tables --out=runs/study --docs=docs/study     # from the lines that are there

A set is one that is drawn (`study_rows.DRAWN`), or a name and a folder as configs/folder.py takes it, with classes
and splits. Its maps come from `--detector`. Of each set and seed there is one stage 1, BYOL on the set itself or the
weights in the file `--init`, from which every row goes on for equally many steps; `study_rows.SUITES` says what the
rows are. A row is measured with features averaged over the cells, pooled by where the network itself looks, and, with
`--head`, pooled by a look head taught by the row's maps, or by `--detector`'s where a row has none; with
`--on=validation` on a fifth of the train images, by class, whose labels no row has seen: choices are made there, and
the test split is read once, by `--on=test`, which measures the networks that are there and trains only what is not.

One run is one line of `<out>/study.jsonl`. The same command goes on where it was killed. Several processes share the
work by `--shard=0/4`, `--shard=1/4`, … . `--again=<key>` does the run of a line anew, from its stage 1 on, and says
which figures are others; on the same machine none is.
"""

import argparse
import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from benchmarks import study_tables
from benchmarks.common import commit
from benchmarks.detectors import named_detector
from benchmarks.study_rows import BYOL, DRAWN, SUITES, Row, config_of
from configs import common
from cvsa_jax import settings
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.labelled import validation_rows
from cvsa_jax.runs import finetune, pretrain
from cvsa_jax.runtime import interruption
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detector import Detection, Detector, scaled
from cvsa_jax.saliency.registry import Options, build
from cvsa_jax.saliency.store import MANIFEST, SaliencyStore
from cvsa_jax.weights import frozen

LINES = "study.jsonl"
SHARED = ("rbd", "focus", "isnet", "masks", "center")  # detectors that know of no seed


def main() -> None:
    args = parser().parse_args()
    if args.tables:
        study_tables.write(lines(args.out), args.docs)
        return
    interruption.listen()
    if args.again:
        again(args)
        return
    index, count = map(int, args.shard.split("/"))
    pairs = [
        (*entry.partition("=")[::2], int(seed)) for entry in args.sets.split(",") for seed in args.seeds.split(",")
    ]
    for name, root, seed in pairs[index::count]:
        Pair(args, name, root, seed).run()


def parser() -> argparse.ArgumentParser:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--sets", default="procedural", help="of name or name=folder, with commas")
    given.add_argument("--suite", default="core", choices=SUITES)
    given.add_argument("--rows", default="", help="of the suite only these, with commas")
    given.add_argument("--seeds", default="0,1,2", help="of weights, order, views and, where they are drawn, images")
    given.add_argument("--detector", default="rbd", choices=("rbd", "focus", "masks", "center"), help="of the maps")
    given.add_argument("--isnet", default="", help="ONNX file of IS-Net, of which the rows `isnet` have their maps")
    given.add_argument("--head", action="store_true", help="measure each row by a look head too")
    given.add_argument("--on", default="validation", choices=("validation", "test"), help="what is measured on")
    given.add_argument("--scale", default="depth=8,width=32,size=48,batch=32,steps=800", help="of all runs")
    given.add_argument(
        "--init", default="", help="file of weights that is stage 1, with a scale of its depth, width and stem"
    )
    given.add_argument("--where", default="host", choices=("host", "device"), help="makes the views")
    given.add_argument("--out", default=Path("runs/study"), type=Path, help="folder of the runs and of study.jsonl")
    given.add_argument("--shard", default="0/1", help="i/n: every n-th pair of a set and a seed from the i-th on")
    given.add_argument(
        "--again", default="", help="key of a line; with --sets where its images are, --where, --init, --isnet"
    )
    given.add_argument("--tables", action="store_true", help="write the tables of the lines that are there, no more")
    given.add_argument("--docs", default=Path("docs/study"), type=Path, help="where they are written")
    return given


def again(args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Figure -> (in the line of `args.again`, repeated), of those that differ."""
    line = next((line for line in lines(args.out) if line["key"] == args.again), None)
    roots = dict(entry.partition("=")[::2] for entry in args.sets.split(","))
    if line is None or line["set"] not in roots:
        raise SystemExit(f"--again={args.again}: no such line in {args.out / LINES}, or --sets lacks its set")
    told = {key: line[key] for key in ("suite", "on", "detector")}
    told |= {"rows": ",".join(needed(line["suite"], line["row"])), "scale": line["scale"].partition(", from ")[0]}
    told["head"] = "head_linear_top1" in line
    args = argparse.Namespace(**(vars(args) | told | {"out": args.out / f"again-{args.again}"}))
    shutil.rmtree(args.out, ignore_errors=True)  # of an earlier time
    Pair(args, line["set"], roots[line["set"]], line["seed"]).run()
    repeated = lines(args.out)[-1]
    compared = (line.keys() | repeated.keys()) - {"seconds", "commit"}
    figures = {key: (line.get(key), repeated.get(key)) for key in sorted(compared)}
    different = {key: values for key, values in figures.items() if values[0] != values[1]}
    print(f"{len(figures) - len(different)} of {len(figures)} entries are the same; different: {different or 'none'}")
    return different


def needed(suite: str, row: str) -> list[str]:
    """The rows of whose networks its maps come, and it itself."""
    other = (SUITES[suite][row].maps or "").partition(" of ")[2]
    return [*needed(suite, other), row] if other else [row]


class Pair:
    """All rows of a suite on one set with one seed."""

    def __init__(self, args: argparse.Namespace, name: str, root: str, seed: int):
        self.args, self.name, self.root, self.seed = args, name, root, seed
        self.folder = args.out / name / str(seed)
        self.init = _hash(Path(args.init)) if args.init else ""
        self.stage1 = Path(args.init) if args.init else self.folder / f"stage1-{self.key(BYOL, 'any')}"
        self.rows = SUITES[args.suite]
        self.source = settings.load_source(self.config(BYOL).data)

    def config(self, row: Row) -> ConfigDict:
        """The row's config, without its start and its maps."""
        return config_of(row, self.name, self.root, self.seed, self.args.scale, self.args.where)

    def maps_of(self, row: Row) -> str:
        return row.maps or self.args.detector

    def key(self, row: Row, maps: str) -> str:
        """Tells a network from all others, whatever the code's commit."""
        config = self.config(row).copy_and_resolve_references()
        del config.data.root, config.data.cache  # where the images are and how they are read is no part of it
        told = {"start": row.start, "maps": maps, "config": config.to_dict()}
        told |= {"init": self.init} if self.args.init else {}
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def workdir(self, name: str) -> Path:
        row = self.rows[name]
        return self.folder / f"{name}-{self.key(row, self.maps_of(row))}"

    def run(self) -> None:
        """Trains and measures the rows whose lines are not there."""
        chosen = self.chosen()
        if not self.args.init and any(self.needs_stage1(self.rows[name]) for name in chosen):
            pretrain.train(self.config(BYOL), self.stage1)
        for name in chosen:
            began, row = time.monotonic(), self.rows[name]
            workdir = self.stage1 if row.start == "as_it_is" else self.workdir(name)
            told = {"key": self.key(row, self.maps_of(row)), "suite": self.args.suite, "set": self.name, "row": name}
            told |= {"seed": self.seed, "on": self.args.on}
            needed_figures = {"head_linear_top1"} if self.args.head else set()
            if any(told.items() <= line.items() and needed_figures <= line.keys() for line in lines(self.args.out)):
                continue
            figures = {} if row.start == "as_it_is" else self.train(row, workdir)
            taught = str(self.store(self.maps_of(row))) if self.args.head else ""
            size = self.config(BYOL).eval.size
            figures |= measure(self.source, str(workdir), self.seed, self.args.on, size, taught)
            start = f", from {Path(self.args.init).name} ({self.init})" if self.args.init else ""
            told |= {"detector": self.args.detector, "scale": self.args.scale + start, "commit": commit()}
            line = json.dumps(told | {"seconds": time.monotonic() - began} | figures)
            with (self.args.out / LINES).open("a") as file:  # one write, so that lines of several processes do not mix
                file.write(line + "\n")
            print(line, flush=True)

    def needs_stage1(self, row: Row) -> bool:
        return row.start in ("stage1", "as_it_is") or self.maps_of(row) == "encoder"

    def chosen(self) -> list[str]:
        """The rows that are asked for, without those that would mean nothing, which is said."""
        asked = self.args.rows.split(",") if self.args.rows else list(self.rows)
        if unknown := set(asked) - set(self.rows):
            raise SystemExit(f"--rows={','.join(unknown)}: suite {self.args.suite} has {', '.join(self.rows)}")
        if any(self.maps_of(self.rows[row]) == "isnet" for row in asked) and not Path(self.args.isnet).is_file():
            raise SystemExit(f"--isnet={self.args.isnet}: row isnet needs the ONNX file, or leave it out with --rows")
        kept = []
        for name in (row for row in self.rows if row in asked):
            start = self.rows[name].start
            if self.args.on == "validation" and start == "supervised":
                print(f"{name}: left out on validation, whose labels it would see")
            elif self.args.init and start not in ("stage1", "as_it_is"):
                print(f"{name}: left out with --init, of which it is not")
            else:
                kept.append(name)
        return kept

    def train(self, row: Row, workdir: Path) -> dict[str, float]:
        """The row's network, and how strongly the alignment pulled at the end; of a supervised one, how often its own
        classifier is right."""
        config = self.config(row)
        if row.start == "supervised":
            return {"supervised_top1": finetune.finetune(config, workdir)["finetune_top1"]}
        if row.start == "stage1":
            config.init_from = str(self.stage1)
        if row.start != "random" and (config.align.weight > 0 or config.views.kind == "saliency_swap"):
            config.saliency.store = str(self.store(self.maps_of(row)))
        pretrain.train(config, workdir)
        logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return {key: value for key, value in logged[-1].items() if key == "health/align_gradient_share"}

    def store(self, maps: str) -> Path:
        """The store of these maps of the set, made where it is not there."""
        shared = self.name not in DRAWN and maps in SHARED
        store = self.args.out / self.name / maps if shared else self.folder / "maps" / self.told(maps)
        if not (store / MANIFEST).is_file():
            compute(self.source, self.detector(maps), store, threshold=0.5, on_bad_image="stop")
        return store

    def told(self, maps: str) -> str:
        """Name of a folder of maps that depend on the seed's images or networks."""
        source, _, row = maps.partition(" of ")
        return f"{source}-{self.workdir(row).name if row else self.stage1.name}"

    def detector(self, maps: str) -> Detector:
        if maps.startswith("attention of "):
            return attention(self.source, self.workdir(maps.partition(" of ")[2]))
        if maps == "encoder":
            return build(maps, self.source, Options(run=str(self.stage1)))
        return named_detector(f"isnet={self.args.isnet}" if maps == "isnet" else maps, self.source)


def attention(source: Source, workdir: Path) -> Detector:
    """The cross-view attention of a trained network as a detector of this source's images."""
    of = frozen.candidate("", str(workdir), source, common.linear().eval, make_mesh())
    maps = of.evaluator.maps(of.network, np.arange(len(source)))["attention"]

    def detect(rows: list[np.ndarray]) -> list[Detection]:
        return [Detection(scaled(maps[int(row)]), 1.0) for row in rows]

    return Detector("attention", "unsupervised", {"run": workdir.name}, lambda i, image: np.array(i), detect)


def measure(source: Source, origin: str, seed: int, on: str, size: int, taught: str = "") -> dict[str, float]:
    """Recognition by each pooling, and how well the attention fits masks where there are any, of a run or a file, at
    `size` px. `taught`: the store of maps of a look head; "": none is fitted."""
    train, test = source.split("train"), source.split("test")
    if on == "validation":
        held = validation_rows(source.labels[train], 0.2, seed)
        train, test = train[~held], train[held]
    config, figures = common.linear(), {}
    config.seed, config.eval.size, config.eval.resize = seed, size, size
    heads = SaliencyStore(Path(taught), source) if taught else None
    for pooling in study_tables.POOLINGS if taught else study_tables.POOLINGS[:-1]:
        config.eval.pooling = pooling
        maps = heads if pooling == "head" else None
        of = frozen.candidate("", origin, source, config.eval, make_mesh(), maps=maps)
        evaluator, network = of.evaluator, of.network
        knn, probe = settings.knn(config.eval), settings.probe(config)
        found = evaluator.recognition(network, train, test, knn=knn, probe=probe).figures
        figures |= {f"{pooling}_{key}": found[key] for key in ("linear_top1", "knn_top1", "map_at_r")}
    attention = {} if source.mask is None else evaluator.maps(network, test)
    if "attention" in attention:  # which a supervised network has not
        scores = evaluator.localization(attention["attention"], test, evaluator.masks(test))
        figures |= {key: scores[key] for key in ("pointing_game", "mask_iou", "mask_iou_best") if key in scores}
    return figures


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8]


def lines(out: Path) -> list[dict]:
    """The runs that are done."""
    path = out / LINES
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


if __name__ == "__main__":
    main()
