"""Networks side by side on one data set, in one page: runs, weights of others, and features of any model."""

import numpy as np
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import inspect, reading
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.comparison import compare
from cvsa_jax.evaluation.protocol import POOLINGS, Probe
from cvsa_jax.report import html, pictures
from cvsa_jax.report.columns import GUESSES, PANELS
from cvsa_jax.report.comparison import findings, looks, sections, tables
from cvsa_jax.runs.look import check_crops, check_used, pooling_maps
from cvsa_jax.runtime.distributed import first_alone, is_first, make_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath, as_path, report_folder, write_json_atomically
from cvsa_jax.training.log import read_metrics
from cvsa_jax.weights import frozen


def compare_runs(config: ConfigDict, entries: list[str], out: AnyPath) -> dict[str, dict[str, float]]:
    """Evaluates networks and writes `out/report/`; returns the figures of its `results.json`.

    Args:
        config: of mode `linear`.
        entries: workdirs of pre-training or fine-tuned runs, files of weights, or files of features
            (`external_features`), each with `name=` before it or called by its file's name; with `@` and one of
            POOLINGS, or the file of a look head, behind it where its cells are pooled otherwise than
            `config.eval.pooling` says.

    Raises:
        UserError: one is none of these, two have the same name, or the data set has no test split.
    """
    if config.mode != "linear":
        raise UserError(f"--config is one of mode {config.mode!r}: give that of a linear probe, e.g. *_linear.py")
    named = {}
    for entry in entries:
        name, equals, origin = entry.partition("=")
        name, origin = (name, origin) if equals and "/" not in name else ("", entry)
        origin, pooling = _pooled(origin, config.eval)
        name = name or as_path(origin).name
        if not origin:
            raise UserError(f"--runs={','.join(entries)}: an entry is empty; each is a path, or name=path")
        if name in {*named, *GUESSES, "perf"}:
            raise UserError(
                f"--runs={','.join(entries)}: two are called {name!r}, and names tell the rows apart, also from "
                f"{', '.join(GUESSES)} and perf: write name=path"
            )
        named[name] = origin, pooling
    first_alone(lambda: report_folder("--out", out))
    knn, probe, embedding = settings.knn(config.eval), settings.probe(config), settings.embedding(config.eval)
    poolings = {name: evaluation.pooling for name, (_, evaluation) in named.items()}
    check_used(config.eval, poolings.values())
    check_crops(poolings, probe)
    source = settings.load_source(config.data)
    stores = {name: pooling_maps(evaluation, source) for name, (_, evaluation) in named.items()}
    train, test = reading.readable_splits(source, config.data)
    inspect.check_annotations(source, test)
    mesh, used = make_mesh(), np.union1d(train, test)
    candidates = {
        name: frozen.candidate(name, origin, source, evaluation, mesh, used, stores[name])
        for name, (origin, evaluation) in named.items()
    }
    bare = [name for name, one in candidates.items() if one.network is None]
    if bare and probe.crop_area is not None:
        raise UserError(f"{', '.join(bare)}: features of whole images; config.probe.augmented needs networks")
    folder = out / "report"

    def keep(figures: dict) -> None:  # of each as soon as it is measured
        if is_first():
            write_json_atomically(folder / "results.json", figures)

    comparison = compare(candidates, train, test, knn=knn, probe=probe, keep=keep)
    if not is_first():
        return comparison.figures
    write_json_atomically(folder / "results.json", comparison.figures | {"perf": comparison.perf})
    curves = [
        pictures.curves_picture(folder / f"curves_{name}.png", rows, PANELS, f"Curves of {name}.")
        for name, (origin, _) in named.items()
        if (rows := read_metrics(as_path(origin)))
    ]
    sentences, measured = findings(comparison), tables(comparison, probe.amounts)
    notes = ["There are no labels, and so no kNN, no retrieval and no probe."]
    if source.labels is not None:
        ways: dict[str, list[str]] = {}
        for name, one in candidates.items():
            ways.setdefault(one.pooled, []).append(name)
        each = [f"of {', '.join(titles)} are {way}" for way, titles in ways.items()]
        notes = [f"Features {'; '.join(each) if len(ways) > 1 else f'are {next(iter(ways))}'}."]
        notes += _protocol(source, train, test, probe)
    looked = ["# Where each network looks", looks(comparison, folder / "attention.png")]
    blocks = [*sentences[:1], *looked, *sentences[1:], *measured, *notes]
    blocks += sections(comparison, folder, embedding, probe.list_seed) + (["# Curves", *curves] if curves else [])
    page = html.write_page(folder / "index.html", f"Runs on {source.name}", blocks)
    lines = [*sentences, "", *(f"{table.as_text()}\n" for table in measured), *notes, f"report: {page}"]
    print("\n" + "\n".join(lines))
    return comparison.figures


def _pooled(origin: str, evaluation: ConfigDict) -> tuple[str, ConfigDict]:
    """An entry without what stands behind its last `@`, and `config.eval` with that."""
    path, at, pooling = origin.rpartition("@")
    changes = {"pooling": pooling} if pooling in POOLINGS else {}
    if pooling.endswith(".safetensors") and not as_path(origin).exists():
        changes = {"pooling": "head", "look": pooling, "maps": ""}
    if at and not changes and as_path(path).exists() and not as_path(origin).exists():
        raise UserError(
            f"--runs: {origin}: behind @ stands how the cells are pooled, {', '.join(POOLINGS)}, or the .safetensors "
            "file of a look head"
        )
    if not (at and changes):
        return origin, evaluation
    return path, ConfigDict(evaluation.to_dict() | changes)


def _protocol(source: Source, train: np.ndarray, test: np.ndarray, probe: Probe) -> list[str]:
    error = 100 * (0.25 / len(test)) ** 0.5
    crops = "cached features of centre crops" if probe.crop_area is None else "augmented crops"
    seeds = f", mean of {len(probe.seeds)} seeds" if len(probe.seeds) > 1 else ""
    return [
        f"{source.name}: {len(train)} train and {len(test)} test images. A share near 50 % has a standard error of "
        f"{error:.1f} points from the choice of test images alone; other seeds of training vary too. Linear probe: "
        f"{probe.epochs} epochs on {crops}{seeds}; its learning rate and the k of kNN are chosen on train images.",
        "CAM and Grad-CAM are those of the probe's predicted class, so they know the labels of the train images; the "
        "other maps of our networks know none. The attention of a run without the alignment loss, or of the mask_head "
        "control, is read from heads that nothing trained for it; files of weights and fine-tuned runs have none, and "
        "that of a file of features is what the file calls its maps.",
    ]
