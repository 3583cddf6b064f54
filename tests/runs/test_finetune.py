"""Fine-tuning by its own command's function: figures, choice of the rate, interruption, fractions of the labels."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.comparing import assert_equal_trees
from support.compiling import few_devices
from support.finetuning import (
    CLASSES,
    FAST,
    LOCALIZATION,
    STEPS,
    TRAININGS,
    final_state,
    held_out,
    images_of,
    kill_at,
    predict,
    procedural,
    share_right,
    start_of,
    tiny,
    watched,
)
from support.running import Step, logged

from cvsa_jax import settings
from cvsa_jax.evaluation.accuracy import accuracy
from cvsa_jax.evaluation.evaluator import Evaluator
from cvsa_jax.evaluation.probe import logits
from cvsa_jax.runs import embed, finetune, weights
from cvsa_jax.runtime.errors import Diverged, UserError
from cvsa_jax.weights import frozen

pytestmark = pytest.mark.usefixtures("small_finetuning")


def test_finetune_writes_all_promised_figures(finetuned):
    places = {f"{kind}_{name}" for kind in ("cam", "grad_cam") for name in LOCALIZATION}
    shares = {"finetune_top1", "finetune_top5", "finetune_mean_class", "validation_top1_lr_0", "validation_top1_lr_3"}
    assert finetuned.figures.keys() == {"learning_rate"} | shares | places
    assert all(0 <= finetuned.figures[name] <= 1 for name in shares | places)
    assert json.loads((finetuned.workdir / "report" / "results.json").read_text()) == finetuned.figures
    page = (finetuned.workdir / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert f"{100 * finetuned.figures['finetune_top1']:.1f}" in page
    assert f"{100 * finetuned.figures['grad_cam_mask_iou_best']:.1f}" in page


def test_finetune_figures_match_checkpoint_accuracy(finetuned):
    labels, test = procedural().labels, procedural().splits["test"]
    assert len(test) == 12
    right = share_right(finetuned.workdir / TRAININGS[2], test)
    assert finetuned.figures["finetune_top1"] == pytest.approx(right)
    per_class = [share_right(finetuned.workdir / TRAININGS[2], test[labels[test] == c]) for c in range(CLASSES)]
    assert finetuned.figures["finetune_mean_class"] == pytest.approx(np.mean(per_class))
    assert finetuned.figures["finetune_top5"] == 1  # of three classes
    for name, figure in ((TRAININGS[0], "validation_top1_lr_0"), (TRAININGS[1], "validation_top1_lr_3")):
        right = share_right(finetuned.workdir / name, held_out(finetuned.workdir / name))
        assert finetuned.figures[figure] == pytest.approx(right)


def test_finetune_chooses_the_best_validation_rate(finetuned):
    # At a rate of 0 the classifier stays 0: all classes tie, and nothing counts as recognised.
    assert finetuned.figures["validation_top1_lr_0"] == 0 < finetuned.figures["validation_top1_lr_3"]
    assert finetuned.figures["learning_rate"] == FAST
    assert not (finetuned.workdir / "labels_100" / "lr_0" / "final").exists()


def test_finetune_breaks_rate_ties_by_cross_entropy(tmp_path, finetuned, monkeypatch):
    labels, losses = procedural().labels, {}
    for rate, name in ((0.0, TRAININGS[0]), (FAST, TRAININGS[1])):
        rows = held_out(finetuned.workdir / name)
        logits = predict(finetuned.workdir / name, rows).astype(np.float64)
        likelihoods = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses[rate] = -np.log(likelihoods[np.arange(len(rows)), labels[rows]]).mean()
    worse, better = sorted(losses, key=losses.get, reverse=True)
    assert losses[worse] > losses[better] + 1e-3
    monkeypatch.setattr(finetune, "accuracy", lambda *args: accuracy(*args) | {"top1": 0.5})
    # The first of the list would be the worse.
    figures = finetune.finetune(tiny((worse, better)), shutil.copytree(finetuned.workdir, tmp_path / "run"))
    assert figures["learning_rate"] == better


def test_each_training_reads_only_its_own_images(finetuned):
    source = procedural()
    assert tuple(finetuned.trainings) == TRAININGS
    for name, training in finetuned.trainings.items():
        assert training.read == set(images_of(finetuned.workdir / name))
    validation, again, final = (finetuned.trainings[name].read for name in TRAININGS)
    # All rates are tried on the same part, two images of each class, and the last training has these too.
    assert validation == again
    assert final == set(source.splits["train"])
    held = sorted(final - validation)
    assert [int((source.labels[held] == c).sum()) for c in range(CLASSES)] == [2, 2, 2]


def test_trainings_start_from_one_random_backbone(finetuned, tmp_path):
    starts = [training.start for training in finetuned.trainings.values()]
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


def test_zero_rate_moves_no_parameter_and_another_moves_all(finetuned):
    start = finetuned.trainings[TRAININGS[0]].start
    assert_equal_trees(final_state(finetuned.workdir / TRAININGS[0]).network.params, start.params)
    for (path, leaf), before in zip(
        jax.tree.leaves_with_path(final_state(finetuned.workdir / TRAININGS[2]).network.params),
        jax.tree.leaves(start.params),
        strict=True,
    ):
        assert np.any(leaf != before), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_test_labels_do_not_affect_training_or_rate(tmp_path, finetuned, monkeypatch):
    source = procedural()
    test, labels = source.splits["test"], source.labels.copy()
    labels[test] = np.arange(len(test)) % 2  # also a network that always says the same is right otherwise
    load = settings.load_source
    monkeypatch.setattr(settings, "load_source", lambda data: dataclasses.replace(load(data), labels=labels))
    figures = finetune.finetune(tiny(), tmp_path / "run")
    for name in TRAININGS:
        assert_equal_trees(final_state(tmp_path / "run" / name), final_state(finetuned.workdir / name))
    tested = {"finetune_top1", "finetune_mean_class"}
    rest = figures.keys() - tested
    assert {name: figures[name] for name in rest} == {name: finetuned.figures[name] for name in rest}
    # They did count: the figures are those of the shuffled labels.
    right = share_right(finetuned.workdir / TRAININGS[2], test, labels)
    assert figures["finetune_top1"] == pytest.approx(right)
    assert figures["finetune_top1"] != finetuned.figures["finetune_top1"]


def test_finished_finetuning_is_not_retrained(tmp_path, finetuned, monkeypatch):
    workdir = shutil.copytree(finetuned.workdir, tmp_path / "run")
    written = lambda: {p: p.stat().st_mtime_ns for p in workdir.rglob("ckpt/**/*") if p.is_file()}  # noqa: E731
    before, rows = written(), {name: logged(workdir / name) for name in TRAININGS}
    assert before and all(len(kept) == STEPS for kept in rows.values())
    shutil.rmtree(workdir / "report")

    def step(state, batch):
        raise AssertionError("trains")

    monkeypatch.setattr(finetune, "make_finetune_step", lambda *args: Step(step))
    assert finetune.finetune(tiny(), workdir) == finetuned.figures
    assert written() == before
    assert {name: logged(workdir / name) for name in TRAININGS} == rows
    assert json.loads((workdir / "report" / "results.json").read_text()) == finetuned.figures
    assert (workdir / "report" / "index.html").is_file()


@pytest.mark.slow
def test_resumed_finetuning_equals_uninterrupted_bit_for_bit(tmp_path, finetuned):
    workdir = tmp_path / "run"
    # Step 11 of the second validation, whose last checkpoint is of step 6, so twelve are left; then step 8 of the last
    # training.
    for count, name, step in ((STEPS + 11, TRAININGS[1], 11), (12 + 8, TRAININGS[2], 8)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            kill_at(patch, count)
            finetune.finetune(tiny(), workdir)
        assert [row["step"] for row in logged(workdir / name)] == list(range(1, step))
    assert finetune.finetune(tiny(), workdir) == finetuned.figures
    for name in TRAININGS:
        assert_equal_trees(final_state(workdir / name), final_state(finetuned.workdir / name))
        assert logged(workdir / name) == logged(finetuned.workdir / name)


@pytest.mark.slow
def test_cached_images_are_not_read_from_files(tmp_path, finetuned, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tiny(rates=(FAST,))
    config.data.cache = True
    with watched() as trainings:
        finetune.finetune(config, tmp_path / "run")
    assert not trainings[TRAININGS[2]].read
    # Squares of twice the size blur a crop a little.
    ours, files = (logged(folder / TRAININGS[2])[1]["train/loss"] for folder in (tmp_path / "run", finetuned.workdir))
    assert ours != files and ours == pytest.approx(files, rel=0.05)


@pytest.mark.slow
def test_label_fractions_train_on_nested_subsets(tmp_path, finetuned, capsys):
    workdir = shutil.copytree(finetuned.workdir, tmp_path / "run")
    config = tiny()
    config.label_fractions = (1.0, 0.3)
    with watched() as trainings:
        figures = finetune.finetune(config, workdir)
    # What has been trained stays, as the change does it no harm.
    changed = "was last started, which is finished and stays as it is: label_fractions: [1.0] -> [1.0, 0.3]\n"
    assert f"{TRAININGS[2]} {changed}" in capsys.readouterr().out
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
    assert figures.keys() - finetuned.figures.keys() == named
    assert {name: figures[name] for name in finetuned.figures} == finetuned.figures
    right = share_right(workdir / folder / "final", source.splits["test"])
    assert figures["finetune_top1_at_30"] == pytest.approx(right)


def test_one_image_per_class_takes_the_middle_rate_without_validation(tmp_path):
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


@pytest.mark.slow
def test_diverging_rate_is_reported_and_left_out(tmp_path, finetuned, capsys):
    workdir = shutil.copytree(finetuned.workdir, tmp_path / "run")
    figures = finetune.finetune(tiny((1e20, 0.0, FAST)), workdir)
    assert figures == finetuned.figures
    printed = capsys.readouterr().out
    assert "learning rate 1e+20 is out: step " in printed
    assert "learning rate 0: 0.0 % on 6 validation images" in printed


def test_divergence_of_all_rates_is_an_error(tmp_path, monkeypatch):
    def step(state, batch):  # real ones would each be compiled
        return state.replace(step=state.step + 1), {"loss": jnp.array(jnp.nan), "grad_norm": jnp.zeros(())}

    monkeypatch.setattr(finetune, "make_finetune_step", lambda *args: Step(step))
    with pytest.raises(UserError, match=r"diverged at each of config\.learning_rates=\(1e\+20, 2e\+20\): give lower"):
        finetune.finetune(tiny((1e20, 2e20)), tmp_path / "several")
    with pytest.raises(Diverged, match=r"^step 1: loss nan"):
        finetune.finetune(tiny((1e20,)), tmp_path / "one")
    assert not (tmp_path / "several" / "report").exists() and not (tmp_path / "one" / "report").exists()


def test_finetuned_network_predicts_and_exports(tmp_path, finetuned, mesh_of):
    network = frozen.load(str(finetuned.workdir), mesh_of(1))
    source = settings.load_source(tiny().data)
    evaluator = Evaluator(network.model, mesh_of(1), source, network.spec())
    test = source.split("test")
    scores = logits(finetune._head(network.network), evaluator.features(network.network, test))
    # It is the network whose accuracy the run reported.
    assert (scores.argmax(1) == source.labels[test]).mean() == finetuned.figures["finetune_top1"]
    assert network.classes == source.classes
    for i in test:
        place = tmp_path / "new" / source.names[i]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(source.read(int(i)))
    with few_devices(1, embed):
        options = embed.Options(vectors="none", predict=2)
        embed.embed(str(finetuned.workdir), str(tmp_path / "new" / "test"), str(tmp_path / "p.npz"), options)
        with pytest.raises(UserError, match="trained on averaged features"):
            attended = dataclasses.replace(options, pooling=embed.Pooling("attention"))
            embed.embed(str(finetuned.workdir), str(tmp_path / "new" / "test"), str(tmp_path / "a.npz"), attended)
    with np.load(tmp_path / "p.npz") as found:
        assert found["predicted"].shape == found["probabilities"].shape == (len(test), 2) and "vectors" not in found
        order = [f"test/{name}" for name in found["names"]]
        rows = np.array([list(source.names).index(name) for name in order]) - test[0]
        assert found["predicted"][:, 0].tolist() == [source.classes[k] for k in scores[rows].argmax(1)]
        shares = np.exp(scores[rows]) / np.exp(scores[rows]).sum(1, keepdims=True)
        np.testing.assert_allclose(found["probabilities"], -np.sort(-shares, 1)[:, :2], rtol=1e-4)
    with few_devices(1, weights):
        weights.export_run(str(finetuned.workdir), tmp_path / "out", ("safetensors",), "none")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    head = finetune._head(network.network)
    np.testing.assert_array_equal(tensors["fc.weight"], head[:-1].T)
    np.testing.assert_array_equal(tensors["fc.bias"], head[-1])
    assert "Fine-tuned with labels, from random weights" in (tmp_path / "out" / "README.md").read_text()
