"""SIGTERM, Ctrl-C, SIGHUP (a terminal that is closed, a connection that is lost) and SIGUSR1 (a notice of Slurm).
Outside of a training loop the command ends at once, inside at the next step, after a checkpoint.

Python's handlers run between two instructions of the main thread. One that waits in compiled code, as for a compilation
or for a device that hangs, would not notice; so a thread of its own sees the signals too, and ends the process where
the main thread has not, and at a second signal in any case. What comes within a second of the first is the same wish:
a terminal signals a whole group of processes, of which the script that started this one passes the signal on.
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from cvsa_jax.runtime.errors import INTERRUPTED, Interrupted

CODES = dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1), INTERRUPTED) | {signal.SIGINT: 130}
AGAIN = 1.0  # seconds after which another signal is a second one
GRACE = 3.0  # seconds for the main thread to end by itself, outside of a loop
_sync_points = itertools.count()
_waits_for_step = threading.Event()  # set inside a loop
_ends = threading.Event()  # set when the command is on its way out
_raised: list[int] = []  # signals that should have ended the command: what a callback of a library raises, Python drops


def listen() -> None:
    """From now on the signals raise `Interrupted` in the main thread. `nohup` has the last word on SIGHUP."""
    for number in CODES:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


def guard() -> None:
    """From now on a thread sees to it that the process ends, whatever the main thread waits for."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True, name="signals").start()


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Inside, a signal is only noted: the function given is to be asked once in each step, and tells its number, or 0.
    Of several processes, which must all ask at the same steps, it is enough that one got the signal, and all learn of
    it at the same step. Outside of the main thread, where Python lets nobody handle signals, none is noted."""
    import jax  # a command that ends at a wrong flag does without
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        # JAX has taken SIGTERM over, and agrees with the others on a step that none has passed yet; the other signals
        # become one. The steps asked about must go up, also from one training of a process to its next.
        others = [number for number in CODES if number != signal.SIGTERM]
        with _handled(dict.fromkeys(others, lambda got, frame: os.kill(os.getpid(), signal.SIGTERM))):
            if _raised:
                os.kill(os.getpid(), signal.SIGTERM)
            yield lambda: signal.SIGTERM * multihost_utils.reached_preemption_sync_point(next(_sync_points))
        return
    notices = list(_raised)
    with _handled(dict.fromkeys(CODES, lambda got, frame: notices.append(got))):
        yield lambda: notices[0] if notices else 0
    if notices:  # came after the last question
        _end(notices[0])


@contextlib.contextmanager
def _handled(handlers: dict[int, Callable]) -> Iterator[None]:
    """Inside, these handle the signals, and none of them ends the process; a SIGHUP that is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        handlers = {number: handler for number, handler in handlers.items() if number != signal.SIGHUP}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    _waits_for_step.set()
    try:
        yield
    finally:
        _waits_for_step.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def ends() -> None:
    """From now on only another signal ends the process early: it waits for others that save, and has its code."""
    _ends.set()


def leave(code: int, text: str) -> None:
    """Ends the process with a line, without tearing down what may still be at work: a compilation that goes on while
    the interpreter ends crashes."""
    _say(text)
    os._exit(code)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a terminal that is gone
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)


def _watch(reading: int) -> None:
    """Sees every signal, by the bytes that Python writes to the pipe."""
    first = None
    while True:
        for number in os.read(reading, 64):
            if number not in CODES:
                continue
            if first is not None and time.monotonic() - first > AGAIN:
                leave(CODES[number], "interrupted again: ended at once. What was finished is kept.")
            if first is None:
                first = time.monotonic()
                if _waits_for_step.is_set():
                    _say("interrupted: the step under way is finished and saved; once more, and it ends at once.")
                threading.Thread(target=_end_after_grace, args=(number,), daemon=True).start()


def _end_after_grace(number: int) -> None:
    """Where no loop waits for its step, ends the process that has not ended by itself."""
    time.sleep(GRACE)
    if not _waits_for_step.is_set() and not _ends.is_set():
        leave(CODES[number], "interrupted: what was finished is kept. The same command goes on from there.")


def _handle(number: int, frame) -> None:
    del frame
    _raised.append(number)
    _end(number)


def _end(number: int) -> None:
    raise Interrupted("what was finished is kept.", CODES[signal.Signals(number)])
