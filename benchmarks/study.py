"""The study: what each part of the method brings, on several sets and over seeds, with the recipe that each row names.

    python -m benchmarks.study --sets=procedural,butterflies=data/butterflies --out=runs/study
    python -m benchmarks.study --suite=ablation --sets=butterflies=data/butterflies --out=runs/study
    python -m benchmarks.study --tables --out=runs/study            # Markdown, from the lines that are there

A set is `procedural`, or a name and a folder as configs/folder.py takes it, with classes and splits. Its maps come from
`--detector`. Of each set and seed there is one stage 1 (BYOL), from which every row goes on for equally many steps.
A row is measured with features averaged over the cells, and pooled by where the network itself looks; with
`--on=validation` on a fifth of the train images, by class, whose labels no row has seen: choices are made there, and
the test split is read once.

One run is one line of `<out>/study.jsonl`. The same command goes on where it was killed. Several processes share the
work by `--shard=0/4`, `--shard=1/4`, … .
"""

import argparse
import hashlib
import json
import statistics
import time
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks.common import commit
from configs import common, recipes
from cvsa_jax import settings
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.labelled import validation_rows
from cvsa_jax.runs import pretrain
from cvsa_jax.runs.linear import load_run
from cvsa_jax.runtime import interruption
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.registry import Options, build
from cvsa_jax.saliency.store import MANIFEST

LINES = "study.jsonl"
POOLINGS = ("average", "attention")

CVSA: dict = {}
CROPS = {"views.kind": "random_resized_crop"}
PLAIN = {"align.weight": 0.0}
SUITES = {
    "core": {
        "random": None,
        "byol": CROPS | PLAIN,
        "swap": PLAIN,
        "align": CROPS,
        "cvsa": CVSA,
        "mask_head": {"align.form": "mask_head"},
    },
    "ablation": {
        "cvsa": CVSA,
        "hole_size": {"views.hole": "size"},
        "stretch": {"views.paste": "stretch"},
        "hole_size_stretch": {"views.hole": "size", "views.paste": "stretch"},
        "keep_aspect": {"views.paste": "keep_aspect"},
        "common_background": {"views.background": "common"},
        "one_view": {"views.swapped_views": 1},
        "swap_prob_half": {"views.swap_prob": 0.5},
        "weight_0.3": {"align.weight": 0.3},
        "weight_3": {"align.weight": 3.0},
        **{form: {"align.form": form} for form in ("contrast_bce", "propagate", "cosine", "minmax", "pairwise")},
    },
    # Forms at equal pull: at a constant that gives each the gradient of `kl` at weight 1 and random weights, on the
    # demo's network (docs/training.md), and held at a ratio.
    "balance": {
        "cvsa": CVSA,
        "kl_held": {"align.balance": "gradient"},
        "cosine": {"align.form": "cosine"},
        "cosine_constant": {"align.form": "cosine", "align.weight": 0.57},
        "cosine_held": {"align.form": "cosine", "align.balance": "gradient"},
        "pairwise": {"align.form": "pairwise"},
        "pairwise_constant": {"align.form": "pairwise", "align.weight": 16.0},
        "pairwise_held": {"align.form": "pairwise", "align.balance": "gradient"},
    },
}


def main() -> None:
    args = parser().parse_args()
    if args.tables:
        print(tables(lines(args.out)))
        return
    interruption.listen()
    index, count = map(int, args.shard.split("/"))
    pairs = [
        (*entry.partition("=")[::2], int(seed)) for entry in args.sets.split(",") for seed in args.seeds.split(",")
    ]
    for name, root, seed in pairs[index::count]:
        run_pair(args, name, root, seed)


def parser() -> argparse.ArgumentParser:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--sets", default="procedural", help="of name or name=folder, with commas")
    given.add_argument("--suite", default="core", choices=SUITES)
    given.add_argument("--rows", default="", help="of the suite only these, with commas")
    given.add_argument("--seeds", default="0,1,2", help="of weights, order, views and, where they are drawn, images")
    given.add_argument("--detector", default="rbd", choices=("rbd", "masks", "center"), help="of the maps")
    given.add_argument("--on", default="validation", choices=("validation", "test"), help="what is measured on")
    given.add_argument("--scale", default="depth=8,width=32,size=48,batch=32,steps=800", help="of all runs")
    given.add_argument("--where", default="host", choices=("host", "device"), help="makes the views")
    given.add_argument("--out", default=Path("runs/study"), type=Path, help="folder of the runs and of study.jsonl")
    given.add_argument("--shard", default="0/1", help="i/n: every n-th pair of a set and a seed from the i-th on")
    given.add_argument("--tables", action="store_true", help="write the tables of the lines that are there, no more")
    return given


def key_of(args: argparse.Namespace, name: str, row: str, seed: int, config: ConfigDict | None) -> str:
    """Tells a run from all others, whatever the code's commit."""
    told = {"cell": (name, row, seed), "config": config and config.to_dict(), "on": args.on}
    told |= {"detector": args.detector, "scale": args.scale}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def run_pair(args: argparse.Namespace, name: str, root: str, seed: int) -> None:
    """Every row of the suite on a set with a seed; those whose lines are there are done."""
    out, folder = args.out, args.out / name / f"{args.detector}-{seed}"
    begin = config_of(args, name, root, seed, CROPS | PLAIN)
    source = settings.load_source(begin.data)
    store = folder / "saliency" if name == "procedural" else out / name / args.detector
    if not (store / MANIFEST).is_file():
        compute(source, build(args.detector, source, Options()), store, threshold=0.5, on_bad_image="stop")
    stage1 = folder / "stage1"
    pretrain.train(begin, stage1)
    for row, changes in SUITES[args.suite].items():
        if args.rows and row not in args.rows.split(","):
            continue
        config = None if changes is None else config_of(args, name, root, seed, changes)
        key = key_of(args, name, row, seed, config)
        if any(line["key"] == key for line in lines(out)):
            continue
        began, workdir = time.monotonic(), folder / f"{row}-{key}"
        if config is None:
            config = begin.copy_and_resolve_references()
            config.total_steps, config.optim.warmup_steps = 1, 0
            config.optim.lr = 0.0
        else:
            config.init_from, config.saliency.store = str(stage1), str(store)
        pretrain.train(config, workdir)
        figures = measure(source, str(workdir), seed, args.on)
        line = {"key": key, "suite": args.suite, "set": name, "row": row, "seed": seed}
        line |= {"on": args.on, "detector": args.detector, "scale": args.scale, "commit": commit()}
        with (out / LINES).open("a") as file:  # one write, so that lines of several processes do not mix
            file.write(json.dumps(line | {"seconds": time.monotonic() - began} | figures) + "\n")
        print(json.dumps(line | figures), flush=True)


def config_of(args: argparse.Namespace, name: str, root: str, seed: int, changes: dict) -> ConfigDict:
    """The recipe of configs/folder.py:small at this scale, with what a row changes."""
    scale = {key: int(value) for key, value in (part.split("=") for part in args.scale.split(","))}
    config = common.pretrain()
    recipes.objective(config, set())
    common.small(config)
    config.seed, config.batch_size, config.total_steps = seed, scale["batch"], scale["steps"]
    config.optim.lr = 8e-3 * 32 / config.batch_size  # 1e-3 at any batch size
    config.model.depth, config.model.width = scale["depth"], scale["width"]
    config.views.size = scale["size"]
    config.eval.size = config.eval.resize = scale["size"] * 4 // 3
    config.views.where = args.where
    config.watch.knn_steps, config.checkpoint_steps, config.log_steps = 0, scale["steps"], 50
    config.data.kind, config.data.root = ("procedural", "") if name == "procedural" else ("folder", root)
    config.data.procedural.seed = seed
    config.update_from_flattened_dict(changes)
    return config


def measure(source: Source, workdir: str, seed: int, on: str) -> dict[str, float]:
    """Recognition by each pooling, and how well the attention fits masks where there are any."""
    train, test = source.split("train"), source.split("test")
    if on == "validation":
        held = validation_rows(source.labels[train], 0.2, seed)
        train, test = train[~held], train[held]
    config, figures = common.linear(), {}
    config.seed = seed
    for pooling in POOLINGS:
        config.eval.pooling = pooling
        evaluator, network = load_run(workdir, source, config.eval)
        knn, probe = settings.knn(config.eval), settings.probe(config)
        found = evaluator.recognition(network, train, test, knn=knn, probe=probe).figures
        figures |= {f"{pooling}_{key}": found[key] for key in ("linear_top1", "knn_top1", "map_at_r")}
    if source.mask is not None:
        maps, masks = evaluator.maps(network, test)["attention"], evaluator.masks(test)
        scores = evaluator.localization(maps, test, masks)
        figures |= {key: scores[key] for key in ("pointing_game", "mask_iou")}
    return figures


def lines(out: Path) -> list[dict]:
    """The runs that are done."""
    path = out / LINES
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def tables(done: list[dict]) -> str:
    """One table for each set, suite, detector, scale and split: means with 95 % intervals over the seeds, and the gain
    over `byol`, or in the ablation over `cvsa`, paired by seed."""
    groups: dict[tuple, list[dict]] = {}
    for line in done:
        groups.setdefault(tuple(line[key] for key in ("set", "suite", "detector", "on", "scale")), []).append(line)
    columns = [f"{pooling}_{kind}" for pooling in POOLINGS for kind in ("linear_top1", "knn_top1")]
    text = []
    for group, runs in sorted(groups.items()):
        base = "byol" if group[1] == "core" else "cvsa"
        by_row = {row: {run["seed"]: run for run in runs if run["row"] == row} for row in SUITES[group[1]]}
        measured = [*columns, *(key for key in ("pointing_game", "mask_iou") if any(key in run for run in runs))]
        text += [f"**{group[0]}**, maps by {group[2]}, on {group[3]}; {group[4]}", ""]
        text += ["| row | seeds | " + " | ".join(key.replace("_top1", "").replace("_", " ") for key in measured) + " |"]
        text += ["|" + "---|" * (len(measured) + 2)]
        for row, seeds in by_row.items():
            if seeds:
                cells = [_cell([run[key] for run in seeds.values() if key in run]) for key in measured]
                text.append(f"| {row} | {len(seeds)} | " + " | ".join(cells) + " |")
                shared = sorted(seeds.keys() & by_row[base].keys())
                if row not in (base, "random") and shared:
                    gains = [
                        _cell([seeds[s][key] - by_row[base][s][key] for s in shared], sign=True) for key in columns
                    ]
                    text.append(f"| − {base} | {len(shared)} | " + " | ".join(gains) + " |" * (len(measured) - 3))
        text.append("")
    return "\n".join(text)


# Student's t, two-sided 95 %, by degrees of freedom.
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def _cell(values: list[float], sign: bool = False) -> str:
    """Mean ± half of the 95 % interval, in %."""
    if not values:
        return "–"
    mean = f"{100 * statistics.mean(values):{'+' if sign else ''}.1f}"
    if len(values) == 1:
        return mean
    half = _T.get(len(values) - 1, 1.96) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {100 * half:.1f}"


if __name__ == "__main__":
    main()
