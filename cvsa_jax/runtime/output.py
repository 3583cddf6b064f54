"""Standard output that may end before the program does: a pipe whose reader is done, a terminal that is closed."""

import os
from typing import Any, TextIO


class Output:
    """A stream that takes whatever is written once nobody reads it any more, so that a training goes on. Names of files
    that are not text are written escaped."""

    def __init__(self, stream: TextIO | None):
        # A stream that was closed before the program began is None.
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115  open to the end
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # the latter of a closed file
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
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
