"""Runs of real processes that talk over loopback, and what interrupts them."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tiny_run
from benchmarks.tiny_run import ended, final_state, kill, wait_for_step
from cvsa_jax.runtime.lock import Lock
from cvsa_jax.training.log import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """launch(workdirs, devices, steps): one process for each workdir, with so many simulated devices each."""
    shared, running = tmp_path_factory.mktemp("shared"), []
    tiny_run.make_store(shared / "store")

    def start(workdirs: list[Path], devices: int, steps: int):
        started = tiny_run.start(workdirs, shared / "store", shared / "xla", devices=devices, steps=steps)
        running.extend(started)
        return started

    yield start
    for process in running:
        process.kill()


def assert_equal(found: dict, expected: dict, tolerance: float = 0) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=tolerance, atol=tolerance, err_msg=name)


def assert_same_training(found: dict, expected: dict, before: dict) -> None:
    """The parameters of two runs lie nearer to each other than 2 % of the way that they went since a checkpoint.

    Sums in another order differ in their last bits, and now and then a unit at the kink of its ReLU then makes a jump
    of it: up to 0.1 % of the way was seen. One batch more or less makes 20 %.
    """
    found, expected, before = (
        np.concatenate([values.ravel() for name, values in sorted(state.items()) if name.startswith(".online.params")])
        for state in (found, expected, before)
    )
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected - before)


def losses(workdir: Path) -> list[float]:
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["train/loss"] for row in rows]


STEPS = 60
# The words of JAX's library for collectives on the CPU, whose threads cut each other short.
GLOO = {"Gloo", "Rank", "is", "connected", "to", "peer", "ranks", "Expected", "number", "of"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, launch):
    """A run of one process with four devices that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ended(launch([workdir], 4, STEPS))
    return workdir


@pytest.fixture(scope="module")
def together(tmp_path_factory, launch):
    """The same in two processes with two devices each."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    said = ended(launch([workdir] * 2, 2, STEPS))
    for k in (0, 1):
        assert f"process {k} of 2 on " in said[k] and ": 2 of 4 cpu device(s)" in said[k]
    # One of them speaks for both.
    assert "report: " in said[0]
    _, rest = said[1].split("\n", 1)
    assert set(re.findall("[A-Za-z]+", rest)) <= GLOO
    return workdir


def test_two_processes_train_as_one(tmp_path, launch):
    ended(launch([tmp_path / "one"], 4, 6))
    ended(launch([tmp_path / "two"] * 2, 2, 6))
    one, two = final_state(tmp_path / "one", 6), final_state(tmp_path / "two", 6)
    assert_equal(two, one, 1e-5)
    # The momentum, a sum of gradients, is equal too, and not small beside the tolerance.
    assert max(np.abs(values).max() for name, values in one.items() if "opt_state" in name and "kernel" in name) > 0.1
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    figures = [json.loads((tmp_path / run / "report/results.json").read_text()) for run in ("one", "two")]
    assert figures[0].keys() == figures[1].keys() and len(figures[0]) >= 5
    np.testing.assert_allclose(list(figures[1].values()), list(figures[0].values()), atol=0.02)


def test_two_processes_resume_after_one_is_killed(tmp_path, launch, together):
    workdir = tmp_path / "run"
    processes = launch([workdir] * 2, 2, STEPS)
    wait_for_step(workdir, 25, processes)
    kill(processes[::-1])
    said = ended(launch([workdir] * 2, 2, STEPS))
    assert f"{workdir} at step 20" in said[0]
    assert_equal(final_state(workdir, STEPS), final_state(together, STEPS))
    assert losses(workdir) == losses(together)


def test_signal_to_one_of_two_processes_saves_both_and_one_resumes(tmp_path, launch, alone):
    workdir = tmp_path / "run"
    processes = launch([workdir] * 2, 2, STEPS)
    wait_for_step(workdir, 5, processes)
    processes[1].send_signal(signal.SIGINT)  # which becomes the SIGTERM that JAX listens to
    said = ended(processes, 42)
    saved = [int(folder.name) for folder in (workdir / "ckpt").iterdir()]
    assert len(saved) == 1 and 5 < saved[0] < STEPS
    assert all(f"interrupted: step {saved[0]} of {STEPS} is saved in {workdir}." in text for text in said)
    before = final_state(workdir, saved[0])
    said = ended(launch([workdir], 4, STEPS))
    assert f"{workdir} at step {saved[0]}" in said[0]
    assert_same_training(final_state(workdir, STEPS), final_state(alone, STEPS), before)
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=0.01)


def test_two_processes_resume_the_interrupted_run_of_one(tmp_path, launch, alone):
    workdir = tmp_path / "run"
    processes = launch([workdir], 4, STEPS)
    wait_for_step(workdir, 5, processes)
    processes[0].send_signal(signal.SIGTERM)
    said = ended(processes, 42)
    (saved,) = [int(folder.name) for folder in (workdir / "ckpt").iterdir()]
    assert f"interrupted: step {saved} of {STEPS} is saved in {workdir}." in said[0] and 5 <= saved < STEPS
    before = final_state(workdir, saved)
    said = ended(launch([workdir] * 2, 2, STEPS))
    assert f"{workdir} at step {saved}" in said[0]
    assert_same_training(final_state(workdir, STEPS), final_state(alone, STEPS), before)
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=0.01)


def test_workdir_that_not_all_processes_see_is_refused(tmp_path, launch):
    said = ended(launch([tmp_path / "here", tmp_path / "there"], 1, 6), 2)
    for text in said:
        assert "of process 0 is not seen by process 1 of 2: all processes need the same folder" in text
    assert not (tmp_path / "here" / "ckpt").exists()


def test_workdir_in_use_is_refused_in_every_process(tmp_path, launch):
    held = Lock(tmp_path / "run")
    said = ended(launch([tmp_path / "run"] * 2, 1, 6), 2)
    held.release()
    assert f"{tmp_path / 'run'} is being written by process {os.getpid()}" in said[0]
    assert "process 0 cannot begin, for the reason that it gives" in said[1]
