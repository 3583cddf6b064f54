"""Classification with a pre-trained backbone: the linear probe."""

import re

from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import pipeline
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.evaluator import Evaluator
from cvsa_jax.evaluation.labelled import fraction_suffix
from cvsa_jax.report import html as report
from cvsa_jax.runtime.distributed import is_first, make_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath
from cvsa_jax.training.state import Network
from cvsa_jax.weights import backbones


def linear_probe(config: ConfigDict, workdir: AnyPath) -> dict[str, float]:
    """Linear probe and kNN of the run `config.init_from`; writes `workdir/report/results.json` and returns it.

    Raises:
        UserError: no such pre-training run, or no labels.
    """
    if not config.init_from:
        raise UserError("config.init_from is not set: give the --workdir of a pre-training run")
    source = settings.load_source(config.data)
    train, test = (
        pipeline.readable(source, source.split(name), config.data.on_bad_image)
        for name in (config.data.train_split, config.data.test_split)
    )
    knn, probe = settings.knn(config.eval), settings.probe(config)
    evaluator, network = load_run(config.init_from, source, config.eval)
    figures = evaluator.recognition(network, train, test, knn=knn, probe=probe).figures
    if not is_first():
        return figures
    report.write_json(workdir / "report" / "results.json", figures)
    print(f"{source.name}, {len(train)} train and {len(test)} test images:")
    for fraction in probe.fractions:
        print(_line(figures, fraction_suffix(fraction), f"linear, {100 * fraction:.4g} % of the labels"))
    if knn.ks:
        print(f"kNN: top-1 {report.percent(figures['knn_top1'])} %, k = {figures['knn_k']}")
    print(
        f"retrieval: recall@1 {report.percent(figures.get('recall_at_1'))} %, mAP@R "
        f"{report.percent(figures.get('map_at_r'))} %\nresults: {workdir / 'report' / 'results.json'}"
    )
    return figures


def _line(figures: dict[str, float], suffix: str, title: str) -> str:
    shares = []
    for name, said in (("top1", "top-1"), ("top5", "top-5"), ("mean_class", "mean per class")):
        deviation = figures.get(f"linear_{name}{suffix}_std")
        spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
        shares.append(f"{said} {report.percent(figures[f'linear_{name}{suffix}'])}{spread} %")
    rates = [f"{value:g}" for name, value in figures.items() if re.fullmatch(f"learning_rate{suffix}(_\\d+)?", name)]
    return f"{title}: {', '.join(shares)} (learning rate {', '.join(rates)}, chosen on a part of the train split)"


def load_run(workdir: str, source: Source, evaluation: ConfigDict) -> tuple[Evaluator, Network]:
    """The online network of a pre-training run, and what evaluates it on a source, at the sizes of `config.eval` or
    else the run's own."""
    mesh = make_mesh()
    run, model, network, _ = backbones.load_run(workdir, mesh)
    return settings.evaluator(model, mesh, source, evaluation, run), network
