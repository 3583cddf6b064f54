"""Functions that another library's threads call. When the program ends, none may be under way or begin: Python would
never let its thread go on, and who waits for that thread would wait for ever."""

import atexit
import functools
import threading
import time
from collections.abc import Callable

_QUIET = 0.1  # s without a call, after which the other library has what it wants


class _Calls:
    """How many are under way, and when the last one ended or was refused."""

    def __init__(self):
        self.lock, self.under_way, self.last, self.ending = threading.Lock(), 0, -_QUIET, False


_calls = _Calls()


def called_back(function: Callable) -> Callable:
    """The function, which raises RuntimeError once the program ends."""

    @functools.wraps(function)
    def call(*args):
        with _calls.lock:
            if _calls.ending:
                _calls.last = time.monotonic()
                raise RuntimeError("the program ends")
            _calls.under_way += 1
        try:
            return function(*args)
        finally:
            with _calls.lock:
                _calls.under_way -= 1
                _calls.last = time.monotonic()

    return call


def go_on() -> None:
    """For within a long call: RuntimeError once the program ends, which waits for the call."""
    if _calls.ending:
        raise RuntimeError("the program ends")


@atexit.register
def _end() -> None:
    with _calls.lock:
        _calls.ending = True
    while _calls.under_way or time.monotonic() - _calls.last < _QUIET:
        time.sleep(0.01)
