"""Whole runs of another objective than BYOL: killed and continued, and refused where they do not fit."""

import functools

import jax
import numpy as np
import pytest
from support.comparing import numpy_of
from support.compiling import few_devices
from support.running import logged, shared_programs
from support.small_step import MODEL
from support.tiny_runs import kill_at

from configs import demo
from cvsa_jax import settings
from cvsa_jax.runs import pretrain
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import checkpoint
from cvsa_jax.training.resume import compare_config
from cvsa_jax.training.state import TrainState, init_state


@pytest.fixture(scope="module", autouse=True)
def small_runs(quick_compilation):
    # On two devices, with the stand-in for the ResNet, and without the report at the end: test_pretrain.py has whole
    # runs.
    with few_devices(2, pretrain), shared_programs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "model", lambda section: MODEL)
        patch.setattr(pretrain, "report_run", lambda *args, **kwargs: {})
        yield


def tiny(name: str):
    """The demo's config on a budget of seconds; a queue of two batches."""
    config = demo.get_config(name)
    config.data.procedural.update(classes=3, train_per_class=7, test_per_class=1, size=32)
    config.views.size = config.eval.size = config.eval.resize = 32
    config.batch_size, config.total_steps, config.optim.warmup_steps = 8, 10, 2
    config.log_steps, config.checkpoint_steps, config.watch.knn_steps = 1, 5, 0
    config.contrast.queue = 32
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of MoCo that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    pretrain.train(tiny("moco"), workdir)
    return workdir


def final_state(workdir) -> TrainState:
    config = tiny("moco")
    optimizer, _ = settings.optimizer(config, 21)
    build = functools.partial(init_state, settings.model(config.model), optimizer, 32, queue=32, classes=3)
    checkpoints = checkpoint.Checkpointer(workdir)
    state = checkpoints.restore(jax.eval_shape(build, jax.random.key(0)), pretrain.make_mesh())
    checkpoints.close()
    return numpy_of(state)


@pytest.mark.slow
def test_resumed_moco_run_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch, finished):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 8)
        pretrain.train(tiny("moco"), tmp_path / "run")
    assert [row["step"] for row in logged(tmp_path / "run")] == list(range(1, 8))
    pretrain.train(tiny("moco"), tmp_path / "run")
    state, expected = final_state(tmp_path / "run"), final_state(finished)
    for (path, got), want in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, want, err_msg=jax.tree_util.keystr(path))
    rows = logged(finished)
    assert logged(tmp_path / "run") == rows
    assert rows[0].keys() >= {"train/contrastive", "train/online_top1", "train/tau", "health/projection_std"}
    assert "train/align" not in rows[0]
    # What has been compared is not what a run begins with.
    assert state.step == 10 and np.any(state.probe.weights) and state.probe.opt_state[0].count == 10
    np.testing.assert_allclose(np.linalg.norm(state.queue.keys, axis=1), 1, rtol=1e-5)


def test_workdir_of_another_objective_is_refused(finished):
    with pytest.raises(
        UserError, match=r"(?s)holds a run with another config:.*\n  objective: moco -> simclr\n"
    ) as error:
        pretrain.train(tiny("simclr"), finished)
    assert "or give another --workdir" in str(error.value)
    assert logged(finished)[-1]["step"] == 10


@pytest.mark.parametrize(
    ("key", "value", "change"),
    [
        ("contrast.queue", 16, "32 -> 16"),
        ("contrast.temperature", 0.1, "0[.]2 -> 0[.]1"),
        ("watch.online_probe", False, "True -> False"),
    ],
)
def test_workdir_of_another_contrast_or_probe_is_refused(finished, key, value, change):
    config = tiny("moco")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=rf"{key.replace('.', r'[.]')}: {change}"):
        compare_config(config, finished)


def test_invalid_queue_is_refused_before_the_run(tmp_path):
    config = tiny("moco")
    config.contrast.queue = 24
    with pytest.raises(UserError, match=r"config\.contrast\.queue=24 is not a multiple of the 16 keys of a batch"):
        pretrain.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
