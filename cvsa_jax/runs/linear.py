"""The linear probe, kNN and retrieval of one network, or of features."""

import re

import numpy as np
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import reading
from cvsa_jax.report.columns import percent, share
from cvsa_jax.runs.look import check_crops, check_used, pooling_maps
from cvsa_jax.runtime.distributed import first_alone, is_first, make_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath, output_folder, write_json_atomically
from cvsa_jax.weights import frozen


def linear_probe(config: ConfigDict, workdir: AnyPath) -> dict[str, float]:
    """Linear probe and kNN of `config.init_from`; writes `workdir/report/results.json` and returns it.

    Raises:
        UserError: it is no run, no file of weights and no file of features; or there are no labels.
    """
    if not config.init_from:
        raise UserError("config.init_from is not set: give the --workdir of a run, a file of weights, or of features")
    first_alone(lambda: output_folder("--workdir", workdir / "report"))
    knn, probe = settings.knn(config.eval), settings.probe(config)
    check_used(config.eval, [config.eval.pooling])
    check_crops({"": config.eval.pooling}, probe)
    source = settings.load_source(config.data)
    maps = pooling_maps(config.eval, source)
    train, test = reading.readable_splits(source, config.data)
    used = np.union1d(train, test)
    of = frozen.candidate("", config.init_from, source, config.eval, make_mesh(), used, maps)
    figures = of.evaluator.recognition(of.network, train, test, knn=knn, probe=probe).figures
    if not is_first():
        return figures
    print(f"{source.name}, {len(train)} train and {len(test)} test images, features {of.pooled}:")
    for amount in (amount for amount in probe.amounts if f"linear_top1{amount.suffix}" in figures):
        print(_line(figures, amount.suffix, f"linear, {amount.title}"))
    if knn.ks:
        print(f"kNN: top-1 {percent(figures['knn_top1'])} %, k = {figures['knn_k']}")
    recall, precision = (percent(figures.get(key)) for key in ("recall_at_1", "map_at_r"))
    print(f"retrieval: recall@1 {recall} %, mAP@R {precision} %")
    results = workdir / "report" / "results.json"
    write_json_atomically(results, figures | {"perf": of.evaluator.perf})
    print(f"results: {results}")
    return figures


def _line(figures: dict[str, float], suffix: str, title: str) -> str:
    shares = [
        f"{name} {share(figures, f'linear_{key}{suffix}')} %"
        for key, name in (("top1", "top-1"), ("top5", "top-5"), ("mean_class", "mean per class"))
    ]
    rates = [f"{value:g}" for name, value in figures.items() if re.fullmatch(f"learning_rate{suffix}(_\\d+)?", name)]
    chosen = f"learning rate {', '.join(rates)}" if rates else "learning rates, one for each list of labels,"
    return f"{title}: {', '.join(shares)} ({chosen} chosen on a part of the train split)"
