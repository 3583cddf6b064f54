import os
import signal
import subprocess
import sys

import pytest

from cvsa_jax.runtime import interruption
from cvsa_jax.runtime.errors import Interrupted


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(signal.SIGTERM)
    interruption.listen()
    yield
    signal.signal(signal.SIGTERM, before)


def send() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_outside_of_a_loop_the_signal_ends_at_once():
    with pytest.raises(Interrupted):
        send()


def test_inside_it_is_only_noted():
    done = []
    with pytest.raises(Interrupted), interruption.deferred() as interrupted:
        for step in range(5):
            if step == 2:
                send()
            done.append(step)
            if interrupted():
                raise Interrupted("saved")
    assert done == [0, 1, 2]


def test_a_signal_after_the_last_question_is_not_lost():
    done = []
    with pytest.raises(Interrupted):
        with interruption.deferred() as interrupted:
            assert not interrupted()
            send()
            done.append("the rest of the loop")
        done.append("what comes after the loop")
    assert done == ["the rest of the loop"]
    with pytest.raises(Interrupted):  # the handler from before is there again
        send()


def test_another_error_is_not_replaced():
    with pytest.raises(ZeroDivisionError), interruption.deferred():
        send()
        raise ZeroDivisionError


def test_a_command_ends_with_42_and_one_line(tmp_path):
    script = tmp_path / "command.py"
    script.write_text(
        "import os, signal\nfrom cvsa_jax.runtime import cli\ncli.run(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 42
    assert ended.stderr == "interrupted: what was finished is kept. The same command goes on from there.\n"
