"""The demo: the whole method on a procedural fine-grained set, from maps to a page of pictures, without downloads.

BYOL and CVSA start from the same stage 1 and take the same number of steps more, so the table compares methods and
not lengths of training.
"""

import dataclasses
import functools
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.evaluation.comparison import Candidate, Comparison, compare
from cvsa_jax.evaluation.evaluator import Evaluator
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.report import html, pictures
from cvsa_jax.report.columns import GUESSES, SUMMARY, percent, table
from cvsa_jax.report.comparison import findings, looks, sections, tables
from cvsa_jax.runs import pretrain
from cvsa_jax.runtime.distributed import make_mesh, replicated
from cvsa_jax.runtime.files import write_json_atomically
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors.annotation import masks
from cvsa_jax.training import checkpoint
from cvsa_jax.training.state import Network, empty_network, init_state

_TITLES = {"random": "random weights", "byol": "BYOL", "cvsa": "CVSA"}


def run_demo(out: Path, get_config, probe_config: ConfigDict) -> dict[str, dict[str, float]]:
    """Runs the demo into `out` and returns the figures of `out/report/results.json`.

    Args:
        get_config: argument -> pre-training config; `byol` gives stage 1, the empty string CVSA.
        probe_config: a config of mode `linear`, for its `probe` section.
    """
    began = time.monotonic()
    stage1, stage2 = get_config("byol"), get_config("")
    source, store = settings.load_source(stage2.data), out / "saliency"
    _announce(f"0/4  drawing {len(source)} pictures of {len(source.classes)} kinds of bird")
    for i in range(len(source)):
        source.read(i)
    _announce("1/4  saliency maps, here from the exact masks")
    threshold = stage2.saliency.threshold
    compute(source, masks(source), store, threshold=threshold, on_bad_image=stage2.data.on_bad_image)
    _announce("2/4  stage 1: BYOL")
    pretrain.train(stage1, out / "stage1")
    continued = get_config("byol")
    for config in (continued, stage2):
        config.init_from = str(out / "stage1")
        config.saliency.store = str(store)
    continued.total_steps = stage2.total_steps
    _announce("3/4  stage 2: CVSA, and for comparison BYOL for as many steps more")
    pretrain.train(continued, out / "byol")
    pretrain.train(stage2, out / "cvsa")

    _announce("4/4  linear probe, kNN and localisation on the test images")
    mesh, model = make_mesh(), settings.model(stage2.model)
    networks = {"random": _random_network(stage2, model)}
    networks |= {
        name: checkpoint.restore_online(out / name, empty_network(model), mesh)[0] for name in ("byol", "cvsa")
    }
    evaluators = {
        method: Evaluator(model, mesh, source, settings.evaluation(config.eval, config))
        for method, config in (("byol", continued), ("cvsa", stage2))
    }
    candidates = {
        name: Candidate(_TITLES[name], evaluators["cvsa" if name == "cvsa" else "byol"], network)
        for name, network in networks.items()
    }
    knn, probe = settings.knn(probe_config.eval), settings.probe(probe_config)
    train, test = source.split("train"), source.split("test")
    comparison = compare(candidates, train, test, knn=knn, probe=probe)
    write_json_atomically(out / "report" / "results.json", comparison.figures | {"perf": comparison.perf})
    averaged = dataclasses.replace(settings.evaluation(stage2.eval, stage2), pooling="average")
    plain = Evaluator(model, mesh, source, averaged)
    shares = {
        _TITLES[name]: plain.recognition(network, train, test, knn=knn).figures["knn_top1"]
        for name, network in networks.items()
    }
    notes = [
        "Features are averaged over the cells of the last map, weighted by where the network itself looks: CVSA by its "
        "attention, the others by their first principal component. Averaged over all cells alike, kNN gives "
        + ", ".join(f"{title} {percent(share)} %" for title, share in shares.items())
        + ".",
        *_notes(out, len(test), stage1.total_steps, stage2.total_steps, time.monotonic() - began),
    ]
    _write_page(out, comparison, notes, settings.embedding(probe_config.eval), probe.list_seed)
    return comparison.figures


def _write_page(out: Path, comparison: Comparison, notes: list[str], embedding: str, seed: int) -> None:
    folder = out / "report"
    guesses = [(title, comparison.figures[name]) for name, title in GUESSES.items()]
    summary = table([*comparison.rows, *guesses], SUMMARY)
    caption = "What CVSA trains on: two swapped views of each image."
    views = pictures.Picture(out / "cvsa" / "report" / "views.png", caption)
    curves = [
        pictures.Picture(out / name / "report" / "curves.png", f"Training curves of {title}.")
        for name, title in (("stage1", "stage 1 (BYOL)"), ("byol", "BYOL continued"), ("cvsa", "stage 2 (CVSA)"))
    ]
    blocks = ["# Where each network looks", looks(comparison, folder / "attention.png"), summary]
    blocks += [*findings(comparison), *notes, "# Saliency Swap", views]
    blocks += [*sections(comparison, folder, embedding, seed), "# All figures", *tables(comparison)]
    page = html.write_page(folder / "index.html", "CVSA on procedural birds", [*blocks, "# Curves", *curves])
    print("\n" + summary.as_text() + "\n\n" + "\n".join(notes) + f"\n\nreport: {page}", flush=True)


def _random_network(config: ConfigDict, model: Siamese) -> Network:
    optimizer, _ = settings.optimizer(config, config.batch_size)
    initialize = functools.partial(init_state, model, optimizer, config.views.size)
    return jax.jit(initialize, out_shardings=replicated(make_mesh()))(jax.random.key(config.seed)).online


def _notes(out: Path, tested: int, steps1: int, steps2: int, seconds: float) -> list[str]:
    error = 100 * (0.25 / tested) ** 0.5
    return [
        f"{tested} test images, one seed: a share near 50 % has a standard error of {error:.1f} points. BYOL and CVSA: "
        f"{steps1} steps of stage 1, then {steps2} each. This call took {seconds / 60:.1f} minutes.",
        "BYOL's attention is read from conv heads that its loss does not train.",
        "CVSA saw saliency maps and BYOL did not. The mask_head control shows how much comes from knowing the masks: "
        f"python -m cvsa_jax.main --config=configs/demo.py:mask_head --config.init_from={out}/stage1 "
        f"--config.saliency.store={out}/saliency --workdir={out}/mask_head, then "
        f"python -m cvsa_jax.main --config=configs/demo_linear.py --config.init_from={out}/mask_head",
    ]


def _announce(text: str) -> None:
    print(f"\n{text}", flush=True)
