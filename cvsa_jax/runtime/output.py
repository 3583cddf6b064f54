"""Standard output that may end before the program does: a pipe whose reader is done, a terminal that is closed."""

import errno
import os
from collections.abc import Callable
from typing import Any, TextIO

_ENDED = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET)


class Output:
    """A stream that takes whatever is written once nobody reads it any more, so that a training goes on. Names of files
    that are not text are written escaped."""

    def __init__(self, stream: TextIO | None):
        # A stream that was closed before the program began is None.
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115  open to the end
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: self._stream.flush())

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except BlockingIOError:  # a reader that is slow for a moment: what it has no room for is left out
            pass
        except OSError as error:  # of a disk that is full, too: there may be room again
            if error.errno in _ENDED:
                self._give_up()
        except ValueError:  # a closed file
            self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        """What is still in the stream's buffer, and what will be, goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        except (OSError, ValueError):
            self._stream = open(os.devnull, "w")  # noqa: SIM115  open to the end
        finally:
            os.close(nowhere)
