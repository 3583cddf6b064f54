import json
import math
import sys
import types

import jax.numpy as jnp
import pytest

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import monitor
from cvsa_jax.training.monitor import FiniteCheck, Progress, Writer, named, read_metrics


class Clock:
    """Stands still unless told."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(monitor, "time", types.SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def test_progress_line(clock, capsys):
    progress = Progress("train", 1000, per_count=4)
    clock.now += 10
    progress.update(101)  # a run resumed at 100, compiled for 10 s: its rate counts from here
    assert capsys.readouterr().out == ""
    clock.now += 20
    progress.update(111, "loss 1.234")
    assert capsys.readouterr().out == "train 111/1000  2.0 images/s  29:38 left  loss 1.234\n"
    clock.now += 10
    progress.update(200)
    assert capsys.readouterr().out == ""
    clock.now += 1000
    progress.update(1000)
    # 899 done in 1030 s.
    assert capsys.readouterr().out == "train 1000/1000  3.5 images/s  17:20 in all\n"


def test_progress_with_hours_left(clock, capsys):
    progress = Progress("maps", 7200, unit="maps")
    progress.update(0)
    clock.now += 60
    progress.update(60)
    assert capsys.readouterr().out == "maps 60/7200  1.0 maps/s  1:59:00 left\n"


def test_quick_work_leaves_no_line(clock, capsys):
    progress = Progress("features", 3)
    for done in (1, 2, 3):
        clock.now += 0.9
        progress.update(done)
    assert capsys.readouterr().out == ""


def test_progress_on_a_terminal_rewrites_its_line(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    progress = Progress("train", 10)
    for done in (1, 2, 3):
        progress.update(done)
        clock.now += 0.5
    assert (
        capsys.readouterr().out
        == "\r\x1b[Ktrain 2/10  2.0 images/s  0:04 left\r\x1b[Ktrain 3/10  2.0 images/s  0:03 left"
    )
    clock.now += 3
    progress.update(10)
    assert capsys.readouterr().out.endswith("0:04 in all\n")


def test_metrics_are_appended_and_read(tmp_path):
    workdir = tmp_path / "run"
    writer = Writer(workdir, 0)
    writer.write(1, {"loss": 0.5})
    assert read_metrics(workdir) == [{"step": 1, "loss": 0.5}]  # readable while the run goes on
    writer.write(2, {"loss": 0.25, "tau": 1.0})
    writer.close()
    assert read_metrics(workdir) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "tau": 1.0}]
    assert list((workdir / "tensorboard").iterdir())


def test_resume_drops_rows_after_its_start(tmp_path):
    writer = Writer(tmp_path, 0)
    for step in (10, 20, 30, 40):
        writer.write(step, {"loss": 1.0})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    writer = Writer(tmp_path, 20)
    writer.write(30, {"loss": 2.0})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 1.0},
        {"step": 30, "loss": 2.0},
    ]


@pytest.mark.parametrize("cut", ["{", '{"step": 2', '{"step": 2, "loss": 0.', '{"step": 2, "loss": 0.5'])
def test_last_line_cut_off_by_a_kill(tmp_path, cut):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n' + cut)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]


def test_metrics_of_a_run_without_any(tmp_path):
    assert read_metrics(tmp_path) == []


def values(loss: float = 1.0, grad_norm: float = 1.0) -> dict:
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(grad_norm), "tau": jnp.float32(math.nan)}


def test_finite_steps_pass():
    finite = FiniteCheck()
    for step in range(1, 4):
        finite.add(step, values())
    finite.check(None)
    finite.check(2)


@pytest.mark.parametrize(
    "bad", [{"loss": math.nan}, {"loss": -math.inf}, {"grad_norm": math.inf}, {"grad_norm": math.nan}]
)
def test_first_step_that_is_not_finite_is_named(bad):
    finite = FiniteCheck()
    finite.add(5, values())
    finite.check(4)
    for step in range(6, 10):
        finite.add(step, values(**bad if step == 7 else {"loss": math.nan} if step > 7 else {}))
    with pytest.raises(UserError, match=r"^step 7: .*the last checkpoint, step 4, is intact"):
        finite.check(4)


def test_not_finite_before_the_first_checkpoint():
    finite = FiniteCheck()
    finite.add(1, values(loss=math.nan))
    with pytest.raises(UserError, match=r"^step 1: loss nan, gradient norm 1\.0.*no checkpoint"):
        finite.check(None)


class Board:
    """In the place of the package wandb."""

    def __init__(self):
        self.calls = []

    def init(self, **given):
        self.calls.append(given)
        return self

    def log(self, metrics, step):
        self.calls.append((step, metrics))

    def finish(self):
        self.calls.append("finished")


def test_figures_also_go_to_weights_and_biases(tmp_path, monkeypatch):
    board = Board()
    monkeypatch.setitem(sys.modules, "wandb", board)
    for start in (0, 1):  # a run and its continuation
        writer = Writer(tmp_path / "run", start, "birds")
        writer.write(start + 1, {"train/loss": 0.5})
        writer.close()
    first, logged, finished, again = board.calls[:4]
    assert first == again and first["project"] == "birds" and first["name"] == "run" and first["resume"] == "allow"
    assert logged == (1, {"train/loss": 0.5}) and finished == "finished"
    other = Writer(tmp_path / "other", 0, "birds")
    other.close()
    assert board.calls[-2]["id"] != first["id"]


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"config\.wandb_project needs Weights & Biases: pip install wandb"):
        Writer(tmp_path, 0, "birds")
    Writer(tmp_path, 0).close()


def test_metrics_of_a_step_have_the_names_of_the_log():
    names = named({"loss": jnp.float32(2), "grad_norm": jnp.float32(3), "align_hit": jnp.float32(0.5)})
    assert names == {"train/loss": 2.0, "health/grad_norm": 3.0, "health/align_hit": 0.5}
