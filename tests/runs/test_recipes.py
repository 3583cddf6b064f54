"""The road that users take, at a small size: the shipped recipes with their own optimisers and schedules, from random
weights, from a run and from a file, and the paper's two stages one after the other.

What must hold of any healthy training: every part that has a gradient moves, every other stays as it is to the bit,
and the alignment is learned where it has a weight.
"""

import contextlib
import functools
import io

import jax
import numpy as np
import optax
import pytest
from support.comparing import assert_equal_trees
from support.compiling import few_devices
from support.running import logged, shared_programs
from support.small_step import MODEL
from support.tiny_runs import start_of, tiny

from configs import folder
from cvsa_jax import settings
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runs import pretrain, weights
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors.annotation import masks
from cvsa_jax.training import checkpoint
from cvsa_jax.training.state import Network, empty_network, init_state
from cvsa_jax.weights import backbones

HEADS = {"projector", "predictor", "conv_projector", "conv_predictor"}
# Recipe -> the heads that its losses reach (BYOL and SimSiam have a predictor; the conv heads belong to the alignment).
UNTRAINED = {
    "byol": {"conv_projector", "conv_predictor"},
    "moco": {"predictor", "conv_projector", "conv_predictor"},
    "simclr": {"predictor", "conv_projector", "conv_predictor"},
    "simsiam": {"conv_projector", "conv_predictor"},
    "": set(),
    "moco,cvsa": {"predictor"},
    "simclr,cvsa": {"predictor"},
    "simsiam,cvsa": set(),
}


@pytest.fixture(scope="module", autouse=True)
def small_runs(quick_compilation):
    # Without the report at the end: test_pretrain.py has whole runs.
    with few_devices(2, pretrain, weights), shared_programs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "report_run", lambda *args, **kwargs: {})
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("maps") / "store", settings.load_source(tiny().data)
    compute(source, masks(source), folder, threshold=0.5, on_bad_image="stop")
    return folder


@pytest.fixture(scope="module")
def shipped(store):
    def make(arg: str, steps: int = 6):
        """`configs/folder.py:<arg>` on tiny data and a tiny network; its optimiser at the rate that its batch of 4096
        has (256 of MoCo, 512 of SimSiam), whose batches here are 8."""
        config, small = folder.get_config(arg), tiny()
        rate = {"moco": 256, "simsiam": 512}.get(config.objective, 4096) / 8
        config.update_from_flattened_dict({"optim.lr": config.optim.lr * rate, "optim.warmup_steps": 2})
        config.data.kind = "procedural"
        config.data.procedural.update(small.data.procedural)
        config.views.size = config.eval.size = config.eval.resize = 32
        config.model.update(small.model.to_dict())
        config.batch_size, config.total_steps, config.log_steps, config.checkpoint_steps = 8, steps, 1, steps
        config.target.reference_batch = 8
        config.saliency.store, config.watch.knn_steps = str(store), 0
        return config

    return make


@functools.cache
def initial(model: Siamese, size: int, seed: int) -> Network:
    """The random weights that a run starts from, whatever its objective and its optimiser."""
    build = functools.partial(init_state, model, optax.identity(), size)
    return jax.device_get(jax.jit(build)(jax.random.key(seed)).online)


def trained(workdir, config) -> Network:
    """The online network that a run ends with."""
    like = empty_network(settings.model(config.model))
    return jax.device_get(checkpoint.restore_online(workdir, like, make_mesh(jax.devices()[:2]))[0])


def assert_equal_part(got: Network, expected: Network, part: str) -> None:
    for ours, theirs in ((got.params, expected.params), (got.batch_stats, expected.batch_stats)):
        jax.tree.map(np.testing.assert_array_equal, ours[part], theirs[part])


def assert_kernels_moved(got: Network, before: Network, part: str) -> None:
    for path, kernel in jax.tree.leaves_with_path(got.params[part]):
        if kernel.ndim > 1:
            there = before.params[part]
            for step in path:
                there = there[step.key]
            change = np.linalg.norm(kernel - there) / np.linalg.norm(there)
            assert 0 < change < np.inf, f"{part}{jax.tree_util.keystr(path)} changed by {change}"
            # Decay alone moves a kernel, too, to nothing.
            assert np.linalg.norm(kernel) > 1e-3 * np.linalg.norm(there)


CASES = {arg or "cvsa": (arg, {}) for arg in UNTRAINED}
CASES |= {f"{arg or 'cvsa'} with {name}": (arg, {"optim.name": name}) for arg, name in (("byol", "adam"), ("", "sgd"))}


@pytest.mark.parametrize(
    ("arg", "changes"),
    [pytest.param(*case, id=name, marks=[] if name == "cvsa" else pytest.mark.slow) for name, case in CASES.items()],
)
def test_recipe_moves_only_parts_with_a_gradient(tmp_path, monkeypatch, shipped, arg, changes):
    # One layer in the ResNet's place: what is asked is about the heads, and compiling would take most of the time.
    monkeypatch.setattr(settings, "model", lambda section: MODEL)
    config = shipped(arg)
    config.update_from_flattened_dict(changes | ({"optim.lr": 0.03} if changes else {}))
    pretrain.train(config, tmp_path / "run")
    before, after = initial(MODEL, config.views.size, config.seed), trained(tmp_path / "run", config)
    for part in {"backbone", *HEADS} - UNTRAINED[arg]:
        assert_kernels_moved(after, before, part)
    for part in UNTRAINED[arg]:
        assert_equal_part(after, before, part)
    rows = logged(tmp_path / "run")
    assert all(row["health/grad_norm"] > 0 for row in rows)
    if "conv_predictor" not in UNTRAINED[arg]:
        assert all(row["health/align_gradient"] > 1e-3 * row["health/objective_gradient"] for row in rows)


@pytest.fixture(scope="module")
def stage1(tmp_path_factory, shipped):
    """BYOL with LARS, as configs/imagenet.py trains, long enough for decay alone to destroy a head."""
    workdir = tmp_path_factory.mktemp("stage1") / "run"
    pretrain.train(shipped("byol", 40), workdir)
    return workdir


@pytest.fixture(scope="module")
def stage2(tmp_path_factory, shipped, stage1):
    """CVSA from that run."""
    workdir, config = tmp_path_factory.mktemp("stage2") / "run", shipped("", 60)
    config.init_from = str(stage1)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        pretrain.train(config, workdir)
    return workdir, printed.getvalue()


def mean_align(rows: list[dict]) -> float:
    return float(np.mean([row["train/align"] for row in rows]))


@pytest.mark.slow
def test_stage_two_after_stage_one_with_lars_learns_the_alignment(stage2):
    workdir, printed = stage2
    assert "(conv_projector, conv_predictor from random weights, which it did not train)" in printed
    assert "warning: the alignment" not in printed
    rows = logged(workdir)
    assert mean_align(rows[-10:]) < 0.8 * mean_align(rows[:5])


@pytest.mark.slow
def test_init_from_run_gives_the_parts_it_trained(shipped, stage1, stage2):
    config, mesh = shipped(""), make_mesh(jax.devices()[:2])
    model, whole = settings.model(config.model), trained(stage1, config)
    start, origin = backbones.online_start(str(stage1), model, mesh)
    assert start.params.keys() == start.batch_stats.keys() == {"backbone", "projector", "predictor"}
    for part in start.params:
        assert_equal_part(jax.device_get(start), whole, part)
    assert origin.startswith(f"{stage1} at step 40 (")
    # One that learned the alignment gives all of its parts.
    workdir, _ = stage2
    start, origin = backbones.online_start(str(workdir), model, mesh)
    assert start.params.keys() == {"backbone", *HEADS} and origin.endswith("at step 60")


@pytest.mark.slow
def test_init_from_file_gives_only_the_backbone(tmp_path, shipped, stage1, capsys):
    weights.export_run(str(stage1), tmp_path / "exported", ("safetensors",), "unknown")
    config = shipped("")
    config.init_from = str(tmp_path / "exported" / "model.safetensors")
    start = start_of(config, tmp_path / "run").state.online
    assert "(the backbone alone)" in capsys.readouterr().out
    fresh = initial(settings.model(config.model), config.views.size, config.seed)
    assert_equal_trees(start.params["backbone"], trained(stage1, config).params["backbone"])
    for part in HEADS:
        assert_equal_trees(start.params[part], fresh.params[part])
