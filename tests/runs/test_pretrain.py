import collections
import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from support.comparing import assert_equal_trees
from support.compiling import few_devices
from support.running import Step, drifting, logged, shared_programs
from support.tiny_runs import LOCALIZATION, kill_at, start_of, tiny, tiny_probe

from cvsa_jax import settings
from cvsa_jax.evaluation import evaluator as summary
from cvsa_jax.report import run as report
from cvsa_jax.runs import compare, linear, pretrain
from cvsa_jax.runs.compare import compare_runs
from cvsa_jax.runtime import formats
from cvsa_jax.runtime.distributed import replicated
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors.annotation import center, masks
from cvsa_jax.training import checkpoint
from cvsa_jax.training.log import read_metrics
from cvsa_jax.training.state import init_state


@pytest.fixture(scope="module", autouse=True)
def small_runs(quick_compilation):
    with few_devices(2, pretrain, linear, compare), shared_programs():
        yield


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(pretrain, "report_run", lambda *args, **kwargs: {})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps") / "store"
    source = settings.load_source(tiny().data)
    compute(source, masks(source), folder, threshold=0.5, on_bad_image="stop")
    return folder


@pytest.fixture(scope="module")
def cvsa_config(store):
    def make(arg=""):
        config = tiny(arg)
        config.saliency.store = str(store)
        config.align.balance = "gradient"  # the state with most in it, which a resume must bring back
        return config

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cvsa_config):
    """A CVSA run of 10 steps that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    pretrain.train(cvsa_config(), workdir)
    return workdir


def final_state(workdir, config):
    model = settings.model(config.model)
    optimizer, _ = settings.optimizer(config, 21)
    build = functools.partial(init_state, model, optimizer, config.views.size)
    checkpoints = checkpoint.Checkpointer(workdir)
    state = checkpoints.restore(jax.eval_shape(build, jax.random.key(0)), pretrain.make_mesh())
    checkpoints.close()
    return state


def test_resumed_run_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch, no_report, cvsa_config, finished):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 8)
        pretrain.train(cvsa_config(), workdir)
    assert [row["step"] for row in logged(workdir)] == list(range(1, 8))
    pretrain.train(cvsa_config(), workdir)
    assert_equal_trees(final_state(workdir, cvsa_config()), final_state(finished, cvsa_config()))
    assert logged(workdir) == logged(finished)


def test_seed_changes_weights_and_order_of_the_images(tmp_path, cvsa_config):
    configs = cvsa_config(), cvsa_config()
    configs[1].seed = 1
    first, other = (start_of(config, tmp_path / str(config.seed)) for config in configs)
    kernels = (jax.tree.leaves(start.state.online.params) for start in (first, other))
    assert all((a != b).all() for a, b in zip(*kernels, strict=True) if a.ndim > 1)
    assert not np.array_equal(first.batch["label"], other.batch["label"])


def test_checkpoint_of_8_devices_restores_on_2(tmp_path, mesh_of):
    config = tiny()
    optimizer, _ = settings.optimizer(config, 21)
    build = functools.partial(init_state, settings.model(config.model), optimizer, 32)
    like, rng = jax.eval_shape(build, jax.random.key(0)), np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.integers(0, 100, leaf.shape).astype(leaf.dtype), like)
    saved = jax.device_put(drawn.replace(step=np.int32(7)), replicated(mesh_of(8)))
    checkpoints = checkpoint.Checkpointer(tmp_path)
    checkpoints.save(saved, {"images": 21})
    checkpoints.close()
    checkpoints = checkpoint.Checkpointer(tmp_path)
    state, meta = checkpoints.restore(like, mesh_of(2)), checkpoints.meta()
    checkpoints.close()
    assert meta == {"images": 21} and int(state.step) == 7
    assert all(leaf.sharding.device_set == set(jax.devices()[:2]) for leaf in jax.tree.leaves(state))
    assert_equal_trees(state, saved)


def test_finished_run_leaves_the_promised_files(finished):
    assert (finished / "report" / "index.html").stat().st_size > 10_000
    assert json.loads((finished / "config.json").read_text())["mode"] == "pretrain"
    assert any((finished / "tensorboard").iterdir())
    assert "backbone/stem_conv/kernel" in (finished / "parameters.txt").read_text()
    figures = json.loads((finished / "report" / "results.json").read_text())
    assert figures.keys() > {"knn_top1", "recall_at_1"} | LOCALIZATION
    rows = logged(finished)
    assert [row["step"] for row in rows] == list(range(1, 11))
    trained = {"train/loss", "train/align", "train/contrastive", "train/learning_rate", "train/tau"}
    health = {f"health/{name}" for name in ("projection_std", "effective_rank", "target_cosine", "align_hit")}
    assert trained | health <= rows[0].keys()
    speed = {"perf/images_per_s_per_device", "perf/input_wait", "perf/host_memory_gib", "perf/flops_per_s_per_device"}
    assert speed <= read_metrics(finished)[0].keys()


def test_stage_two_starts_from_stage_one(tmp_path, cvsa_config, no_report, monkeypatch):
    monkeypatch.setattr(pretrain, "make_train_step", lambda *args, **kwargs: Step(drifting))
    stage1 = tiny("byol")
    stage1.saliency.store = str(tmp_path / "nowhere")  # BYOL on plain crops needs none
    stage1.total_steps, stage1.optim.warmup_steps = 2, 1
    pretrain.train(stage1, tmp_path / "stage1")
    stage2 = cvsa_config()
    stage2.init_from = str(tmp_path / "stage1")
    before, after = final_state(tmp_path / "stage1", stage1), start_of(stage2, tmp_path / "stage2").state
    for part in ("backbone", "projector", "predictor"):
        assert_equal_trees(after.online.params[part], before.online.params[part])
        assert_equal_trees(after.online.batch_stats[part], before.online.batch_stats[part])
    # Its target network begins as a copy, and heads that stage 1 does not train begin at random.
    assert_equal_trees(after.target.params["backbone"], before.online.params["backbone"])
    with pytest.raises(AssertionError):
        assert_equal_trees(after.online.params["conv_projector"], before.online.params["conv_projector"])


def test_linear_probe_loads_and_counts_the_backbone(tmp_path, finished, capsys, monkeypatch):
    seen = {}
    recognition = summary.Evaluator.recognition

    def spy(self, network, *args, **kwargs):
        seen["network"] = network
        return recognition(self, network, *args, **kwargs)

    monkeypatch.setattr(summary.Evaluator, "recognition", spy)
    config = tiny_probe()
    config.init_from = str(finished)
    figures = linear.linear_probe(config, tmp_path / "linear")
    # A ResNet-8: a stem and three blocks, two convolutions and two normalisations each, two blocks with a shortcut.
    convolutions = 1 + 3 * 2 + 2
    assert f"loaded {5 * convolutions}/{5 * convolutions} backbone tensors" in capsys.readouterr().out
    assert_equal_trees(seen["network"].params, final_state(finished, tiny()).online.params)
    written = json.loads((tmp_path / "linear" / "report" / "results.json").read_text())
    assert all(seconds > 0 for seconds in written["perf"].values())
    assert written == figures | {"perf": written["perf"]}
    assert {"linear_top1", "linear_top5", "linear_mean_class", "knn_top1", "recall_at_1", "map_at_r"} <= figures.keys()


def test_finished_run_keeps_its_training_config(tmp_path, no_report, finished, cvsa_config, capsys):
    again = shutil.copytree(finished, tmp_path / "again")
    config = cvsa_config()
    before, config.optim.lr = config.optim.lr, 0.25
    pretrain.train(config, again)
    assert f"which is finished and stays as it is: optim.lr: {before} -> 0.25" in capsys.readouterr().out
    assert json.loads((again / "config.json").read_text())["optim"]["lr"] == before


def test_linear_probe_without_a_run_is_refused(tmp_path):
    config = tiny_probe()
    config.init_from = str(tmp_path)
    with pytest.raises(UserError, match=r"not the workdir of a run"):
        linear.linear_probe(config, tmp_path / "linear")


@pytest.mark.slow
def test_compared_runs_have_their_individual_figures(tmp_path, finished, capsys):
    config = tiny_probe()
    twin = shutil.copytree(finished, tmp_path / "twin")
    figures = compare_runs(config, [str(finished), str(twin)], tmp_path / "out")
    written = json.loads((tmp_path / "out" / "report" / "results.json").read_text())
    assert written == figures | {"perf": written["perf"]}
    assert figures.keys() == {"run", "twin", "chance", "center_prior"}
    assert figures["run"] == figures["twin"]
    config.init_from = str(finished)
    alone = linear.linear_probe(config, tmp_path / "linear")
    alone |= json.loads((finished / "report" / "results.json").read_text())
    # The jitted passes differ, so features may in the last bits, but no image changes sides.
    assert {name: figures["run"][name] for name in alone} == pytest.approx(alone, rel=1e-4)
    assert {f"{kind}_{name}" for kind in ("mean", "component") for name in LOCALIZATION} <= figures["run"].keys()
    assert figures["center_prior"].keys() >= LOCALIZATION
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    # Attention, backgrounds, features, and of both runs confusions and curves.
    assert page.count("data:image/png;base64,") == 7
    assert f"{100 * figures['run']['mask_iou_best']:.1f}" in page
    assert "Features are pooled by the attention." in page
    out = capsys.readouterr().out
    assert "twin, first component" in out and "test images, features pooled by the attention:" in out


def test_invalid_comparisons_are_refused(tmp_path, finished, cvsa_config):
    for other in ("run", "chance"):
        with pytest.raises(UserError, match="names tell the rows apart"):
            compare_runs(tiny_probe(), [str(finished), f"{tmp_path}/{other}"], tmp_path)
    with pytest.raises(UserError, match="mode 'pretrain': give that of a linear probe"):
        compare_runs(cvsa_config(), [str(finished)], tmp_path)
    with pytest.raises(UserError, match="not the workdir of a run"):
        compare_runs(tiny_probe(), [str(tmp_path)], tmp_path)


def test_missing_store_names_the_command(tmp_path):
    config = tiny()
    config.saliency.store = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere does not exist.*python -m cvsa_jax\.saliency"):
        pretrain.train(config, tmp_path / "run")


def test_batch_not_divisible_by_devices_is_refused(tmp_path, cvsa_config):
    config = cvsa_config()
    config.batch_size = 13
    with pytest.raises(UserError, match=r"batch_size=13 does not divide by the 2 devices: take 12 or 16"):
        pretrain.train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1000}, r"batch_size=1000 is more than the 21 images of procedural: set it lower"),
        (
            {"batch_size": 12, "views.where": "device"},
            r"batch_size=12 gives 6 images to each of 2 devices.*group=4",
        ),
        ({"views.stored": 0}, r"config\.views\.stored=0 must be at least 1"),
    ],
)
def test_invalid_batches_and_views_are_refused(tmp_path, cvsa_config, changes, message):
    config = cvsa_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        pretrain.train(config, tmp_path / "run")


def test_small_disk_is_refused_before_the_first_step(tmp_path, cvsa_config, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: collections.namedtuple("usage", "free")(1000))
    for _ in range(2):  # the first leaves no lock
        with pytest.raises(UserError, match=r"run: \d checkpoint\(s\) need [\d,]+ bytes, and 1,000 are free there"):
            pretrain.train(cvsa_config(), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_failing_report_keeps_that_of_the_same_step(tmp_path, finished, cvsa_config, monkeypatch):
    def broken(*_):
        raise ValueError("broken")

    workdir = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(report, "_report", broken)
    assert pretrain.train(cvsa_config(), workdir) == {}
    assert (workdir / "report" / "results.json").is_file()


@pytest.mark.slow
def test_device_views_train_like_host_views(tmp_path, finished, cvsa_config, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = cvsa_config()
    config.views.update(where="device", stored=32)  # the images' own size, so the same pixels but for the last level
    config.total_steps, config.optim.warmup_steps = 1, 0
    pretrain.train(config, tmp_path / "run")
    ours, host = (read_metrics(workdir)[0] for workdir in (tmp_path / "run", finished))
    for figure in ("train/loss", "train/align", "health/projection_std"):
        assert ours[figure] == pytest.approx(host[figure], rel=0.02)
    assert ours["health/residual"] == pytest.approx(host["health/residual"], abs=1e-6)
    assert (tmp_path / "run" / "report" / "views.png").is_file()


@pytest.mark.slow
def test_cached_images_train_like_files(tmp_path, no_report, finished, cvsa_config, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = cvsa_config()
    config.data.cache, config.views.stored = True, 32  # the images' own size
    pretrain.train(config, tmp_path / "run")
    (kept,) = (tmp_path / "cache" / "cvsa_jax").glob("images-*")
    assert np.load(kept / "images.npy", mmap_mode="r").shape == (21, 32, 32, 3)
    ours, files = (read_metrics(workdir)[0] for workdir in (tmp_path / "run", finished))
    for figure in ("train/loss", "train/align", "health/projection_std", "health/residual"):
        assert ours[figure] == files[figure]


def test_workdir_of_another_config_is_refused(finished, cvsa_config):
    config = cvsa_config()
    config.seed = 8
    with pytest.raises(UserError, match=r"seed: 0 -> 8"):
        pretrain.train(config, finished)


def test_workdir_of_other_data_is_refused(tmp_path, finished, cvsa_config, monkeypatch):
    # The pictures of another seed, one of them no longer for training; and as many of the same, one exchanged.
    workdir, load = shutil.copytree(finished, tmp_path / "run"), settings.load_source
    source = load(cvsa_config().data)
    fewer = dataclasses.replace(source, splits=source.splits | {"train": source.splits["train"][1:]})
    other = dataclasses.replace(source, identify=lambda kind: "another")
    edited = dataclasses.replace(source, labels=source.labels[::-1].copy())
    before = final_state(workdir, cvsa_config())
    reasons = (
        (fewer, r"images 21, selection \w+; now images 20, selection \w+"),
        (other, r"fingerprint \w+; now fingerprint another"),
        (edited, r"selection \w+; now selection \w+"),
    )
    for changed, reason in reasons:
        monkeypatch.setattr(settings, "load_source", lambda data, changed=changed: changed)
        config = tiny("byol")
        config.update(cvsa_config().to_dict())
        monkeypatch.setattr(pretrain, "maps_of", lambda *args: None)
        with pytest.raises(UserError, match=rf"was trained on other data \({reason}\).*: restore the data"):
            pretrain.train(config, workdir)
    assert_equal_trees(final_state(workdir, cvsa_config()), before)


def test_workdir_of_other_maps_is_refused(tmp_path, finished, cvsa_config):
    config, source = cvsa_config(), settings.load_source(tiny().data)
    config.saliency.store = str(tmp_path / "other")
    compute(source, masks(source), tmp_path / "other", threshold=0.4, on_bad_image="stop")
    with pytest.raises(UserError, match=r"threshold=0\.5, but the boxes of .*other were made at 0\.4: give that one"):
        pretrain.train(config, finished)
    config.saliency.threshold = 0.4
    with pytest.raises(UserError, match=r"other data \(saliency\.threshold 0\.5; now saliency\.threshold 0\.4\)"):
        pretrain.train(config, finished)


def test_run_of_another_format_is_refused_for_resume_and_init(tmp_path, finished, cvsa_config, monkeypatch):
    monkeypatch.setattr(formats, "RUN", formats.RUN + 1)
    said = (
        r"config\.json has format \d+, which an older version of cvsa_jax wrote .*: use this run with the version that"
    )
    with pytest.raises(UserError, match=said):
        pretrain.train(cvsa_config(), finished)
    config = cvsa_config()
    config.init_from = str(finished)
    with pytest.raises(UserError, match=said):
        pretrain.train(config, tmp_path / "run")


def test_init_from_another_architecture_names_the_tensor(tmp_path, finished, cvsa_config):
    config = cvsa_config()
    config.init_from = str(finished)
    config.model.width = 8
    with pytest.raises(UserError, match=r"another architecture than config\.model: .*backbone.*\(.*\), the model's is"):
        pretrain.train(config, tmp_path / "run")


@pytest.mark.slow
def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path, cvsa_config):
    config = cvsa_config()
    config.optim.name, config.optim.lr, config.optim.warmup_steps = "sgd", 1e22, 7
    config.checkpoint_steps = 1
    with pytest.raises(UserError, match=r"^step (\d+): loss .*the last checkpoint, step \d+, is kept") as error:
        pretrain.train(config, tmp_path / "run")
    bad = int(str(error.value).split(":")[0].removeprefix("step "))
    state = final_state(tmp_path / "run", config)
    assert int(state.step) == bad - 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.online.params))


def test_bad_image_stops_training_or_is_skipped(tmp_path, capsys):
    root = tmp_path / "set"
    source = settings.load_source(tiny().data)
    for i in source.split("train"):
        path = root / source.names[i].removeprefix("train/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read(int(i)))
    (root / "class_00" / "0000.png").write_bytes(b"not an image")
    config = tiny()
    config.data.kind, config.data.root = "folder", str(root)
    config.saliency.store = str(tmp_path / "store")
    folder = settings.load_source(config.data)
    with pytest.raises(UserError, match=r"class_00/0000\.png"):
        compute(folder, center(folder), tmp_path / "store", threshold=0.5, on_bad_image="stop")
    with pytest.raises(UserError, match="is unfinished"):
        pretrain.train(config, tmp_path / "run")
    compute(folder, center(folder), tmp_path / "store", threshold=0.5, on_bad_image="skip")
    with pytest.raises(UserError, match=r"1 of 21 images .*class_00/0000\.png"):
        pretrain.train(config, tmp_path / "run")
    config.data.on_bad_image = "skip"
    start = start_of(config, tmp_path / "run")
    assert "skipped: class_00/0000.png" in capsys.readouterr().out
    assert len(start.batch["view1"]) == config.batch_size
    # Of the split, whatever of it can be read: so a run can go on when another image becomes unreadable.
    assert start.identity["images"] == 21
