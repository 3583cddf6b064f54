"""The training loop: steps, logs, checkpoints, and the stops at NaN and at an interruption."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cvsa_jax.runtime import interruption
from cvsa_jax.runtime.distributed import to_mesh
from cvsa_jax.runtime.errors import Interrupted
from cvsa_jax.runtime.files import AnyPath
from cvsa_jax.training.checkpoint import Checkpointer
from cvsa_jax.training.monitor import FiniteCheck, Progress, Writer, named
from cvsa_jax.training.perf import Profile, Speed, compiled_step


def run_steps(
    config: ConfigDict,
    workdir: AnyPath,
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
    micro_batches: int = 1,
) -> tuple[Any, dict[str, np.ndarray] | None]:
    """Runs the jitted `train_step` (state, batch) -> (state, metrics) from `state.step` to `total` on the batches of
    `stream`.

    Writes `metrics.jsonl`, TensorBoard and checkpoints (with `meta`), which it closes. Returns the last state, and
    the last batch where there was one.

    Args:
        config: for `batch_size` and the keys of `common.loop`.
        watch: every so many steps (0: never) what it says of the state stands in the log too.
        micro_batches: of a step, for its cost.

    Raises:
        UserError: the loss or the gradient is not finite (it names the step), or a checkpoint cannot be written.
        Interrupted: after a checkpoint of the step at which the signal was noticed.
    """
    start = int(state.step)
    batch, metrics, note = None, {}, ""
    if start >= total:
        checkpoints.close()
        return state, batch
    batch = next(stream)
    step, cost = compiled_step(train_step, state, to_mesh(batch, mesh), mesh, micro_batches)
    print(cost.said, flush=True)
    writer, finite = Writer(workdir, start, config.wandb_project), FiniteCheck()
    progress = Progress("train", total, per_count=config.batch_size)
    speed = Speed(config.batch_size, mesh.size, cost)
    profile = Profile(workdir, start, total, config.profile_steps)
    intervals = (config.log_steps, config.checkpoint_steps)
    try:
        with interruption.deferred() as interrupted:
            # The host stays one step ahead of the device.
            for done in range(start + 1, total + 1):
                if done > start + 1:
                    with speed.waiting():
                        batch = next(stream)
                profile.before(done)
                ahead = step(state, to_mesh(batch, mesh))
                jax.block_until_ready(metrics)
                state, metrics = ahead
                finite.add(done, metrics)
                speed.count()
                profile.after(done, metrics)
                stop = interrupted()
                log, save = (done % every == 0 or done == total for every in intervals)
                look = watch[0] > 0 and (done % watch[0] == 0 or done == total)
                if log or save or look or stop:
                    finite.check(checkpoints.latest)
                if log or look or stop:
                    row = named(metrics) | {"train/learning_rate": float(schedule(done - 1))} | speed.figures()
                    row |= {f"eval/{name}": value for name, value in watch[1](state).items()} if look else {}
                    writer.write(done, row)
                    note = f"loss {row['train/loss']:.3f}"
                if save or stop:
                    checkpoints.save(state, meta)
                if log or look or save:
                    speed.restart()
                progress.update(done, note)
                if stop:
                    checkpoints.wait()
                    raise Interrupted(f"step {done} of {total} is saved in {workdir}.")
    finally:
        checkpoints.close()
        writer.close()
    return state, batch
