"""The training loop: steps, logs, checkpoints, and the stops at NaN and at an interruption."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from cvsa_jax.runtime import interruption
from cvsa_jax.runtime.distributed import to_mesh
from cvsa_jax.runtime.errors import Interrupted
from cvsa_jax.runtime.progress import Progress
from cvsa_jax.training.log import read_metrics, run_log
from cvsa_jax.training.monitor import AlignmentCheck, FiniteCheck, named
from cvsa_jax.training.perf import Speed, compiled_step, profile
from cvsa_jax.training.resume import Run, flat_config


class Watch(NamedTuple):
    """What is looked at every so many steps: `look` (state) -> figures, which the log calls `eval/…`."""

    steps: int
    look: Callable[[Any], dict[str, float]]


def run_steps(
    run: Run,
    train_step: Callable,
    stream: Iterator[dict[str, np.ndarray]],
    schedule: optax.Schedule,
    *,
    watch: Watch | None = None,
    micro_batches: int = 1,
) -> tuple[Any, dict[str, np.ndarray] | None]:
    """Runs the jitted `train_step` (state, batch) -> (state, metrics) from the run's state to its last step on the
    batches of `stream`.

    Writes the log and checkpoints, which it closes. Returns the last state, and the last batch where there was one.

    Args:
        schedule: step -> learning rate, for the log.
        micro_batches: of a step, for its cost.

    Raises:
        UserError: the loss or the gradient is not finite (it names the step), or a checkpoint cannot be written.
        Interrupted: after a checkpoint of the step at which the signal was noticed.
    """
    config, state, start, total = run.config, run.state, run.start, run.total
    if start >= total:
        run.checkpoints.close()
        return state, None
    try:
        batch, metrics, note = next(stream), {}, ""
        step, cost = compiled_step(train_step, state, to_mesh(batch, run.mesh), run.mesh, micro_batches)
        print(cost.summary, flush=True)
        finite, progress = FiniteCheck(), Progress("train", total, per_count=config.batch_size)
        speed = Speed(config.batch_size, run.mesh.size, cost)
        trace = profile(run.workdir, start, total, config.profile_steps)
        with (
            run_log(run.workdir, start, config.wandb_project, flat_config(config)) as log,
            interruption.deferred() as interrupted,
        ):
            trouble = AlignmentCheck(read_metrics(run.workdir), total)
            for done in range(start + 1, total + 1):  # the host stays one step ahead of the device
                if done > start + 1:
                    with speed.waiting():
                        batch = next(stream)
                trace(done - 1, metrics)
                ahead = step(state, to_mesh(batch, run.mesh))
                jax.block_until_ready(metrics)
                state, metrics = ahead
                finite.add(done, metrics)
                speed.count()
                stop, due = interrupted(), _due(done, total)
                logged, saved = due(config.log_steps) or stop, due(config.checkpoint_steps) or stop
                looked = watch is not None and (due(watch.steps) or stop)
                if logged or saved or looked:
                    finite.check(run.checkpoints.latest)
                if saved:  # before anything that may fail is looked at
                    run.checkpoints.save(state, run.identity)
                if logged or looked:
                    row = named(metrics) | {"train/learning_rate": float(schedule(done - 1))} | speed.figures()
                    row |= _looked(watch, state) if looked else {}
                    log.write_scalars(done, row)
                    trouble.look({"step": done} | row)
                    note = f"loss {row['train/loss']:.3f}"
                progress.update(done, note)
                if logged or saved or looked:
                    speed.restart()
                if stop:
                    run.checkpoints.wait()
                    raise Interrupted(f"step {done} of {total} is saved in {run.workdir}.", interruption.CODES[stop])
            run.checkpoints.wait()  # inside, so that a signal does not end it half done
            trace(total, metrics)
    finally:
        run.checkpoints.close()
    return state, batch


def _looked(watch: Watch, state: Any) -> dict[str, float]:
    """What is watched, as the log calls it; a fault of it does not end the training."""
    try:
        return {f"eval/{name}": value for name, value in watch.look(state).items()}
    except Exception as error:
        if jax.process_count() > 1:
            raise  # the others would wait for this one
        print(f"warning: no figures for eval/ at this step: {error}", flush=True)
        return {}


def _due(done: int, total: int) -> Callable[[int], bool]:
    """Whether what comes every so many steps (0: never) comes now; all of it comes at the end."""
    return lambda every: every > 0 and (done % every == 0 or done == total)
