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


@pytest.mark.slow
def test_program_ends_while_another_library_calls_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "0\n", done.stderr


def ending() -> bool:
    """Waits for the program to end."""
    while not callbacks._calls.ending:
        time.sleep(0.001)
    return True


def test_ending_program_waits_for_calls_and_refuses_new_ones(monkeypatch):
    monkeypatch.setattr(callbacks, "_calls", callbacks._Calls())
    begun, done = threading.Event(), []

    def work() -> None:
        begun.set()
        done.append(ending())

    thread = threading.Thread(target=called_back(work))
    thread.start()
    begun.wait()
    callbacks._end()
    assert done == [True]
    with pytest.raises(RuntimeError, match="ends"):
        called_back(work)()
    thread.join()


def test_long_call_ends_between_its_parts(monkeypatch):
    monkeypatch.setattr(callbacks, "_calls", callbacks._Calls())
    parts, begun = [], threading.Event()

    def work() -> None:
        parts.append("first")
        callbacks.go_on()  # the program goes on
        parts.append("second")
        begun.set()
        ending()
        callbacks.go_on()
        parts.append("third")

    def quiet() -> None:
        with pytest.raises(RuntimeError, match="ends"):
            called_back(work)()

    thread = threading.Thread(target=quiet)
    thread.start()
    begun.wait()
    callbacks._end()
    thread.join()
    assert parts == ["first", "second"]


def test_results_and_errors_pass_through(monkeypatch):
    monkeypatch.setattr(callbacks, "_calls", callbacks._Calls())
    assert called_back(lambda a, b: a + b)(1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        called_back(lambda: 1 / 0)()
    assert callbacks._calls.under_way == 0
