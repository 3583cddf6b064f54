"""Work over processes: the order, the processes, and their end with that of their parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.boxes import box_score
from cvsa_jax.runtime.workers import CORES, in_threads, over_cores

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("alone", [True, False], ids=["one process", "processes"])
def test_results_keep_the_order_of_the_items(alone):
    items = ((k, 2) for k in range(23))
    assert list(over_cores(pow, items, chunk=4, alone=alone)) == [k**2 for k in range(23)]


@pytest.mark.skipif(CORES == 1, reason="one core: no other processes")
def test_work_is_done_by_other_processes_that_do_not_import_the_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom cvsa_jax.runtime.workers import over_cores\nprint('script')\n"
        "print(os.getpid() in over_cores(os.getpid, [()] * 8, chunk=1))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.fspath(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["script", "False"]


@pytest.mark.skipif(CORES == 1 or not os.path.isdir("/proc"), reason="needs two cores and /proc")
def test_processes_end_when_their_parent_is_killed(tmp_path):
    script = "import os, time\nfrom cvsa_jax.runtime.workers import over_cores\n"
    script += "print(*set(over_cores(os.getpid, [()] * 8, chunk=1)), flush=True)\ntime.sleep(300)"
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    children = list(map(int, parent.stdout.readline().split()))
    assert children and all(os.path.exists(f"/proc/{child}") for child in children)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 60
    while any(_runs(child) for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_runs(child) for child in children)


def _runs(process: int) -> bool:
    """Whether it is there, and is not the rest of one that nobody waited for."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_localisation_is_the_same_in_one_process_and_in_several(monkeypatch):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(9, 4, 4)).astype(np.float32)
    masks = rng.random((9, 16, 16)) < 0.3
    masks[3] = False
    boxes = np.tile([0.2, 0.1, 0.7, 0.8], (9, 1))
    alone = localization.score(maps, masks) | box_score(maps, boxes, 16)
    monkeypatch.setattr(localization, "FEW", 0)
    monkeypatch.setattr("cvsa_jax.evaluation.boxes.FEW", 0)
    assert localization.score(maps, masks) | box_score(maps, boxes, 16) == alone


def test_threads_keep_the_order_and_read_only_a_little_ahead():
    taken, done = [], []

    def items():
        for k in range(100):
            taken.append(k)
            yield k

    second_done = threading.Event()

    def later_ones_end_sooner(k: int) -> int:
        if k == 0 and CORES > 1:
            assert second_done.wait(timeout=60)
        if k == 1:
            second_done.set()
        return k**2

    for result in in_threads(later_ones_end_sooner, items(), ahead=3):
        done.append(result)
        assert len(taken) <= len(done) + 3 + CORES
    assert done == [k**2 for k in range(100)]


def test_threads_end_with_their_consumer_and_at_an_error():
    def work(k: int) -> int:
        if k == 3:
            raise ValueError("three")
        return k

    stream = in_threads(work, iter(range(10**9)), ahead=2)
    assert next(stream) == 0
    stream.close()
    with pytest.raises(ValueError, match="three"):
        list(in_threads(work, range(5), ahead=2))
