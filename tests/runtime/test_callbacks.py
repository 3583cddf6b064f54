import subprocess
import sys
import threading
import time

import pytest

from cvsa_jax.runtime import callbacks
from cvsa_jax.runtime.callbacks import called_back

# A thread that Python does not know calls without end, and the program ends while it does.
PROGRAM = """
import time
import cvsa_jax
import tensorflow as tf
from cvsa_jax.runtime.callbacks import called_back

def slow(step):
    time.sleep(0.02)
    return step

call = called_back(slow)
data = tf.data.Dataset.range(10**9).map(lambda step: tf.numpy_function(call, [step], tf.int64), num_parallel_calls=2)
left_open = iter(data.prefetch(10**4))
print(int(next(left_open)), flush=True)
"""


def test_a_program_ends_while_another_library_calls_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "0\n", done.stderr


def test_calls_are_refused_and_waited_for_once_the_program_ends(monkeypatch):
    monkeypatch.setattr(callbacks, "_calls", callbacks._Calls())
    begun, done = threading.Event(), []

    def work() -> None:
        begun.set()
        time.sleep(0.3)
        done.append(True)

    thread = threading.Thread(target=called_back(work))
    thread.start()
    begun.wait()
    callbacks._end()
    assert done == [True]
    with pytest.raises(RuntimeError, match="ends"):
        called_back(work)()
    thread.join()


def test_a_long_call_ends_between_its_parts(monkeypatch):
    monkeypatch.setattr(callbacks, "_calls", callbacks._Calls())
    parts, begun = [], threading.Event()

    def work() -> None:
        for part in range(1000):
            parts.append(part)
            begun.set()
            time.sleep(0.05)
            callbacks.go_on()

    def quiet() -> None:
        with pytest.raises(RuntimeError, match="ends"):
            called_back(work)()

    thread = threading.Thread(target=quiet)
    thread.start()
    begun.wait()
    callbacks._end()
    assert len(parts) < 100
    thread.join()


def test_results_and_errors_pass(monkeypatch):
    monkeypatch.setattr(callbacks, "_calls", callbacks._Calls())
    assert called_back(lambda a, b: a + b)(1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        called_back(lambda: 1 / 0)()
    assert callbacks._calls.under_way == 0
