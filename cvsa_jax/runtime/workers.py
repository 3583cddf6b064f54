"""Work on many items in as many processes, or threads, as there are cores."""

import functools
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import joblib

READERS = 16  # files that are asked for at a time, for those that lie far away
CORES = joblib.cpu_count()  # that this process may use: a container or an affinity may leave it fewer


def over_cores(function: Callable, items: Iterable[tuple], *, chunk: int, alone: bool = False) -> Iterator[Any]:
    """`function(*item)` of each item, in their order; each process takes `chunk` of them at a time, and has one thread
    of linear algebra.

    The processes, which stay for the next call, import the module of the function: one that does not import JAX
    starts fast. They do not import the program's own script, so that it needs no guard.

    Args:
        alone: in this process, for what is done before others have started.
    """
    alone = alone or CORES == 1
    # A command that is interrupted leaves no time to tidy up; joblib's own tracker does, and would say so.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    work = joblib.Parallel(
        1 if alone else CORES,
        return_as="generator",
        batch_size=chunk,
        max_nbytes=None,  # an array travels as it is, not as a file
        **{} if alone else {"initializer": _end_with_parent},
    )
    return work(joblib.delayed(function)(*item) for item in items)


def in_threads(function: Callable, items: Iterable, *, ahead: int) -> Iterator[Any]:
    """`function(item)` of each item, in their order, in threads: for what spends its time outside of Python, as Pillow
    does. At most `ahead` results, and one for each core, wait to be taken."""
    items = iter(items)
    pool = ThreadPoolExecutor(CORES)
    try:
        waiting = deque(pool.submit(function, item) for item in itertools.islice(items, ahead + CORES))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def spread(function: Callable, items: Sequence) -> list[Any]:
    """`function(item)` of each item, for what waits for a disk or a network: READERS threads share them."""
    if len(items) < 2:
        return [function(item) for item in items]
    parts = [items[k::READERS] for k in range(min(READERS, len(items)))]
    made: list[Any] = [None] * len(items)
    for k, results in enumerate(_readers().map(lambda part: [function(item) for item in part], parts)):
        made[k::READERS] = results
    return made


@functools.lru_cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS)


def _end_with_parent() -> None:
    """A process whose parent is killed would wait minutes for more work."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
