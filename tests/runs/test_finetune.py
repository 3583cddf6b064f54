"""Fine-tuning by its own command's function, on a set and a network of seconds."""

import contextlib
import dataclasses
import functools
import io
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Step, logged
from PIL import Image
from test_torchvision import torch_weights, write

from configs import cub_finetune, demo, folder_finetune
from cvsa_jax import settings
from cvsa_jax.evaluation import evaluator as summary
from cvsa_jax.evaluation.accuracy import accuracy
from cvsa_jax.runs import finetune, pretrain
from cvsa_jax.runtime.distributed import make_mesh, replicated
from cvsa_jax.runtime.errors import Diverged, UserError
from cvsa_jax.training import checkpoint
from cvsa_jax.training.finetune_step import ClassifierState, init_classifier
from cvsa_jax.training.state import Network, empty_network

CLASSES, PER_CLASS, STEPS = 3, 8, 18  # train images of a class; steps of every training
FAST = 3.0  # a learning rate that moves the network within so few steps
TRAININGS = ("labels_100/lr_0/validation", "labels_100/lr_3/validation", "labels_100/lr_3/final")
LOCALIZATION = {"pointing_game", "mask_iou", "mask_iou_best", "pixel_ap", "max_box_acc_v2", "corloc"}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory):
    # Nearly all the time would go into compiling: trainings at one rate compile once, and not for speed.
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    # Eight simulated devices are for the step; whole trainings on them would spend their time in rendezvous.
    with pytest.MonkeyPatch.context() as patch:
        for module in (pretrain, finetune):
            patch.setattr(module, "make_mesh", lambda: make_mesh(jax.devices()[:2]))
        yield


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    # Most of what is left is tracing: equal trainings and evaluations share one compiled function.
    optimizers, make = {}, settings.optimizer

    def optimizer(config, images):
        lengths = (config.batch_size, config.total_steps, config.total_epochs, images)
        key = json.dumps([config.optim.to_dict(), *lengths])
        return optimizers.setdefault(key, make(config, images))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "optimizer", optimizer)
        patch.setattr(finetune, "make_finetune_step", functools.cache(finetune.make_finetune_step))
        for name in ("make_encoder", "make_class_activation"):
            patch.setattr(summary, name, functools.cache(getattr(summary, name)))
        yield


def tiny(rates=(0.0, FAST)):
    config = folder_finetune.get_config("small")
    config.data.kind = "procedural"
    config.data.procedural.update(classes=CLASSES, train_per_class=PER_CLASS, test_per_class=4, size=32)
    config.views.size = config.eval.size = config.eval.resize = 32
    config.model.update(width=8)
    config.batch_size, config.total_epochs = 8, 6.0
    config.learning_rates = rates
    config.log_steps, config.checkpoint_steps = 1, 6
    return config


def numpy_of(tree):
    # Copies: the step donates its state's buffers, and an array of NumPy may be a view of them.
    return jax.tree.map(np.array, tree)


def assert_equal_trees(a, b):
    for (path, x), (_, y) in zip(jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


class Training(NamedTuple):
    """What one training started from, and which images it read."""

    start: Network
    read: set[int]


@contextlib.contextmanager
def watched():
    """Gives name of the training -> `Training`, filled while fine-tuning runs inside."""
    trainings, seen = {}, []
    load, loop = settings.load_source, finetune.run_steps

    def load_source(data):
        source = load(data)

        def read(i):
            seen.append(i)
            return source.read(i)

        return dataclasses.replace(source, read=read)

    def run_steps(config, workdir, step, state, *args, **kwargs):
        start = numpy_of(state.network)
        seen.clear()
        result = loop(config, workdir, step, state, *args, **kwargs)
        trainings["/".join(workdir.parts[-3:])] = Training(start, set(seen))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "load_source", load_source)
        patch.setattr(finetune, "run_steps", run_steps)
        yield trainings


def kill_at(patch, count):
    """Makes the `count`-th step, over all trainings, of this process die."""
    make, done = finetune.make_finetune_step, []

    def dying(*args):
        real = make(*args)

        def step(state, batch):
            done.append(None)
            if len(done) == count:
                raise KeyboardInterrupt
            return real(state, batch)

        return Step(step)

    patch.setattr(finetune, "make_finetune_step", dying)


def start_of(config, workdir) -> Network:
    """What the first training of a call starts from; it goes no further."""
    found = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def run_steps(config, workdir, step, state, *args, **kwargs):
            found.append(numpy_of(state.network))
            raise KeyboardInterrupt

        patch.setattr(finetune, "run_steps", run_steps)
        finetune.finetune(config, workdir)
    return found[0]


class Finished(NamedTuple):
    workdir: Path
    figures: dict[str, float]
    trainings: dict[str, Training]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    """From scratch, with all labels, uninterrupted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with watched() as trainings:
        figures = finetune.finetune(tiny(), workdir)
    return Finished(workdir, figures, trainings)


@functools.cache
def shapes() -> ClassifierState:
    optimizer, _ = settings.optimizer(tiny(), CLASSES * PER_CLASS)
    model = settings.classifier(tiny().model, CLASSES)
    return jax.eval_shape(lambda key: init_classifier(model, optimizer, 32, key), jax.random.key(0))


def final_state(workdir: Path) -> ClassifierState:
    checkpoints = checkpoint.Checkpointer(workdir)
    state, _ = checkpoints.restore(shapes(), finetune.make_mesh())
    checkpoints.close()
    return numpy_of(state)


def images_of(workdir: Path) -> list[int]:
    return checkpoint.read_meta(workdir)["images"]


def procedural():
    return settings.load_source(tiny().data)


@functools.cache
def classifier():
    model = settings.classifier(tiny().model, CLASSES).clone(axis_name=None)
    return jax.jit(lambda variables, x: model.apply(variables, x, False))


def predict(workdir: Path, rows) -> np.ndarray:
    """(images, classes) logits of a training's last checkpoint, without any of the evaluation; nothing to resize."""
    source = procedural()
    decoded = [np.asarray(Image.open(io.BytesIO(source.read(int(i)))).convert("RGB")) for i in rows]
    images = (np.stack(decoded) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.asarray(classifier()(final_state(workdir).network.variables, images.astype(np.float32)))


def share_right(workdir: Path, rows, labels=None) -> float:
    """Share of the images whose class has the one largest logit: where all tie, none."""
    logits, labels = predict(workdir, rows), (procedural().labels if labels is None else labels)[rows]
    best = logits == logits.max(1, keepdims=True)
    return float((best[np.arange(len(rows)), labels] & (best.sum(1) == 1)).mean())


def held_out(workdir: Path) -> np.ndarray:
    """The labelled images that a validation training was not given."""
    return np.setdiff1d(procedural().splits["train"], images_of(workdir))


def test_figures_are_those_promised_and_those_of_the_file(finished):
    places = {f"{kind}_{name}" for kind in ("cam", "grad_cam") for name in LOCALIZATION}
    shares = {"finetune_top1", "finetune_top5", "finetune_mean_class", "validation_top1_lr_0", "validation_top1_lr_3"}
    assert finished.figures.keys() == {"learning_rate"} | shares | places
    assert all(0 <= finished.figures[name] <= 1 for name in shares | places)
    assert json.loads((finished.workdir / "report" / "results.json").read_text()) == finished.figures
    page = (finished.workdir / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert f"{100 * finished.figures['finetune_top1']:.1f}" in page
    assert f"{100 * finished.figures['grad_cam_mask_iou_best']:.1f}" in page


def test_figures_are_those_of_the_checkpoints(finished):
    labels, test = procedural().labels, procedural().splits["test"]
    assert len(test) == 12
    right = share_right(finished.workdir / TRAININGS[2], test)
    assert finished.figures["finetune_top1"] == pytest.approx(right)
    per_class = [share_right(finished.workdir / TRAININGS[2], test[labels[test] == c]) for c in range(CLASSES)]
    assert finished.figures["finetune_mean_class"] == pytest.approx(np.mean(per_class))
    assert finished.figures["finetune_top5"] == 1  # of three classes
    for name, figure in ((TRAININGS[0], "validation_top1_lr_0"), (TRAININGS[1], "validation_top1_lr_3")):
        right = share_right(finished.workdir / name, held_out(finished.workdir / name))
        assert finished.figures[figure] == pytest.approx(right)


def test_the_rate_chosen_is_the_best_on_the_validation_part(finished):
    # At a rate of 0 the classifier stays 0: all classes tie, and nothing counts as recognised.
    assert finished.figures["validation_top1_lr_0"] == 0 < finished.figures["validation_top1_lr_3"]
    assert finished.figures["learning_rate"] == FAST
    assert not (finished.workdir / "labels_100" / "lr_0" / "final").exists()


def test_of_equal_rates_the_one_with_the_lower_cross_entropy_is_chosen(tmp_path, finished, monkeypatch):
    labels, losses = procedural().labels, {}
    for rate, name in ((0.0, TRAININGS[0]), (FAST, TRAININGS[1])):
        rows = held_out(finished.workdir / name)
        logits = predict(finished.workdir / name, rows).astype(np.float64)
        likelihoods = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses[rate] = -np.log(likelihoods[np.arange(len(rows)), labels[rows]]).mean()
    worse, better = sorted(losses, key=losses.get, reverse=True)
    assert losses[worse] > losses[better] + 1e-3
    monkeypatch.setattr(finetune, "accuracy", lambda *args: accuracy(*args) | {"top1": 0.5})
    # The first of the list would be the worse.
    figures = finetune.finetune(tiny((worse, better)), shutil.copytree(finished.workdir, tmp_path / "run"))
    assert figures["learning_rate"] == better


def test_each_training_reads_its_images_and_no_others(finished):
    source = procedural()
    assert tuple(finished.trainings) == TRAININGS
    for name, training in finished.trainings.items():
        assert training.read == set(images_of(finished.workdir / name))
    validation, again, final = (finished.trainings[name].read for name in TRAININGS)
    # All rates are tried on the same part, two images of each class, and the last training has these too.
    assert validation == again
    assert final == set(source.splits["train"])
    held = sorted(final - validation)
    assert [int((source.labels[held] == c).sum()) for c in range(CLASSES)] == [2, 2, 2]


def test_all_trainings_start_from_the_same_random_backbone(finished, tmp_path):
    starts = [training.start for training in finished.trainings.values()]
    for other in starts[1:]:
        assert_equal_trees(other, starts[0])
    kernels = [p for p in jax.tree.leaves(starts[0].params["backbone"]) if p.ndim == 4]
    assert len(kernels) == 9 and all(kernel.std() > 0.03 for kernel in kernels)
    assert not np.any(starts[0].params["head"]["kernel"])
    config = tiny()
    config.seed = 1
    other = start_of(config, tmp_path)
    assert (
        other.params["backbone"]["stem_conv"]["kernel"] != starts[0].params["backbone"]["stem_conv"]["kernel"]
    ).all()


def test_a_rate_of_0_moves_nothing_and_another_everything(finished):
    start = finished.trainings[TRAININGS[0]].start
    assert_equal_trees(final_state(finished.workdir / TRAININGS[0]).network.params, start.params)
    for (path, leaf), before in zip(
        jax.tree.leaves_with_path(final_state(finished.workdir / TRAININGS[2]).network.params),
        jax.tree.leaves(start.params),
        strict=True,
    ):
        assert np.any(leaf != before), jax.tree_util.keystr(path)


def test_labels_of_the_test_split_decide_nothing(tmp_path, finished, monkeypatch):
    source = procedural()
    test, labels = source.splits["test"], source.labels.copy()
    labels[test] = np.random.default_rng(0).permutation(labels[test])
    load = settings.load_source
    monkeypatch.setattr(settings, "load_source", lambda data: dataclasses.replace(load(data), labels=labels))
    figures = finetune.finetune(tiny(), tmp_path / "run")
    for name in TRAININGS:
        assert_equal_trees(final_state(tmp_path / "run" / name), final_state(finished.workdir / name))
    tested = {"finetune_top1", "finetune_mean_class"}
    rest = figures.keys() - tested
    assert {name: figures[name] for name in rest} == {name: finished.figures[name] for name in rest}
    # They did count: the figures are those of the shuffled labels.
    right = share_right(finished.workdir / TRAININGS[2], test, labels)
    assert figures["finetune_top1"] == pytest.approx(right)
    assert figures["finetune_top1"] != finished.figures["finetune_top1"]


def test_the_same_call_again_trains_nothing(tmp_path, finished, monkeypatch):
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    written = lambda: {p: p.stat().st_mtime_ns for p in workdir.rglob("ckpt/**/*") if p.is_file()}  # noqa: E731
    before, rows = written(), {name: logged(workdir / name) for name in TRAININGS}
    assert before and all(len(kept) == STEPS for kept in rows.values())
    shutil.rmtree(workdir / "report")

    def step(state, batch):
        raise AssertionError("trains")

    monkeypatch.setattr(finetune, "make_finetune_step", lambda *args: Step(step))
    assert finetune.finetune(tiny(), workdir) == finished.figures
    assert written() == before
    assert {name: logged(workdir / name) for name in TRAININGS} == rows
    assert json.loads((workdir / "report" / "results.json").read_text()) == finished.figures
    assert (workdir / "report" / "index.html").is_file()


def test_killed_twice_and_continued_is_uninterrupted_bit_for_bit(tmp_path, finished):
    workdir = tmp_path / "run"
    # Step 11 of the second validation, whose last checkpoint is of step 6, so twelve are left; then step 8 of the last
    # training.
    for count, name, step in ((STEPS + 11, TRAININGS[1], 11), (12 + 8, TRAININGS[2], 8)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            kill_at(patch, count)
            finetune.finetune(tiny(), workdir)
        assert [row["step"] for row in logged(workdir / name)] == list(range(1, step))
    assert finetune.finetune(tiny(), workdir) == finished.figures
    for name in TRAININGS:
        assert_equal_trees(final_state(workdir / name), final_state(finished.workdir / name))
        assert logged(workdir / name) == logged(finished.workdir / name)


def test_fractions_of_the_labels(tmp_path, finished, capsys):
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    config = tiny()
    config.label_fractions = (1.0, 0.3)
    with watched() as trainings:
        figures = finetune.finetune(config, workdir)
    # What has been trained stays, as the change does it no harm.
    assert f"{TRAININGS[2]} began: label_fractions: [1.0] -> [1.0, 0.3]\n" in capsys.readouterr().out
    assert all(not trainings[name].read for name in TRAININGS)
    source = procedural()
    folder = f"labels_30/lr_{figures['learning_rate_at_30']:g}"
    labelled = images_of(workdir / folder / "final")
    # 0.3 · 8 images of a class, and for the validation one of two.
    assert [int((source.labels[labelled] == c).sum()) for c in range(CLASSES)] == [2, 2, 2]
    assert set(labelled) < set(source.splits["train"])
    assert trainings[f"{folder}/final"].read == set(labelled)
    for rate in (0, 3):
        tried = images_of(workdir / f"labels_30/lr_{rate}/validation")
        assert [int((source.labels[tried] == c).sum()) for c in range(CLASSES)] == [1, 1, 1]
        assert trainings[f"labels_30/lr_{rate}/validation"].read == set(tried) < set(labelled)
    # Epochs are those of all train images: fractions differ in their labels alone.
    runs = [path.parent for path in workdir.glob("labels_*/*/*/ckpt")]
    assert len(runs) == 6 and {int(final_state(run).step) for run in runs} == {STEPS}
    # The figures of all labels stand as they are, those of the fraction beside them; maps are of all labels.
    named = {f"finetune_{name}_at_30" for name in ("top1", "top5", "mean_class")} | {"learning_rate_at_30"}
    named |= {"validation_top1_lr_0_at_30", "validation_top1_lr_3_at_30"}
    assert figures.keys() - finished.figures.keys() == named
    assert {name: figures[name] for name in finished.figures} == finished.figures
    right = share_right(workdir / folder / "final", source.splits["test"])
    assert figures["finetune_top1_at_30"] == pytest.approx(right)


def test_with_one_image_a_class_nothing_is_tried_and_the_middle_rate_is_taken(tmp_path):
    config = tiny((0.0, FAST, 100.0))
    config.label_fractions = (0.1,)
    figures = finetune.finetune(config, tmp_path / "run")
    assert figures["learning_rate_at_10"] == FAST
    assert not any(name.startswith("validation") for name in figures)
    assert [str(p.relative_to(tmp_path / "run")) for p in tmp_path.glob("run/*/*/*")] == ["labels_10/lr_3/final"]
    final = tmp_path / "run/labels_10/lr_3/final"
    assert sorted(procedural().labels[images_of(final)]) == [0, 1, 2]
    assert figures["finetune_top1_at_10"] == pytest.approx(share_right(final, procedural().splits["test"]))
    assert {f"cam_{name}" for name in LOCALIZATION} < figures.keys()


def test_a_rate_that_diverges_is_reported_and_left_out(tmp_path, finished, capsys):
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    figures = finetune.finetune(tiny((1e20, 0.0, FAST)), workdir)
    assert figures == finished.figures
    printed = capsys.readouterr().out
    assert "learning rate 1e+20 is out: step " in printed
    assert "learning rate 0: 0.0 % on 6 validation images" in printed


def test_where_all_rates_diverge_it_says_so(tmp_path, monkeypatch):
    def step(state, batch):  # real ones would each be compiled
        return state.replace(step=state.step + 1), {"loss": jnp.array(jnp.nan), "grad_norm": jnp.zeros(())}

    monkeypatch.setattr(finetune, "make_finetune_step", lambda *args: Step(step))
    with pytest.raises(UserError, match=r"diverged at each of config\.learning_rates=\(1e\+20, 2e\+20\): give lower"):
        finetune.finetune(tiny((1e20, 2e20)), tmp_path / "several")
    with pytest.raises(Diverged, match=r"^step 1: loss nan"):
        finetune.finetune(tiny((1e20,)), tmp_path / "one")
    assert not (tmp_path / "several" / "report").exists() and not (tmp_path / "one" / "report").exists()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pre-training run of the network of `tiny`, whose steps are made up: noise, other in the target network."""
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    config = demo.get_config("byol")
    config.data.procedural.update(tiny().data.procedural)
    config.views.size, config.model = 32, tiny().model
    config.model.update(head_hidden=16, head_out=8)
    config.batch_size, config.total_steps, config.optim.warmup_steps, config.watch.knn_steps = 8, 2, 1, 0

    def step(state, batch):
        rng = np.random.default_rng(int(state.step))
        # Upwards, as variances stay positive.
        moved = lambda x: np.asarray(x) + rng.uniform(0, 0.2, x.shape).astype(np.float32)  # noqa: E731
        networks = {name: jax.tree.map(moved, getattr(state, name)) for name in ("online", "target")}
        networks = jax.device_put(networks, replicated(finetune.make_mesh()))
        return state.replace(step=state.step + 1, **networks), {"loss": jnp.ones(()), "grad_norm": jnp.ones(())}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "make_train_step", lambda *args, **kwargs: Step(step))
        patch.setattr(pretrain, "report_run", lambda *args, **kwargs: {})
        pretrain.train(config, workdir)
    like = empty_network(settings.model(config.model))
    online, _ = checkpoint.restore_online(workdir, like, finetune.make_mesh())
    return workdir, numpy_of(online)


def assert_backbone(network: Network, expected: Network):
    assert_equal_trees(network.params["backbone"], expected.params["backbone"])
    assert_equal_trees(network.batch_stats["backbone"], expected.batch_stats["backbone"])


def test_trainings_start_from_the_online_backbone_of_a_run(tmp_path, pretrained, capsys):
    workdir, online = pretrained
    config = tiny()
    config.init_from = str(workdir)
    config.model.update(depth=50, stem="imagenet")  # the run's own counts
    with watched() as trainings:
        figures = finetune.finetune(config, tmp_path / "run")
    # The best and the last come after others, which change neither the run's backbone nor what they start from.
    assert tuple(trainings)[:2] == TRAININGS[:2] and len(trainings) == 3
    for training in trainings.values():
        assert_backbone(training.start, online)
        assert not np.any(training.start.params["head"]["kernel"])
    still = final_state(tmp_path / "run" / TRAININGS[0])
    assert_equal_trees(still.network.params["backbone"], online.params["backbone"])
    assert json.loads((tmp_path / "run" / "report" / "results.json").read_text()) == figures
    printed = capsys.readouterr().out
    assert f"loaded 45/45 backbone tensors of {workdir}, step 2\n" in printed
    assert f"backbone from {workdir} at step 2\n" in printed


def test_trainings_start_from_a_file_of_weights(tmp_path, capsys):
    weights = torch_weights(8, 8, stem=3)
    config = tiny()
    config.init_from = str(write(tmp_path / "weights.npz", weights))
    start = start_of(config, tmp_path / "run")
    backbone, stats = start.params["backbone"], start.batch_stats["backbone"]
    np.testing.assert_array_equal(backbone["stem_conv"]["kernel"], weights["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(backbone["stage3_block1"]["bn2"]["scale"], weights["layer3.0.bn2.weight"])
    np.testing.assert_array_equal(stats["stage2_block1"]["bn1"]["var"], weights["layer2.0.bn1.running_var"])
    assert start.params["head"]["kernel"].shape == (32, CLASSES) and not np.any(start.params["head"]["kernel"])
    printed = capsys.readouterr().out
    assert "loaded 45/45 backbone tensors" in printed and f"backbone from {config.init_from}\n" in printed


def test_scratch_says_so(tmp_path, capsys):
    start_of(tiny(), tmp_path)
    printed = capsys.readouterr().out
    assert "backbone from random weights\n" in printed and "loaded" not in printed
    assert "24 train and 12 test images, 3 classes" in printed


def test_training_learns_from_the_labels(tmp_path):
    config = tiny((5.0,))
    config.data.procedural.train_per_class = 16
    config.data.test_split = "train"  # the figures are those of the images that it was trained on
    config.views.crop_area = (1.0, 1.0)
    config.batch_size, config.total_steps, config.checkpoint_steps = 16, 60, 60
    figures = finetune.finetune(config, tmp_path / "run")
    assert figures["finetune_top1"] > 0.8  # chance is a third; by guessing that many of 48 never happens
    rows = logged(tmp_path / "run/labels_100/lr_5/final")
    assert rows[0]["train/loss"] == pytest.approx(np.log(3), rel=1e-4)
    assert np.mean([row["train/loss"] for row in rows[-5:]]) < 0.7
    assert not any(name.startswith("validation") for name in figures)  # of one rate


def test_data_without_labels_is_refused(tmp_path, monkeypatch):
    load = settings.load_source
    monkeypatch.setattr(settings, "load_source", lambda data: dataclasses.replace(load(data), labels=None))
    with pytest.raises(UserError, match="procedural has no labels, which fine-tuning needs"):
        finetune.finetune(tiny(), tmp_path)


def test_batch_that_does_not_divide_by_the_devices_is_refused(tmp_path):
    config = tiny()
    config.batch_size = 7
    with pytest.raises(UserError, match=r"batch_size=7 does not divide by the 2 devices: take 6 or 8"):
        finetune.finetune(config, tmp_path)


@pytest.mark.parametrize("rates", [(), (0.1, 0.1), (-0.1, 0.1)])
def test_rates_that_are_none_are_refused(tmp_path, rates):
    with pytest.raises(UserError, match=r"config\.learning_rates=\(.*: give different rates, none negative"):
        finetune.finetune(tiny(rates), tmp_path)


@pytest.mark.parametrize("fractions", [(), (0.0, 1.0), (0.5, 1.1)])
def test_fractions_that_are_none_are_refused(tmp_path, fractions):
    config = tiny()
    config.label_fractions = fractions
    with pytest.raises(UserError, match=r"config\.label_fractions=\(.*: give shares in \(0, 1\]"):
        finetune.finetune(config, tmp_path)


def test_warm_up_as_long_as_the_training_is_refused(tmp_path):
    config = tiny()
    config.optim.warmup_epochs = 6.0
    with pytest.raises(UserError, match="the warm-up of 18 steps is not shorter than the run of 18"):
        finetune.finetune(config, tmp_path)


def test_start_that_is_no_pre_training_run_is_refused(tmp_path, finished):
    config = tiny()
    config.init_from = str(tmp_path)
    with pytest.raises(UserError, match="is not the workdir of a run"):
        finetune.finetune(config, tmp_path / "run")
    for workdir in (finished.workdir, finished.workdir / TRAININGS[2]):
        config.init_from = str(workdir)
        with pytest.raises(UserError, match="is a run of mode 'finetune': a pre-training run is needed"):
            finetune.finetune(config, tmp_path / "run")


def test_workdir_of_another_network_batch_or_seed_is_refused(tmp_path, finished):
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    for key, value, said in (
        ("model", {"width": 4}, r"model\.width: 8 -> 4"),
        ("batch_size", 16, r"batch_size: 8 -> 16"),
        ("seed", 1, r"seed: 0 -> 1"),
        ("data", {"procedural": {"seed": 1}}, r"data\.procedural\.seed: 0 -> 1"),
    ):
        config = tiny()
        config.update({key: value})
        with pytest.raises(UserError, match=rf"validation holds a run with another config:\n  {said}"):
            finetune.finetune(config, workdir)


def test_workdir_of_other_data_is_refused(tmp_path, finished, monkeypatch):
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    source = procedural()
    # Another picture under an old name; and the same pictures, one of which is no longer for training.
    fewer = source.splits | {"train": source.splits["train"][1:]}
    for change in ({"fingerprint": "other"}, {"splits": fewer}):
        changed = dataclasses.replace(source, **change)
        monkeypatch.setattr(settings, "load_source", lambda data, changed=changed: changed)
        with pytest.raises(UserError, match=r"was trained on other data: restore the data or take another --workdir"):
            finetune.finetune(tiny(), workdir)


def test_options_of_the_config_files():
    plain, large, scratch, small = (folder_finetune.get_config(arg) for arg in ("", "448", "scratch", "small"))
    assert (plain.mode, plain.optim.name, plain.views.size, plain.model.depth) == ("finetune", "sgd", 224, 50)
    assert plain.eval.size is None  # so that of the views
    assert large.views.size == 448 and large.learning_rates == plain.learning_rates
    assert settings.eval_sizes(large.eval, large) == (448, 512)
    assert min(scratch.learning_rates) > min(plain.learning_rates)
    assert max(scratch.learning_rates) > max(plain.learning_rates)
    assert scratch.total_epochs > plain.total_epochs and scratch.optim.warmup_epochs > 0 == plain.optim.warmup_epochs
    assert (small.views.size, small.eval.size, small.model.depth, small.model.stem) == (64, 64, 8, "small")
    both = folder_finetune.get_config("small,scratch")
    assert both.model == small.model and both.total_epochs == scratch.total_epochs
    # Every rate of the sweep is a rate of its own, and each file names its data.
    for config in (plain, large, scratch, small, both):
        settings.check_learning_rates("config.learning_rates", config.learning_rates)
        assert config.data.kind == "folder" and config.init_from == ""
    cub = cub_finetune.get_config("448")
    assert (cub.data.kind, cub.views.size, cub.mode) == ("cub", 448, "finetune")
    with pytest.raises(ValueError, match="unknown option large; known: 448, scratch, small"):
        folder_finetune.get_config("large")
