"""Errors that are known beforehand come before the work, and what was measured is not lost."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
from support.compiling import few_devices
from support.finetuning import tiny as tiny_finetuning
from support.running import Step, idle
from support.tiny_runs import tiny, tiny_probe

from cvsa_jax import settings
from cvsa_jax.data.index import example_order
from cvsa_jax.data.sources import load, procedural
from cvsa_jax.evaluation import evaluator as summary
from cvsa_jax.runs import compare, data_check, embed, finetune, linear, pretrain
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import write_json_atomically
from cvsa_jax.saliency.unet import pairs
from cvsa_jax.training.log import read_metrics
from cvsa_jax.training.resume import read_config
from cvsa_jax.weights import frozen

pytestmark = pytest.mark.usefixtures("on_one_device")


@pytest.fixture
def unread(monkeypatch):
    """Nothing may be measured."""
    monkeypatch.setattr(compare, "compare", lambda *args, **kwargs: pytest.fail("it was measured"))
    monkeypatch.setattr(summary.Evaluator, "recognition", lambda *args, **kwargs: pytest.fail("it was measured"))


def probe_of(root, split: bool = True):
    config = tiny_probe()
    config.data.kind, config.data.root = "folder", str(root)
    if not split:
        config.data.train_split = config.data.test_split = "all"
    return config


def test_unwritable_output_is_refused_before_measuring(tmp_path, run, unread):
    (tmp_path / "file").write_text("")
    config = tiny_probe()
    config.init_from = str(run)
    with pytest.raises(UserError, match=r"--workdir: the folder .* cannot be made"):
        linear.linear_probe(config, tmp_path / "file")
    with pytest.raises(UserError, match=r"--out: the folder .* cannot be made"):
        data_check.check(config, tmp_path / "file", None, False)


def test_report_of_a_run_is_not_overwritten(tmp_path, run, unread):
    before = (run / "report" / "results.json").read_text()
    with pytest.raises(UserError, match=r"--out: .* is the workdir of a run, whose report would be overwritten"):
        compare.compare_runs(tiny_probe(), [str(run)], run)
    with pytest.raises(UserError, match=r"is the workdir of a run"):
        data_check.check(tiny(), run, 0, False)
    assert (run / "report" / "results.json").read_text() == before


def test_candidate_named_perf_is_refused(tmp_path, run, unread):
    with pytest.raises(UserError, match="names tell the rows apart, also from chance, center_prior and perf"):
        compare.compare_runs(tiny_probe(), [f"perf={run}"], tmp_path)


def test_boxes_outside_images_are_refused_before_measuring(tmp_path, folder, run, unread):
    root = shutil.copytree(folder, tmp_path / "set")
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    rows = [f'"{name}",0,0,10,{900 if k == 3 else 10}' for k, name in enumerate(names)]
    (root / "boxes.csv").write_text("\n".join(["image,x,y,width,height", *rows]) + "\n")
    with pytest.raises(UserError, match=rf"the box of .*{names[3].split('/')[-1]} .* does not lie in it"):
        compare.compare_runs(probe_of(root, split=False), [str(run)], tmp_path / "out")


def test_feature_file_with_augmented_probe_is_refused_before_measuring(tmp_path, run, unread):
    source = settings.load_source(tiny_probe().data)
    np.savez(tmp_path / "f.npz", names=np.array(source.names), vectors=np.ones((len(source), 3), np.float32))
    config = tiny_probe()
    config.probe.augmented = True
    with pytest.raises(UserError, match=r"f\.npz: features of whole images; config\.probe\.augmented needs networks"):
        compare.compare_runs(config, [str(run), str(tmp_path / "f.npz")], tmp_path / "out")


def test_compare_keeps_measured_figures_when_a_later_entry_fails(tmp_path, run, monkeypatch):
    source = settings.load_source(tiny_probe().data)
    patches = np.full((len(source), 2, 2, 3), np.nan, np.float32)
    vectors = np.random.default_rng(0).normal(size=(len(source), 3)).astype(np.float32)
    np.savez(tmp_path / "f.npz", names=np.array(source.names), vectors=vectors, patches=patches)
    with pytest.raises(UserError, match="`patches` must be"):
        compare.compare_runs(tiny_probe(), [f"ours={run}", str(tmp_path / "f.npz")], tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "report" / "results.json").read_text())
    assert kept["ours"].keys() >= {"linear_top1", "knn_top1"}


@pytest.mark.slow
def test_compare_on_one_test_image_writes_valid_json(tmp_path, run):
    config = tiny_probe()
    config.data.procedural.update(classes=2, test_per_class=1)
    source = settings.load_source(config.data)
    one = source.splits | {"test": source.splits["test"][:1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "load_source", lambda data: dataclasses.replace(source, splits=one))
        compare.compare_runs(config, [str(run)], tmp_path / "out")
    text = (tmp_path / "out" / "report" / "results.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_write_json_writes_nonfinite_numbers_as_null(tmp_path):
    write_json_atomically(tmp_path / "x.json", {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": (2, "e")}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.0, None], "c": {"d": [2, "e"]}}


# Weights that give no finite features, and runs on other images.


def test_network_with_nonfinite_features_is_refused(tmp_path, run, monkeypatch):
    load = frozen.load

    def broken(origin, mesh):
        found = load(origin, mesh)
        worse = jax.tree.map(lambda leaf: -abs(leaf) - 1, found.network.batch_stats)
        return found._replace(network=found.network.replace(batch_stats=worse))

    monkeypatch.setattr(frozen, "load", broken)
    config = tiny_probe()
    config.init_from = str(run)
    with pytest.raises(UserError, match=r"numbers that are not finite, as for train/class_0"):
        linear.linear_probe(config, tmp_path / "out")


def test_pretrained_here_is_false_for_a_run_on_other_images(tmp_path, run):
    source, other = settings.load_source(tiny_probe().data), tiny_probe()
    other.data.procedural.seed = 5
    for data, here in ((source, True), (settings.load_source(other.data), False)):
        used = np.arange(len(data))
        found = frozen.candidate("run", str(run), data, tiny_probe().eval, pretrain.make_mesh(), used)
        assert found.pretrained_here is here


# Going on.


def continued(config, workdir, **changes):
    again = config.copy_and_resolve_references()
    again.update_from_flattened_dict(changes)
    again.total_steps += 1
    return pretrain.train(again, workdir)


@pytest.fixture
def idle_steps(monkeypatch):
    monkeypatch.setattr(pretrain, "make_train_step", lambda *args, **kwargs: Step(idle))


@pytest.fixture
def short(monkeypatch, idle_steps):
    monkeypatch.setattr(pretrain, "report_run", lambda *args, **kwargs: {})


@pytest.mark.slow
def test_resume_accepts_respelled_or_moved_init_from_but_not_another_run(tmp_path, run, monkeypatch, short):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "runs" / "s1")
    config = tiny("byol")
    config.init_from, config.total_steps, config.optim.warmup_steps = "runs/s1", 2, 0
    pretrain.train(config, tmp_path / "run")
    for spelled in ("./runs/s1/", str(tmp_path / "runs" / "s1")):
        continued(config, tmp_path / "run", init_from=spelled)
        config.total_steps += 1
    shutil.move(tmp_path / "runs" / "s1", tmp_path / "elsewhere")
    continued(config, tmp_path / "run")  # the old name, which is not read
    config.total_steps += 1
    continued(config, tmp_path / "run", init_from="elsewhere")
    config.total_steps += 1
    other = tiny("byol")
    other.seed, other.total_steps, other.optim.warmup_steps = 3, 2, 0
    pretrain.train(other, tmp_path / "other")
    with pytest.raises(UserError, match=r"init_from: .* -> other"):
        continued(config, tmp_path / "run", init_from="other")
    with pytest.raises(UserError, match=r"init_from"):
        continued(config, tmp_path / "run", init_from="")


@pytest.mark.slow
def test_resume_may_skip_an_image_that_became_unreadable(tmp_path, folder, short):
    root = shutil.copytree(folder, tmp_path / "set")
    config = tiny("byol")
    config.data.kind, config.data.root, config.total_steps, config.batch_size = "folder", str(root), 6, 4
    config.checkpoint_steps, config.eval.knn = 1, ()
    # The image that comes last in the first epoch, of which the last batch begins with the next.
    source = settings.load_source(config.data)
    bad = root / source.names[example_order(np.arange(len(source)), len(source), config.seed)[-1]]
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    with pytest.raises(UserError, match=r"1 of 15 images .* One that has begun goes on with that as well"):
        pretrain.train(config, tmp_path / "run")
    assert any((tmp_path / "run" / "ckpt").iterdir())
    config.data.on_bad_image = "skip"
    pretrain.train(config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert read_config(str(tmp_path / "run")).data.on_bad_image == "skip"


def test_random_weights_note_is_only_for_new_runs():
    config = tiny()
    assert any("random weights" in note for note in settings.notes(config, 21))
    assert not any("random weights" in note for note in settings.notes(config, 21, begins=False))


def test_resumed_run_removes_results_of_an_earlier_step(tmp_path, run, monkeypatch):
    workdir, config = shutil.copytree(run, tmp_path / "run"), tiny("byol")
    assert (workdir / "report" / "results.json").is_file()
    monkeypatch.setattr(pretrain, "run_steps", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    config.total_steps += 1
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(config, workdir)
    assert not (workdir / "report" / "results.json").exists()


@pytest.mark.slow
def test_knn_excludes_the_test_image_itself(tmp_path, idle_steps, capsys):
    config = tiny("byol")
    config.data.train_split, config.total_steps, config.optim.warmup_steps = "all", 1, 0
    figures = pretrain.train(config, tmp_path / "run")
    assert figures["knn_top1_of_1"] < 1
    assert "15 of the 15 test images are train images as well" in capsys.readouterr().out


# Fine-tuning, and the U-Net.


def test_finetuning_uses_its_own_dtype_and_remat(tmp_path, run, monkeypatch):
    monkeypatch.setattr(finetune, "make_finetune_step", lambda *args: Step(idle))
    config = tiny_finetuning()
    config.init_from, config.model.dtype, config.model.remat = str(run), "bfloat16", True
    config.total_steps, config.learning_rates = 1, (0.1,)
    with few_devices(1, finetune):
        finetune.finetune(config, tmp_path / "tuned")
    told = json.loads((tmp_path / "tuned" / "model.json").read_text())
    assert (told["dtype"], told["remat"], told["width"]) == ("bfloat16", True, 4)


def test_learning_rates_with_equal_folder_names_are_refused(tmp_path):
    config = tiny_finetuning()
    config.learning_rates = (0.1, 0.10000004)
    with pytest.raises(UserError, match="different rates"):
        finetune.finetune(config, tmp_path / "tuned")


def test_make_pairs_does_not_overwrite_mapped_arrays(tmp_path):
    drawn = load("procedural", "", procedural.Spec(0, 2, 3, 1, 32))
    images, _ = pairs.make_pairs([(drawn, np.arange(4))], 16, tmp_path / "pairs")
    before = images[:].copy()
    pairs.make_pairs([(drawn, np.arange(2))], 16, tmp_path / "pairs")
    np.testing.assert_array_equal(images, before)


# Embeddings.


def test_concurrent_embedding_to_one_file_is_refused(tmp_path, run, folder, monkeypatch):
    out, options = tmp_path / "x.npz", embed.Options()
    features = embed.Evaluator.features
    said = []

    def slow(self, *args, **kwargs):
        if not said:
            said.append(True)
            with pytest.raises(UserError, match=r"shard-0-of-1 is being written by process"):
                embed.embed(str(run), str(folder), str(out), options)
        return features(self, *args, **kwargs)

    monkeypatch.setattr(embed.Evaluator, "features", slow)
    embed.embed(str(run), str(folder), str(out), options)
    assert said and out.is_file() and not (tmp_path / "x.npz.parts").exists()


def test_embedding_to_a_bucket_is_refused(run, folder):
    with pytest.raises(UserError, match=r"--out=gs://b/x\.npz: this is written to a disk"):
        embed.embed(str(run), str(folder), "gs://b/x.npz", embed.Options())


def test_csv_escapes_undecodable_file_names(tmp_path, run, folder):
    root = shutil.copytree(folder, tmp_path / "set")
    try:
        os.rename(root / "gull", root / os.fsdecode(b"caf\xe9"))
    except OSError:
        pytest.skip("this file system takes no such name")
    embed.embed(str(run), str(root), str(tmp_path / "x.csv"), embed.Options(vectors="none"))
    assert r"caf\udce9" in (tmp_path / "x.csv").read_text()
