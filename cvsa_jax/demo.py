"""`make demo`: the whole method on a procedural fine-grained set, from maps to a page of pictures, without downloads.

BYOL and CVSA start from the same stage 1 and take the same number of steps more, so the table compares methods and
not lengths of training.
"""

import functools
import time
from pathlib import Path

import jax
from absl import flags

from cvsa_jax import settings
from cvsa_jax.evaluation import comparison as compare
from cvsa_jax.report import comparison as comparison_page
from cvsa_jax.report import html as report
from cvsa_jax.report import pictures
from cvsa_jax.runs import pretrain
from cvsa_jax.runtime import cli
from cvsa_jax.runtime.distributed import make_mesh, replicated
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors.annotation import masks as mask_detector
from cvsa_jax.training import checkpoint
from cvsa_jax.training.state import Network, empty_network, init_state

_OUT = flags.DEFINE_string("out", "runs/demo", "Folder of the demo's runs and report.")
_ROWS = {"random": "random weights", "byol": "BYOL", "cvsa": "CVSA"}
_COLUMNS = {
    "linear_top1": "linear top-1",
    "knn_top1": "kNN top-1",
    "pointing_game": "pointing game",
    "mask_iou": "mask IoU",
}


def main() -> None:
    from configs import demo  # a package of the working folder, which `cli.run` has put on the path

    run_demo(Path(_OUT.value), demo.get_config, demo.get_probe_config())


def run_demo(out: Path, get_config, probe_config) -> dict[str, dict[str, float]]:
    """Runs the demo into `out` and returns the figures of `out/report/results.json`.

    Args:
        get_config: argument -> pre-training config; `byol` gives stage 1, the empty string CVSA.
        probe_config: a config of mode `linear`, for its `probe` section.
    """
    stage1, stage2 = get_config("byol"), get_config("")
    source = settings.load_source(stage2.data)
    _say(f"0/4  drawing {len(source)} pictures of {len(source.classes)} kinds of bird")
    for i in range(len(source)):
        source.read(i)

    began = time.monotonic()
    _say("1/4  saliency maps, here from the exact masks")
    store = out / "saliency"
    compute(
        source,
        mask_detector(source),
        store,
        threshold=stage2.saliency.threshold,
        on_bad_image=stage2.data.on_bad_image,
    )
    _say("2/4  stage 1: BYOL")
    pretrain.train(stage1, out / "stage1")
    continued = get_config("byol")
    for config in (continued, stage2):
        config.init_from = str(out / "stage1")
        config.saliency.store = str(store)
    continued.total_steps = stage2.total_steps
    _say("3/4  stage 2: CVSA, and for comparison BYOL for as many steps more")
    pretrain.train(continued, out / "byol")
    pretrain.train(stage2, out / "cvsa")

    _say("4/4  linear probe, kNN and localisation on the test images")
    mesh, model = make_mesh(), settings.model(stage2.model)
    networks = {"random": _random_network(stage2, model, mesh)}
    for name in ("byol", "cvsa"):
        networks[name], _ = checkpoint.restore_online(out / name, empty_network(model), mesh)
    evaluator = settings.evaluator(model, mesh, source, stage2.eval, stage2)
    train, test = source.split("train"), source.split("test")
    runs = {name: compare.Run(_ROWS[name], evaluator, network) for name, network in networks.items()}
    knn, probe = settings.knn(probe_config.eval), settings.probe(probe_config)
    comparison = compare.compare(runs, train, test, knn=knn, probe=probe)
    figures = comparison.figures
    report.write_json(out / "report" / "results.json", figures)

    table = _table(figures)
    notes = _notes(out, len(test), stage1.total_steps, stage2.total_steps, time.monotonic() - began)
    embedding = settings.embedding(probe_config.eval)
    sections = comparison_page.sections(comparison, runs, test, out / "report", embedding, probe.list_seed)
    details = comparison_page.tables(comparison, _ROWS)
    said = comparison_page.findings(comparison, runs, source, test)
    views = pictures.Picture(
        out / "cvsa" / "report" / "views.png", "What CVSA trains on: two swapped views of each image."
    )
    curves = [
        pictures.Picture(out / name / "report" / "curves.png", f"Training curves of {title}.")
        for name, title in (("stage1", "stage 1 (BYOL)"), ("byol", "BYOL continued"), ("cvsa", "stage 2 (CVSA)"))
    ]
    blocks = [
        *said,
        table,
        *notes,
        *sections,
        "# All figures",
        *details,
        "# Saliency Swap",
        views,
        "# Curves",
        *curves,
    ]
    page = report.write_page(out / "report" / "index.html", "CVSA on procedural birds", blocks)
    print("\n" + table.as_text() + "\n\n" + "\n".join(notes) + f"\n\nreport: {page}", flush=True)
    return figures


def _random_network(config, model, mesh) -> Network:
    optimizer, _ = settings.optimizer(config, config.batch_size)
    initialize = functools.partial(init_state, model, optimizer, config.views.size)
    return jax.jit(initialize, out_shardings=replicated(mesh))(jax.random.key(config.seed)).online


def _table(figures: dict) -> report.Table:
    titles = _ROWS | {"chance": "chance", "center_prior": "centre prior"}
    rows = [(titles[name], *(report.percent(row.get(key)) for key in _COLUMNS)) for name, row in figures.items()]
    return report.Table(("%", *_COLUMNS.values()), rows)


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


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    cli.run(main)
