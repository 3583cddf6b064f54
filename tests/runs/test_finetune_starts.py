"""Where fine-tuning starts, and what it refuses."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from support.comparing import assert_equal_trees
from support.finetuning import CLASSES, TRAININGS, copies_of, final_state, procedural, start_of, tiny, watched
from support.running import Step, drifting, logged
from support.torch_files import torch_weights, write

from configs import cub_finetune, demo, folder_finetune
from cvsa_jax import settings
from cvsa_jax.runs import finetune, pretrain
from cvsa_jax.runtime import checks
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import checkpoint
from cvsa_jax.training.state import Network, empty_network

pytestmark = pytest.mark.usefixtures("small_finetuning")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pre-training run of the network of `tiny`, whose steps are made up."""
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    config = demo.get_config("byol")
    config.data.procedural.update(tiny().data.procedural)
    config.views.size, config.model = 32, tiny().model
    config.model.update(head_hidden=16, head_out=8)
    config.batch_size, config.total_steps, config.optim.warmup_steps, config.watch.knn_steps = 8, 2, 1, 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "make_train_step", lambda *args, **kwargs: Step(drifting))
        patch.setattr(pretrain, "report_run", lambda *args, **kwargs: {})
        pretrain.train(config, workdir)
    like = empty_network(settings.model(config.model))
    online, _ = checkpoint.restore_online(workdir, like, finetune.make_mesh())
    return workdir, copies_of(online)


def assert_backbone(network: Network, expected: Network):
    assert_equal_trees(network.params["backbone"], expected.params["backbone"])
    assert_equal_trees(network.batch_stats["backbone"], expected.batch_stats["backbone"])


@pytest.mark.slow
def test_finetuning_starts_from_the_online_backbone_of_a_run(tmp_path, pretrained, capsys):
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
    assert f"M parameters from {workdir} at step 2\n" in printed


def test_finetuning_starts_from_a_weights_file(tmp_path, capsys):
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
    assert "loaded 45/45 backbone tensors" in printed and f"M parameters from {config.init_from}\n" in printed


def test_finetuning_from_scratch_prints_random_weights(tmp_path, capsys):
    start_of(tiny(), tmp_path)
    printed = capsys.readouterr().out
    assert "M parameters from random weights\n" in printed and "loaded" not in printed
    assert "24 train and 12 test images, 3 classes" in printed


@pytest.mark.slow
def test_finetuning_learns_from_labels(tmp_path):
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


def test_batch_not_divisible_by_devices_is_refused(tmp_path):
    config = tiny()
    config.batch_size = 7
    with pytest.raises(UserError, match=r"batch_size=7 does not divide by the 2 devices: take 6 or 8"):
        finetune.finetune(config, tmp_path)


@pytest.mark.parametrize("rates", [(), (0.1, 0.1), (-0.1, 0.1)], ids=["none", "equal", "negative"])
def test_invalid_learning_rates_are_refused(tmp_path, rates):
    with pytest.raises(UserError, match=r"config\.learning_rates=\(.*: give different rates, none negative"):
        finetune.finetune(tiny(rates), tmp_path)


@pytest.mark.parametrize("fractions", [(), (0.0, 1.0), (0.5, 1.1)], ids=["none", "zero", "above one"])
def test_invalid_label_fractions_are_refused(tmp_path, fractions):
    config = tiny()
    config.label_fractions = fractions
    with pytest.raises(UserError, match=r"config\.label_fractions=\(.*: give shares in \(0, 1\]"):
        finetune.finetune(config, tmp_path)


def test_warmup_as_long_as_the_training_is_refused(tmp_path):
    config = tiny()
    config.optim.warmup_epochs = 6.0
    with pytest.raises(UserError, match="the warm-up of 18 steps is not shorter than the run of 18"):
        finetune.finetune(config, tmp_path)


def test_init_from_must_be_a_pretraining_run(tmp_path, finetuned):
    config = tiny()
    config.init_from = str(tmp_path)
    with pytest.raises(UserError, match="is not the workdir of a run"):
        finetune.finetune(config, tmp_path / "run")
    for workdir in (finetuned.workdir, finetuned.workdir / TRAININGS[2]):
        config.init_from = str(workdir)
        with pytest.raises(UserError, match="is a run of mode 'finetune': a pre-training run is needed"):
            finetune.finetune(config, tmp_path / "run")


def test_workdir_of_another_network_batch_or_seed_is_refused(tmp_path, finetuned):
    workdir = shutil.copytree(finetuned.workdir, tmp_path / "run")
    for key, value, change in (
        ("model", {"width": 4}, r"model\.width: 8 -> 4"),
        ("batch_size", 16, r"batch_size: 8 -> 16"),
        ("seed", 1, r"seed: 0 -> 1"),
        ("data", {"procedural": {"seed": 1}}, r"data\.procedural\.seed: 0 -> 1"),
    ):
        config = tiny()
        config.update({key: value})
        with pytest.raises(UserError, match=rf"validation holds a run with another config:\n  {change}"):
            finetune.finetune(config, workdir)


def test_workdir_of_other_data_is_refused(tmp_path, finetuned, monkeypatch):
    workdir = shutil.copytree(finetuned.workdir, tmp_path / "run")
    source = procedural()
    # Another picture under an old name; and the same pictures, one of which is no longer for training.
    fewer = source.splits | {"train": source.splits["train"][1:]}
    for change in ({"identify": lambda kind: "other"}, {"splits": fewer}):
        changed = dataclasses.replace(source, **change)
        monkeypatch.setattr(settings, "load_source", lambda data, changed=changed: changed)
        with pytest.raises(
            UserError, match=r"was trained on other data \(.*\).*: restore the data or take another --workdir"
        ):
            finetune.finetune(tiny(), workdir)


def test_config_file_options_set_their_keys():
    plain, large, scratch, small = (folder_finetune.get_config(arg) for arg in ("", "448", "scratch", "small"))
    assert (plain.mode, plain.optim.name, plain.views.size, plain.model.depth) == ("finetune", "sgd", 224, 50)
    assert plain.eval.size is None  # so that of the views
    assert large.views.size == 448 and large.learning_rates == plain.learning_rates
    assert settings.evaluation(large.eval, large).resize == 512
    assert min(scratch.learning_rates) > min(plain.learning_rates)
    assert max(scratch.learning_rates) > max(plain.learning_rates)
    assert scratch.total_epochs > plain.total_epochs and scratch.optim.warmup_epochs > 0 == plain.optim.warmup_epochs
    assert (small.views.size, small.eval.size, small.model.depth, small.model.stem) == (64, 64, 8, "small")
    both = folder_finetune.get_config("small,scratch")
    assert both.model == small.model and both.total_epochs == scratch.total_epochs
    # Every rate of the sweep is a rate of its own, and each file names its data.
    for config in (plain, large, scratch, small, both):
        checks.learning_rates("config.learning_rates", config.learning_rates)
        assert config.data.kind == "folder" and config.init_from == ""
    cub = cub_finetune.get_config("448")
    assert (cub.data.kind, cub.views.size, cub.mode) == ("cub", 448, "finetune")
    with pytest.raises(ValueError, match="unknown option large; known: 448, scratch, small"):
        folder_finetune.get_config("large")
