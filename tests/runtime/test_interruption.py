import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from cvsa_jax.runtime import interruption
from cvsa_jax.runtime.errors import Interrupted


@pytest.fixture(autouse=True)
def handler(monkeypatch):
    monkeypatch.setattr(interruption, "_raised", [])
    before = {number: signal.getsignal(number) for number in interruption.CODES}
    interruption.listen()
    yield
    for number, restored in before.items():
        signal.signal(number, restored)


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_outside_of_a_loop_the_signal_ends_at_once(number, code):
    with pytest.raises(Interrupted) as caught:
        send(number)
    assert caught.value.code == code


def test_ctrl_c_is_only_noted_inside_a_loop():
    done = []
    with pytest.raises(Interrupted) as caught, interruption.deferred() as interrupted:
        done.append(interrupted())
        send(signal.SIGINT)
        done.append(interrupted())
    assert done == [0, signal.SIGINT] and caught.value.code == 130


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_a_callback_swallows_ends_the_first_step(number):
    with contextlib.suppress(Interrupted):  # as Python does, where a garbage collector's callback raises
        send(number)
    done = []
    with pytest.raises(Interrupted) as caught, interruption.deferred() as interrupted:
        done.append(interrupted())
    assert done == [number] and caught.value.code == interruption.CODES[number]


def test_another_error_is_not_replaced():
    with pytest.raises(ZeroDivisionError), interruption.deferred():
        send()
        raise ZeroDivisionError


def command(tmp_path, body: str) -> subprocess.Popen:
    """A command whose main function does this, started; it prints a line when it is there."""
    lines = "".join(f"    {line}\n" for line in ("import os, signal, time", *body.splitlines()))
    script = tmp_path / "command.py"
    script.write_text(f"from cvsa_jax.runtime import cli, interruption\ndef main():\n{lines}cli.run(main)\n")
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, script], text=True, env=environment, **pipes)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 42), ("SIGINT", 130), ("SIGHUP", 42), ("SIGUSR1", 42)])
def test_a_command_ends_with_its_code_and_one_line(tmp_path, name, code):
    with command(tmp_path, f"os.kill(os.getpid(), signal.{name})") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said == "interrupted: what was finished is kept. The same command goes on from there.\n"


# A handler of Python's runs between two of its instructions: a function of C that is called again and again stands for
# compiled code that never ends.
def test_a_command_that_hangs_ends_by_itself_outside_of_a_loop(tmp_path):
    body = (
        "import ctypes\nsignal.signal(signal.SIGTERM, lambda *given: None)\nprint('there', flush=True)\n"
        "while ctypes.CDLL(None).sleep(300) >= 0: pass"
    )
    with command(tmp_path, body) as process:
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 42 and said.startswith("interrupted: what was finished is kept.")


def test_a_second_signal_ends_a_loop_that_hangs_at_once(tmp_path):
    body = (
        "import ctypes\nwith interruption.deferred():\n    print('there', flush=True)\n"
        "    while ctypes.CDLL(None).sleep(300) >= 0: pass"
    )
    with command(tmp_path, body) as process:
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=interruption.GRACE + 2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "\ninterrupted again: ended at once." in said


LOOP = (
    "with interruption.deferred() as interrupted:\n    print('there', flush=True)\n"
    "    while not interrupted(): time.sleep(0.05)\n    time.sleep(0.5)\n    print('saved', flush=True)"
)


def test_signals_of_the_same_moment_are_one_wish(tmp_path):
    with command(tmp_path, LOOP) as process:
        assert process.stdout.readline() == "there\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        out, said = process.communicate(timeout=60)
    assert out == "saved\n" and process.returncode in (42, 130)
    assert said.startswith("interrupted: the step under way is finished and saved")


def test_nohup_keeps_its_word(tmp_path):
    with command(tmp_path, f"signal.signal(signal.SIGHUP, signal.SIG_IGN)\ninterruption.listen()\n{LOOP}") as process:
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1.5)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == "saved\n"


def test_outside_of_the_main_thread_no_signal_is_handled():
    found = []

    def train():
        with interruption.deferred() as interrupted:
            found.append(interrupted())

    thread = threading.Thread(target=train)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert found == [0] and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_loop_goes_on_when_nobody_reads_any_more(tmp_path, closed):
    done = tmp_path / "done"
    body = (
        "import sys, pathlib\nprint('there', flush=True)\ntime.sleep(0.5)\n"
        f"for _ in range(3000): print('x' * 100); print('x' * 100, file=sys.{closed}, flush=True)\n"
        f"pathlib.Path('{done}').touch()"
    )
    with command(tmp_path, body) as process:
        assert process.stdout.readline() == "there\n"
        getattr(process, closed).close()
        other = process.stderr if closed == "stdout" else process.stdout
        said = other.read()
        assert process.wait(timeout=60) == 0
    assert done.exists() and "Traceback" not in said and "Exception ignored" not in said


def test_a_standard_output_that_was_never_there(tmp_path):
    body = "from cvsa_jax.runtime.progress import Progress\nprint(Progress('x', 1).update(1))"
    script = tmp_path / "command.py"
    script.write_text(
        f"from cvsa_jax.runtime import cli\ndef main():\n    {body.replace(chr(10), chr(10) + '    ')}\ncli.run(main)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    ended = subprocess.run(("sh", "-c", f"{sys.executable} {script} >&-"), env=environment, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, b"")
