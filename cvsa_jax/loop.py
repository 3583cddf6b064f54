"""The training loop: steps, logs, checkpoints, and the stop at NaN."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cvsa_jax.checkpoint import Checkpointer
from cvsa_jax.distributed import to_mesh
from cvsa_jax.monitor import FiniteCheck, Progress, Writer


def run_steps(
    config: ConfigDict,
    workdir: Path,
    train_step: Callable,
    state: Any,
    stream: Iterator[dict[str, np.ndarray]],
    mesh: Mesh,
    checkpoints: Checkpointer,
    *,
    total: int,
    schedule: optax.Schedule,
    meta: dict,
    watch: tuple[int, Callable[[Any], dict[str, float]]] = (0, lambda state: {}),
) -> tuple[Any, dict[str, np.ndarray] | None]:
    """Runs `train_step` (state, batch) -> (state, metrics) from `state.step` to `total` on the batches of `stream`.

    Writes `metrics.jsonl`, TensorBoard and checkpoints (with `meta`), which it closes. Returns the last state, and
    the last batch where there was one.

    Args:
        config: for `batch_size`, `log_steps` and `checkpoint_steps`.
        watch: every so many steps (0: never) what it says of the state stands in the log too.

    Raises:
        UserError: the loss or the gradient is not finite (it names the step).
    """
    start = int(state.step)
    writer, finite = Writer(workdir, start), FiniteCheck()
    progress = Progress("train", total, per_count=config.batch_size)
    intervals = (config.log_steps, config.checkpoint_steps)
    batch, metrics, note = None, {}, ""
    try:
        # The host stays one step ahead of the device.
        for done in range(start + 1, total + 1):
            batch = next(stream)
            ahead = train_step(state, to_mesh(batch, mesh))
            jax.block_until_ready(metrics)
            state, metrics = ahead
            finite.add(done, metrics)
            log, save = (done % every == 0 or done == total for every in intervals)
            look = watch[0] > 0 and (done % watch[0] == 0 or done == total)
            if log or save or look:
                finite.check(checkpoints.latest)
            if log or look:
                row = {name: float(value) for name, value in metrics.items()}
                row |= watch[1](state) if look else {}
                writer.write(done, row | {"learning_rate": float(schedule(done - 1))})
                note = f"loss {row['loss']:.3f}"
            if save:
                checkpoints.save(state, meta)
            progress.update(done, note)
    finally:
        checkpoints.close()
        writer.close()
    return state, batch
