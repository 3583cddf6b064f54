"""Runs, checkpoints and a saliency store made by the commit c2e6efd are read, continued and evaluated.

`runs_c2e6efd.tar.gz` was made there on a CPU: a store, and the halves of a pre-training, a fine-tuning and a detector
(of their checkpoints only those in the middle), with the logs and figures of the whole runs.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from configs import common
from cvsa_jax import settings
from cvsa_jax.runs import finetune, linear, pretrain, saliency_unet
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detectors.annotation import masks
from cvsa_jax.saliency.store import SaliencyStore
from cvsa_jax.training.log import read_metrics
from cvsa_jax.training.resume import BEFORE

ARCHIVE = Path(__file__).with_name("runs_c2e6efd.tar.gz")
CONFIGS = {
    "pretrain": common.pretrain,
    "linear": common.linear,
    "finetune": common.finetune,
    "unet": common.saliency_unet,
}


@pytest.fixture(autouse=True)
def earlier(tmp_path, monkeypatch, mesh_of) -> Path:
    """The unpacked runs, in the current folder; one device, as there."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    one = mesh_of(1)
    for module in (pretrain, linear, finetune, saliency_unet):
        monkeypatch.setattr(module, "make_mesh", lambda: one)
    return tmp_path


def config_of(kind: str):
    """Today's config with the values that the run had."""
    config = CONFIGS[kind]()
    values = json.loads(Path("configs.json").read_text())[kind]
    config.update(values)
    config.data.shuffle_rounds = BEFORE["data.shuffle_rounds"]
    if kind == "pretrain":
        config.views.hole = BEFORE["views.hole"]
        config.model.head_bias = BEFORE["model.head_bias"]
        config.target.reference_batch = config.batch_size
    return config


def rows_of(workdir: Path, first: int) -> list[dict]:
    """The log from a step on, without figures of speed and what later commits add."""
    return [row for row in read_metrics(workdir) if row["step"] >= first]


def assert_same_log(rows: list[dict], expected: list[dict]) -> None:
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, before in zip(rows, expected, strict=True):
        figures = {key: value for key, value in before.items() if not key.startswith("perf/")}
        # Since then the views, of 16 px, are rounded after each axis, and convolutions otherwise; the gradient of a
        # network of four channels shows it most.
        grad_norm = figures.pop("health/grad_norm", None)
        assert {key: row[key] for key in figures} == pytest.approx(figures, rel=2e-2, abs=1e-5)
        assert grad_norm is None or row["health/grad_norm"] == pytest.approx(grad_norm, rel=0.2)


def assert_same_figures(figures: dict[str, float], kind: str) -> None:
    expected = json.loads(Path("figures.json").read_text())[kind]
    assert figures.keys() >= expected.keys()
    # One of 12 test images may fall on the other side after the last steps' rounding.
    assert {key: figures[key] for key in expected} == pytest.approx(expected, rel=0.02, abs=1 / 12 + 1e-6)


def test_saliency_store(earlier):
    source = settings.load_source(config_of("pretrain").data)
    store, detector = SaliencyStore(earlier / "store", source), masks(source)
    assert store.manifest["detector"] == "masks" and len(store) == len(source) == 30
    (detection,) = detector.detect([detector.prepare(7, None)])
    stored = store[np.array([7])][0]
    assert stored.shape == (64, 64) and stored.max() == 255
    assert abs(stored.mean() / 255 - detection.saliency.mean()) < 0.01


def test_pretraining_is_continued(earlier):
    expected = rows_of(earlier / "cvsa", 1)
    assert len(expected) == 6
    figures = pretrain.train(config_of("pretrain"), earlier / "cvsa")
    assert_same_log(rows_of(earlier / "cvsa", 1), expected)
    assert_same_figures(figures, "pretrain")


def test_pretraining_is_probed(earlier):
    pretrain.train(config_of("pretrain"), earlier / "cvsa")
    assert_same_figures(linear.linear_probe(config_of("linear"), earlier / "linear"), "linear")


def test_fine_tuning_is_continued(earlier):
    workdir = earlier / "finetuned" / "labels_100" / "lr_0.1" / "final"
    expected = rows_of(workdir, 1)
    assert len(expected) == 4
    figures = finetune.finetune(config_of("finetune"), earlier / "finetuned")
    assert_same_log(rows_of(workdir, 1), expected)
    assert_same_figures(figures, "finetune")


def test_detector_is_continued(earlier):
    expected = rows_of(earlier / "unet", 1)
    assert len(expected) == 4
    figures = saliency_unet.train_unet(config_of("unet"), earlier / "unet")
    assert_same_log(rows_of(earlier / "unet", 1), expected)
    assert_same_figures(figures, "unet")


@pytest.mark.parametrize(
    ("key", "today", "change"),
    [
        ("views.hole", "cover", "size -> cover"),
        ("data.shuffle_rounds", 8, "4 -> 8"),
        ("target.reference_batch", 4096, "8 -> 4096"),
        ("model.head_bias", False, "True -> False"),
    ],
)
def test_what_a_run_did_before_a_key_existed_is_named(earlier, key, today, change):
    config = config_of("pretrain")
    config.update_from_flattened_dict({key: today})
    with pytest.raises(UserError, match=rf"{key}: {change}"):
        pretrain.train(config, earlier / "cvsa")
