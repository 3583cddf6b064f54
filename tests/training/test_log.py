import json
import sys

import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import log
from cvsa_jax.training.log import log_pictures, read_metrics, run_log


def test_metrics_are_appended_and_read(tmp_path):
    workdir = tmp_path / "run"
    with run_log(workdir, 0) as writer:
        writer.write_scalars(1, {"loss": 0.5})
        writer.flush()
        assert read_metrics(workdir) == [{"step": 1, "loss": 0.5}]  # readable while the run goes on
        writer.write_scalars(2, {"loss": 0.25, "tau": 1.0})
    assert read_metrics(workdir) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "tau": 1.0}]


def board_of(workdir) -> EventAccumulator:
    board = EventAccumulator(str(workdir / "tensorboard"), size_guidance={"tensors": 0})
    board.Reload()
    return board


def test_tensorboard_contains_scalars_settings_and_pictures(tmp_path):
    with run_log(tmp_path, 0, settings={"optim.lr": 0.5, "views.crop_area": [0.08, 1.0]}) as writer:
        writer.write_scalars(3, {"train/loss": 0.25})
    Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / "views.png")
    log_pictures(tmp_path, 3, {"views": tmp_path / "views.png"})
    board = board_of(tmp_path)
    (event,) = board.Tensors("train/loss")
    assert (event.step, float(tf.make_ndarray(event.tensor_proto))) == (3, 0.25)
    (event,) = board.Tensors("views")
    _, _, png = tf.make_ndarray(event.tensor_proto)
    picture = tf.io.decode_png(png).numpy()
    assert event.step == 3 and picture.shape == (4, 5, 3) and (picture == (255, 0, 0)).all()
    settings = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"optim.lr" in settings and b"views.crop_area" in settings and b"[0.08, 1.0]" in settings
    assert read_metrics(tmp_path) == [{"step": 3, "train/loss": 0.25}]


def test_resume_drops_rows_after_its_start(tmp_path):
    with run_log(tmp_path, 0) as writer:
        for step in (10, 20, 30, 40):
            writer.write_scalars(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    with run_log(tmp_path, 20) as writer:
        writer.write_scalars(30, {"loss": 2.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 1.0},
        {"step": 30, "loss": 2.0},
    ]


def test_failing_log_writer_warns_and_training_continues(tmp_path, monkeypatch, capsys):
    def full(self, step, scalars):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log.JsonLines, "write_scalars", full)
    with run_log(tmp_path, 0) as writer:
        for step in (1, 2):
            writer.write_scalars(step, {"loss": 1.0})
    said = capsys.readouterr().out
    assert said.count("warning: the log of ") == 1 and "No space left on device); the training goes on" in said
    # The other writers are not concerned.
    assert [event.step for event in board_of(tmp_path).Tensors("loss")] == [1, 2]


def test_read_metrics_skips_damaged_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, \n[3]\n{"loss": 1}\n{"step": 4}\n')
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 4}]
    with run_log(tmp_path, 4):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 4}\n'


def test_training_error_passes_through_run_log(tmp_path):
    with pytest.raises(ZeroDivisionError), run_log(tmp_path, 0) as writer:
        writer.write_scalars(1, {"loss": 1.0})
        raise ZeroDivisionError
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


@pytest.mark.parametrize("cut", ['{"step": 2', '{"step": 2, "loss": 0.5'], ids=["in a key", "before the brace"])
def test_read_metrics_skips_truncated_last_line(tmp_path, cut):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n' + cut)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]


def test_read_metrics_without_file_is_empty(tmp_path):
    assert read_metrics(tmp_path) == []


class Board:
    """In the place of the package wandb."""

    Image = staticmethod(lambda image: ("picture", image.shape))

    def __init__(self):
        self.calls = []
        self.config = self

    def init(self, **options):
        self.calls.append(options)
        return self

    def update(self, values, allow_val_change):
        self.calls.append(values)

    def log(self, metrics, step):
        self.calls.append((step, metrics))

    def finish(self):
        self.calls.append("finished")


def test_wandb_receives_scalars_settings_and_pictures(tmp_path, monkeypatch):
    board, workdir = Board(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", board)
    for start in (0, 1):  # a run and its continuation
        with run_log(workdir, start, "birds", {"seed": 3}) as writer:
            writer.write_scalars(start + 1, {"train/loss": 0.5})
    first, settings, logged, finished, again = board.calls[:5]
    assert first == again and first["project"] == "birds" and first["name"] == "run" and first["resume"] == "allow"
    assert settings == {"seed": 3} and logged == (1, {"train/loss": 0.5}) and finished == "finished"
    Image.new("RGB", (5, 4)).save(tmp_path / "views.png")
    log_pictures(workdir, 2, {"views": tmp_path / "views.png"}, "birds")
    assert board.calls[-2] == (2, {"views": ("picture", (4, 5, 3))})
    with run_log(tmp_path / "other", 0, "birds"):
        pass
    assert board.calls[-2]["id"] != first["id"]


def test_missing_wandb_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(UserError, match=r"config\.wandb_project needs Weights & Biases: pip install wandb"),
        run_log(tmp_path, 0, "birds"),
    ):
        pass
    with run_log(tmp_path, 0):
        pass


def test_log_without_tensorflow_writes_jsonl_and_warns(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "clu.metric_writers", None)  # what importing it raises without TensorFlow
    with run_log(tmp_path, 0, settings={"seed": 1}) as writer:
        writer.write_scalars(1, {"loss": 0.5})
    Image.new("RGB", (5, 4)).save(tmp_path / "views.png")
    log_pictures(tmp_path, 1, {"views": tmp_path / "views.png"})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert not (tmp_path / "tensorboard").exists()
    assert "without TensorFlow" in capsys.readouterr().out
