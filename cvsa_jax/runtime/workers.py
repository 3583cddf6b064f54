"""Work on many items in as many processes as there are cores."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import joblib

CORES = joblib.cpu_count()  # that this process may use: a container or an affinity may leave it fewer


def over_cores(function: Callable, items: Iterable[tuple], *, chunk: int, alone: bool = False) -> Iterator[Any]:
    """`function(*item)` of each item, in their order; each process takes `chunk` of them at a time, and has one thread
    of linear algebra.

    The processes, which stay for the next call, import the module of the function: one that imports neither JAX nor
    TensorFlow starts fast. They do not import the program's own script, so that it needs no guard.

    Args:
        alone: in this process, for what is done before others have started.
    """
    alone = alone or CORES == 1
    work = joblib.Parallel(
        1 if alone else CORES,
        return_as="generator",
        batch_size=chunk,
        max_nbytes=None,  # an array travels as it is, not as a file
        **{} if alone else {"initializer": _end_with_parent},
    )
    return work(joblib.delayed(function)(*item) for item in items)


def _end_with_parent() -> None:
    """A process whose parent is killed would wait minutes for more work."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
