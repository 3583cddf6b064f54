"""Our training step and evaluation against those of PyTorch and scikit-learn, in turn (A B A B) on the same machine.

    python3 -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/requirements-peers.txt
    python -m benchmarks.peers --peer=.venv-peers/bin/python
    python -m benchmarks.peers --peer=.venv-peers/bin/python --networks=demo --rounds=1 --rows=500    # to try it
    python -m benchmarks.peers --peer=python3 --networks=resnet50 --batch=256 --steps=10 --compile    # on a GPU

Steps: BYOL and CVSA of ours, BYOL of PyTorch (benchmarks/peers_torch.py), and as a yardstick the backbone alone
learning from labels, of both. Our BYOL and CVSA include the photometric augmentation, which the peer's do not have.
float32 on a CPU, bfloat16 on a GPU. Evaluation: our probe and kNN (k = 20) against scikit-learn's on the same features,
and the kNN against faiss's; both probes choose among as many settings on the same validation rows. Writes
benchmarks/results/peers.json.
"""

import functools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.common import asked, synthetic_batch, write_results
from configs import common
from cvsa_jax import losses, settings
from cvsa_jax.evaluation.knn import knn_predict
from cvsa_jax.evaluation.labelled import validation_rows
from cvsa_jax.evaluation.probe import linear_probe
from cvsa_jax.models.classifier import Classifier
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.distributed import make_mesh, replicated, to_mesh
from cvsa_jax.training import optim
from cvsa_jax.training.finetune_step import init_classifier, make_finetune_step
from cvsa_jax.training.photometric import Photometric
from cvsa_jax.training.state import init_state
from cvsa_jax.training.step import Alignment, StepSpec, make_train_step


class Net(NamedTuple):
    """A network, its batch, and steps of a round."""

    depth: int
    width: int
    stem: str
    size: int
    batch: int
    hidden: int
    out: int
    steps: int


NETWORKS = {
    "resnet50": Net(50, 64, "imagenet", 224, 4, 4096, 256, 1),
    "resnet8_width64": Net(8, 64, "small", 48, 32, 4096, 256, 3),
    "demo": Net(8, 16, "small", 48, 32, 256, 64, 30),
}
_PEER = flags.DEFINE_string("peer", None, "Python of the environment for PyTorch.", required=True)
_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), f"Of {', '.join(NETWORKS)}.")
_BATCH = flags.DEFINE_integer("batch", None, "Images of a step, in the place of the network's own.")
_STEPS = flags.DEFINE_integer("steps", None, "In a round, in the place of the network's own.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Of all sides.")
_COMPILE = flags.DEFINE_bool("compile", False, "torch.compile on the peer's side.")
_ROWS = flags.DEFINE_integer("rows", 3000, "Train rows, and as many test rows, of 2048 features in 100 classes.")


def main(argv: list[str]) -> None:
    del argv
    results = {"device": jax.devices()[0].device_kind, "compile": _COMPILE.value}
    with subprocess.Popen(
        [_PEER.value, str(Path(__file__).with_name("peers_torch.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as peer:
        for name in _NETWORKS.value:
            given = {"batch": _BATCH.value, "steps": _STEPS.value}
            net = NETWORKS[name]._replace(**{key: value for key, value in given.items() if value})
            results |= {f"{name}_{key}": value for key, value in steps(net, functools.partial(asked, peer)).items()}
        results |= evaluation(_ROWS.value, functools.partial(asked, peer))
        peer.stdin.close()
    write_results("peers", results)


def steps(net: Net, ask: Callable[[dict], dict[str, float]]) -> dict[str, float]:
    """Pairs/s (images/s of the supervised step) of every side, and the medians of the rounds' ratios."""

    def peers(step: dict, times: int) -> float:
        return ask({"step": step, "times": times})["seconds"]

    kinds = {"byol": ours(net, 0.0), "cvsa": ours(net, 1.0), "supervised": ours_supervised(net)}
    shape = {key: value for key, value in net._asdict().items() if key != "steps"} | {"compile": _COMPILE.value}
    for kind in ("byol", "supervised"):
        kinds[f"torch_{kind}"] = functools.partial(peers, {"kind": kind, **shape})
    for run in kinds.values():
        run(2)
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(_ROUNDS.value):
        for kind, run in kinds.items():
            rates[kind].append(net.batch * net.steps / run(net.steps))
    figures = {f"{kind}_per_s": statistics.median(values) for kind, values in rates.items()}
    figures |= {f"{kind}_per_s_{end.__name__}": end(values) for kind, values in rates.items() for end in (min, max)}
    ratios = {
        "byol_over_torch_byol": ("byol", "torch_byol"),
        "cvsa_time_over_byol": ("byol", "cvsa"),
        "supervised_over_torch_supervised": ("supervised", "torch_supervised"),
    }
    for name, (above, below) in ratios.items():
        figures[name] = statistics.median(a / b for a, b in zip(rates[above], rates[below], strict=True))
    print(f"{net}\n" + "\n".join(f"  {name:28} {value:8.2f}" for name, value in figures.items()), flush=True)
    return figures


def ours(net: Net, align_weight: float) -> Callable[[int], float]:
    """What runs so many of our steps and says how many seconds they took."""
    mesh = make_mesh()
    model = Siamese(net.depth, net.width, net.stem, net.hidden, net.out, dtype=_dtype(), axis_name="data")
    optimizer = optim.make_optimizer(
        optim.learning_rate(0.45, net.batch, 10, 1000), optim.OptimizerSpec("lars", 1e-6, 0.9)
    )
    augment = Photometric(0.4, 0.4, 0.2, 0.1, 0.8, 0.2, 0.5, 0.1)
    tau, align = optim.target_decay(0.99, 1000, True), Alignment(align_weight, "kl", 0.2)
    spec = StepSpec(losses.OBJECTIVES["byol"], 0.2, align, (augment, augment), tau, seed=0)
    step = make_train_step(model, optimizer, mesh, spec)
    batch = synthetic_batch(net.batch, net.size)
    return timed(step, functools.partial(init_state, model, optimizer, net.size), batch)


def ours_supervised(net: Net) -> Callable[[int], float]:
    """The same of our backbone alone, which learns from labels by SGD."""
    mesh = make_mesh()
    model = Classifier(1000, net.depth, net.width, net.stem, dtype=_dtype(), axis_name="data")
    rate = optim.learning_rate(1e-3, 256, 10, 1000)
    optimizer = optim.make_optimizer(rate, optim.OptimizerSpec("sgd", 1e-6, 0.9, nesterov=False))
    batch = {"image": synthetic_batch(net.batch, net.size)["view1"], "label": np.arange(net.batch, dtype=np.int32)}
    initialize = functools.partial(init_classifier, model, optimizer, net.size)
    return timed(make_finetune_step(model, optimizer, mesh), initialize, batch)


def _dtype():
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def timed(step: Callable, initialize: Callable, batch: dict[str, np.ndarray]) -> Callable[[int], float]:
    """What takes so many steps on one batch that lies on the devices, and says how many seconds they took."""
    mesh = make_mesh()
    batch = to_mesh(batch, mesh)
    kept = [jax.jit(initialize, out_shardings=replicated(mesh))(jax.random.key(0))]

    def run(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            kept[0], _ = step(kept[0], batch)
        jax.block_until_ready(kept[0])
        return time.perf_counter() - began

    return run


def evaluation(rows: int, ask: Callable[[dict], dict[str, float]]) -> dict[str, float]:
    """Seconds and accuracy of probe and kNN; scikit-learn's probe chooses its C among as many values as ours learning
    rates, once, on the same validation rows. faiss's seconds are those of the peer, without reading the rows."""
    rng, classes = np.random.default_rng(0), 100
    centres = rng.normal(size=(classes, 2048))
    y, y_test = (np.arange(rows) % classes for _ in range(2))
    x, x_test = (np.maximum(centres[k] + 6 * rng.normal(size=(rows, 2048)), 0).astype(np.float32) for k in (y, y_test))
    config = common.linear()
    config.probe.folds = 1
    probe, knn = settings.probe(config), settings.knn(config.eval)

    def ours_linear() -> float:
        return linear_probe(x, y, x_test, y_test, classes, probe, 0).figures["top1"]

    def sklearn_linear() -> float:
        scaled, scaled_test = ((part - x.mean(0)) / x.std(0) for part in (x, x_test))
        held = validation_rows(y, probe.validation_share, 0)
        values = np.logspace(-5, 1, len(probe.learning_rates))
        scores = [
            LogisticRegression(C=c, max_iter=200).fit(scaled[~held], y[~held]).score(scaled[held], y[held])
            for c in values
        ]
        best = LogisticRegression(C=values[int(np.argmax(scores))], max_iter=200).fit(scaled, y)
        return best.score(scaled_test, y_test)

    def ours_knn() -> float:
        return float((knn_predict(x, y, x_test, (20,), knn.temperature)[0] == y_test).mean())

    def sklearn_knn() -> float:
        def vote(distances: np.ndarray) -> np.ndarray:
            return np.exp(-distances / knn.temperature)

        return KNeighborsClassifier(20, metric="cosine", weights=vote, n_jobs=-1).fit(x, y).score(x_test, y_test)

    figures = {}
    for side in (ours_linear, sklearn_linear, ours_knn, sklearn_knn) * 2:
        began = time.perf_counter()
        top1 = side()
        seconds = min(figures.get(f"{side.__name__}_s", np.inf), time.perf_counter() - began)
        figures |= {f"{side.__name__}_s": seconds, f"{side.__name__}_top1": top1}
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, train=x, labels=y, test=x_test, test_labels=y_test)
        file.flush()
        answers = [ask({"knn": file.name, "k": 20, "temperature": knn.temperature}) for _ in range(2)]
    figures |= {"faiss_knn_s": min(a["seconds"] for a in answers), "faiss_knn_top1": answers[0]["top1"]}
    print("\n".join(f"  {name:28} {value:8.3f}" for name, value in figures.items()))
    return figures


if __name__ == "__main__":
    app.run(main)
