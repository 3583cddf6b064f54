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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_signal_outside_a_loop_raises_at_once(number, code):
    with pytest.raises(Interrupted) as caught:
        send(number)
    assert caught.value.code == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_signal_inside_a_loop_waits_for_the_end_of_the_step(number, code):
    done = []
    with pytest.raises(Interrupted) as caught, interruption.deferred() as interrupted:
        done.append(interrupted())
        send(number)
        done.append(interrupted())
    assert done == [0, number] and caught.value.code == code


def test_signal_after_the_last_step_is_not_lost():
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


def test_signal_swallowed_by_a_callback_ends_the_first_step():
    with contextlib.suppress(Interrupted):  # as Python does, where a garbage collector's callback raises
        send(signal.SIGINT)
    done = []
    with pytest.raises(Interrupted) as caught, interruption.deferred() as interrupted:
        done.append(interrupted())
    assert done == [signal.SIGINT] and caught.value.code == 130


def test_error_in_a_loop_is_not_replaced_by_a_signal():
    with pytest.raises(ZeroDivisionError), interruption.deferred():
        send()
        raise ZeroDivisionError


def command(tmp_path, body: str) -> subprocess.Popen:
    """A command whose main function does this, started; it prints a line when it is there."""
    lines = "".join(f"    {line}\n" for line in ("import os, signal, time", *body.splitlines()))
    script = tmp_path / "command.py"
    script.write_text(f"from cvsa_jax.runtime import cli, interruption\ndef main():\n{lines}cli.run(main)\n")
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, script], text=True, env=environment, **pipes)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 42), ("SIGINT", 130), ("SIGHUP", 42), ("SIGUSR1", 42)])
def test_interrupted_command_ends_with_its_code_and_one_line(tmp_path, name, code):
    with command(tmp_path, f"os.kill(os.getpid(), signal.{name})") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said == "interrupted: what was finished is kept. The same command goes on from there.\n"


# A handler of Python's runs between two of its instructions: a function of C that is called again and again stands for
# compiled code that never ends.
def test_hanging_command_ends_by_itself_outside_a_loop(tmp_path):
    body = (
        "import ctypes\ninterruption.GRACE = 0.1\nsignal.signal(signal.SIGTERM, lambda *given: None)\n"
        "print('there', flush=True)\n"
        "while ctypes.CDLL(None).sleep(300) >= 0: pass"
    )
    with command(tmp_path, body) as process:
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 42 and said.startswith("interrupted: what was finished is kept.")


def test_second_signal_ends_a_hanging_loop_at_once(tmp_path):
    # Tells when the time to end by itself is over, and takes any later signal for a second one.
    body = (
        "import ctypes\ninterruption.GRACE, interruption.AGAIN = 0.1, 0.0\nend = interruption._end_after_grace\n"
        "interruption._end_after_grace = lambda number: (end(number), print('still there', flush=True))\n"
        "with interruption.deferred():\n    print('there', flush=True)\n"
        "    while ctypes.CDLL(None).sleep(300) >= 0: pass"
    )
    with command(tmp_path, body) as process:
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "still there\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "\ninterrupted again: ended at once." in said


def test_signals_of_the_same_moment_count_as_one(tmp_path):
    body = (
        "interruption.AGAIN = 60.0\n"
        "with interruption.deferred() as interrupted:\n    print('there', flush=True)\n"
        "    while not interrupted(): time.sleep(0.01)\n"
        "    print('asked', flush=True)\n    input()\n    print('saved', flush=True)"
    )
    with command(tmp_path, body) as process:
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        for number in (signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        out, said = process.communicate("\n", timeout=60)
    assert out == "saved\n" and process.returncode == 130
    assert said.startswith("interrupted: the step under way is finished and saved")


def test_ignored_hangup_stays_ignored():
    # As `nohup` starts a command.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interruption.listen()
    send(signal.SIGHUP)
    with interruption.deferred() as interrupted:
        send(signal.SIGHUP)
        assert interrupted() == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_loop_outside_the_main_thread_handles_no_signal():
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
def test_command_goes_on_when_its_output_is_closed(tmp_path, closed):
    done = tmp_path / "done"
    body = (
        "import sys, pathlib\nprint('there', flush=True)\ninput()\n"
        f"for _ in range(3000): print('x' * 100); print('x' * 100, file=sys.{closed}, flush=True)\n"
        f"pathlib.Path('{done}').touch()"
    )
    with command(tmp_path, body) as process:
        assert process.stdout.readline() == "there\n"
        getattr(process, closed).close()
        process.stdin.write("\n")
        process.stdin.close()
        other = process.stderr if closed == "stdout" else process.stdout
        said = other.read()
        assert process.wait(timeout=60) == 0
    assert done.exists() and "Traceback" not in said and "Exception ignored" not in said


def test_command_runs_without_standard_output(tmp_path):
    body = "from cvsa_jax.runtime.progress import Progress\nprint(Progress('x', 1).update(1))"
    script = tmp_path / "command.py"
    script.write_text(
        f"from cvsa_jax.runtime import cli\ndef main():\n    {body.replace(chr(10), chr(10) + '    ')}\ncli.run(main)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    ended = subprocess.run(("sh", "-c", f"{sys.executable} {script} >&-"), env=environment, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, b"")
