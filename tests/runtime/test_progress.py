import sys
import types

import pytest

from cvsa_jax.runtime import progress
from cvsa_jax.runtime.progress import Progress


class Clock:
    """Moves only when a test moves it."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def test_progress_line(clock, capsys):
    line = Progress("train", 1000, per_count=4)
    clock.now += 10
    line.update(101)  # a run resumed at 100, compiled for 10 s: its rate counts from here
    assert capsys.readouterr().out == ""
    clock.now += 20
    line.update(111, "loss 1.234")
    assert capsys.readouterr().out == "train 111/1000  2.0 images/s  29:38 left  loss 1.234\n"
    clock.now += 10
    line.update(200)
    assert capsys.readouterr().out == ""
    clock.now += 1000
    line.update(1000)
    # 899 done in 1030 s.
    assert capsys.readouterr().out == "train 1000/1000  3.5 images/s  17:20 in all\n"


def test_progress_of_a_single_update_has_no_rate(clock, capsys):
    line = Progress("features", 40)
    clock.now += 6
    line.update(40)
    assert capsys.readouterr().out == "features 40/40  0:06 in all\n"


def test_progress_with_hours_left(clock, capsys):
    line = Progress("maps", 7200, unit="maps")
    line.update(0)
    clock.now += 60
    line.update(60)
    assert capsys.readouterr().out == "maps 60/7200  1.0 maps/s  1:59:00 left\n"


def test_progress_of_quick_work_prints_nothing(clock, capsys):
    line = Progress("features", 3)
    for done in (1, 2, 3):
        clock.now += 0.9
        line.update(done)
    assert capsys.readouterr().out == ""


def test_progress_on_a_terminal_rewrites_its_line(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    line = Progress("train", 10)
    for done in (1, 2, 3):
        line.update(done)
        clock.now += 0.5
    assert (
        capsys.readouterr().out
        == "\r\x1b[Ktrain 2/10  2.0 images/s  0:04 left\r\x1b[Ktrain 3/10  2.0 images/s  0:03 left"
    )
    clock.now += 3
    line.update(10)
    assert capsys.readouterr().out.endswith("0:04 in all\n")
