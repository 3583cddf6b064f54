"""SIGTERM: outside of a training loop the command ends at once, inside at the next step, after a checkpoint."""

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator

from cvsa_jax.runtime.errors import Interrupted

_SIGNAL = signal.SIGTERM
_sync_points = itertools.count()


def listen() -> None:
    """From now on the signal raises `Interrupted` in the main thread."""
    signal.signal(_SIGNAL, _end)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Inside, the signal only makes the function given true, to be asked once in each step. Of several processes, which
    must all ask at the same steps, it is enough that one got the signal, and all learn of it at the same step."""
    import jax  # a command that ends at a wrong flag does without
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        # JAX has taken the signal over, and agrees with the others on a step that none has passed yet. The steps asked
        # about must go up, also from one training of a process to its next.
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_sync_points))
        return
    notices: list[int] = []
    before = signal.signal(_SIGNAL, lambda number, frame: notices.append(number))
    try:
        yield lambda: bool(notices)
    finally:
        signal.signal(_SIGNAL, before)
    if notices:  # came after the last question
        _end(_SIGNAL, None)


def _end(number: int, frame) -> None:
    del number, frame
    raise Interrupted("what was finished is kept.")
