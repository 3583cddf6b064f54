"""Classification with a pre-trained backbone: the linear probe."""

from pathlib import Path

from ml_collections import ConfigDict

from cvsa_jax import checkpoint, report, settings
from cvsa_jax.data import pipeline
from cvsa_jax.data.sources import Source
from cvsa_jax.distributed import make_mesh
from cvsa_jax.errors import UserError
from cvsa_jax.evaluation.summary import Evaluator
from cvsa_jax.state import Network, empty_network


def linear_probe(config: ConfigDict, workdir: Path) -> dict[str, float]:
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
    evaluator, network = load_run(config.init_from, source, config.eval)
    figures = evaluator.recognition(network, train, test, knn=config.eval.knn, probe=probe_arguments(config))
    report.write_json(workdir / "report" / "results.json", figures)
    print(
        f"{source.name}, {len(train)} train and {len(test)} test images: linear top-1 "
        f"{report.percent(figures['linear_top1'])} %, top-5 {report.percent(figures['linear_top5'])} %, mean per class "
        f"{report.percent(figures['linear_mean_class'])} % (learning rate {figures['learning_rate']:g}, chosen on a "
        f"part of the train split), kNN top-1 {report.percent(figures['knn_top1'])} %, recall@1 "
        f"{report.percent(figures.get('recall_at_1'))} %\nresults: {workdir / 'report' / 'results.json'}"
    )
    return figures


def load_run(workdir: str, source: Source, evaluation: ConfigDict) -> tuple[Evaluator, Network]:
    """The online network of a pre-training run, and what evaluates it on a source, at the sizes of `config.eval` or
    else the run's own. Prints how many of the backbone's tensors were loaded.

    Raises:
        UserError: there is no such run, or it does not hold the whole backbone.
    """
    run = settings.read_config(workdir)
    if run.mode != "pretrain":
        raise UserError(f"{workdir} is a run of mode {run.mode!r}: the evaluation needs a pre-training run")
    mesh, model = make_mesh(), settings.model(run.model)
    network, step = checkpoint.restore_online(Path(workdir), empty_network(model), mesh)
    wanted, loaded = (checkpoint.backbone_tensors(n) for n in (empty_network(model), network))
    matching = sum(loaded.get(path) == shape for path, shape in wanted.items())
    print(f"loaded {matching}/{len(wanted)} backbone tensors of {workdir}, step {step}", flush=True)
    if matching != len(wanted):
        raise UserError(f"{workdir} does not hold the whole backbone: its figures would be of other weights")
    size, resize = settings.eval_sizes(evaluation, run)
    evaluator = Evaluator(model, mesh, source, size=size, resize=resize, batch_size=evaluation.batch_size)
    return evaluator, network


def probe_arguments(config: ConfigDict) -> dict:
    """The keywords of `evaluation.linear.linear_probe` from `config.probe`."""
    return {
        "learning_rates": tuple(config.probe.learning_rates),
        "epochs": config.probe.total_epochs,
        "batch_size": config.probe.batch_size,
        "validation_share": config.probe.validation_share,
        "seed": config.seed,
    }
