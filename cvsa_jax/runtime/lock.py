"""One writer of a folder at a time. The lock is the system's, which releases it with the process however that ends."""

import contextlib
import datetime
import fcntl
import os
import socket

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath, is_local

NAME = ".in_use"


class Lock:
    """Held from its making on, until `release` or the end of the process; of a bucket there is none.

    Raises:
        UserError: another process holds it; the message says which, and since when.
    """

    def __init__(self, folder: AnyPath):
        self._file = None
        if not is_local(folder):
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = open(folder / NAME, "a+")  # noqa: SIM115  open as long as the lock is held
        except OSError:
            return  # whoever writes there says it better
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            advice = "wait for it, end it, or take another folder"
            raise UserError(f"{folder} is being written by {holder}: {advice}") from None
        except OSError:
            file.close()  # a file system without locks
            return
        self._file = file
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        with contextlib.suppress(OSError):  # a disk that is full: held all the same
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
            file.flush()

    def release(self) -> None:
        """Lets others write."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
            self._file.close()
            self._file = None
