"""The log of a run: `metrics.jsonl`, TensorBoard and Weights & Biases, all behind clu's `MetricWriter`.

Importing `clu.metric_writers` imports TensorFlow: so it is done where a log begins, and our writers have its methods
and not its class.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from cvsa_jax.runtime.distributed import is_first
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath, finite, is_local, write_text_atomically

METRICS = "metrics.jsonl"


class _Scalars:
    """A writer of figures alone; what else may be written is passed over."""

    def write_summaries(self, step, values, metadata=None): ...
    def write_images(self, step, images): ...
    def write_videos(self, step, videos): ...
    def write_audios(self, step, audios, *, sample_rate): ...
    def write_texts(self, step, texts): ...
    def write_histograms(self, step, arrays, num_buckets=None): ...
    def write_hparams(self, hparams): ...
    def flush(self): ...


class JsonLines(_Scalars):
    """Figures as lines of `metrics.jsonl`, one object each, with `step`."""

    def __init__(self, workdir: AnyPath):
        self._open = contextlib.ExitStack()  # a bucket's file is open within a `with` only
        self._file = self._open.enter_context((workdir / METRICS).open("a"))

    def write_scalars(self, step, scalars):
        self._file.write(json.dumps(finite({"step": step} | dict(scalars)), allow_nan=False) + "\n")
        self._file.flush()

    def close(self):
        self._open.close()


class WeightsAndBiases(_Scalars):
    """Figures, settings and pictures to a project of Weights & Biases. The same workdir is the same run there, also
    after an interruption."""

    def __init__(self, workdir: AnyPath, project: str):
        try:
            import wandb
        except ImportError:
            raise UserError("config.wandb_project needs Weights & Biases: pip install wandb") from None
        folder = str(workdir.absolute()) if is_local(workdir) else None
        identity = hashlib.sha1((folder or str(workdir)).encode()).hexdigest()[:16]
        self._run = wandb.init(project=project, name=workdir.name, id=identity, resume="allow", dir=folder)
        self._image = wandb.Image

    def write_scalars(self, step, scalars):
        self._run.log(dict(scalars), step=step)

    def write_images(self, step, images):
        self._run.log({name: self._image(image) for name, image in images.items()}, step=step)

    def write_hparams(self, hparams):
        self._run.config.update(dict(hparams), allow_val_change=True)

    def close(self):
        self._run.finish()


@contextlib.contextmanager
def run_log(
    workdir: AnyPath, start_step: int, wandb_project: str = "", settings: dict[str, Any] | None = None
) -> Iterator[Any]:
    """The log of a run, a clu `MetricWriter`: `metrics.jsonl`, TensorBoard where TensorFlow is installed, and Weights &
    Biases where a project of it is given, each written by a thread of its own, in the first process only. To add
    another, append a `MetricWriter` here.

    Lines of steps after `start_step`, which an interrupted run had already written, are dropped; clu's writers only
    append. `settings`, dotted key -> value, are logged where the run begins.

    A log that cannot be written does not end the training: a warning says so, once."""
    writers = []
    if is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(workdir) if row["step"] <= start_step]
        write_text_atomically(workdir / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        writers = [_Forgiving(lambda: JsonLines(workdir), f"of {workdir / METRICS}")]
        if wandb_project:
            writers.append(_Forgiving(lambda: WeightsAndBiases(workdir, wandb_project), "to Weights & Biases"))
    log = _together(writers, workdir)
    if settings and start_step == 0:
        plain = (bool, int, float, str)
        log.write_hparams({key: v if isinstance(v, plain) else str(v) for key, v in settings.items()})
    try:
        yield log
    finally:
        log.close()


def _together(writers: list, workdir: AnyPath) -> Any:
    """One writer of the first process's writers, and of TensorBoard."""
    try:
        import tensorflow as tf
        from clu.metric_writers import AsyncMultiWriter, SummaryWriter
    except ImportError:
        if writers:
            print(f"without TensorFlow nothing is written for TensorBoard: the figures are in {workdir / METRICS}")
        return _InTurn(writers)
    tf.config.set_visible_devices([], "GPU")  # the accelerator's memory is JAX's
    board = [_Forgiving(lambda: SummaryWriter(str(workdir / "tensorboard")), "for TensorBoard")] if writers else []
    return AsyncMultiWriter([*writers, *board])


class _Forgiving:
    """A writer that does not end a training: its first error is printed, and then it writes no more. A UserError, as
    where a package is missing, is raised."""

    def __init__(self, make: Callable[[], Any], what: str):
        self._what, self._broken = what, False
        self._writer = self._tried(make)

    def __getattr__(self, name: str) -> Callable:
        return lambda *args, **kwargs: self._tried(lambda: getattr(self._writer, name)(*args, **kwargs))

    def _tried(self, act: Callable[[], Any]) -> Any:
        if self._broken:
            return None
        try:
            return act()
        except UserError:
            raise
        except Exception as error:  # whatever disks and networks raise
            self._broken = True
            print(f"warning: the log {self._what} ends here ({error}); the training goes on", flush=True)
            return None


class _InTurn:
    """Calls each of several writers, one after the other."""

    def __init__(self, writers: list):
        self._writers = writers

    def __getattr__(self, name: str):
        def each(*args, **kwargs) -> None:
            for writer in self._writers:
                getattr(writer, name)(*args, **kwargs)

        return each


def log_pictures(workdir: AnyPath, step: int, pictures: dict[str, AnyPath], wandb_project: str = "") -> None:
    """Puts PNG files into the log of a run that has ended at `step`; name -> file."""
    images = {
        name: np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")) for name, path in pictures.items()
    }
    with run_log(workdir, step, wandb_project) as log:
        log.write_images(step, images)


def read_metrics(workdir: AnyPath) -> list[dict]:
    """The rows of a run's metrics.jsonl, [] where there is none. A line that is damaged, or that a kill cut off, is
    left out."""
    path = workdir / METRICS
    rows = []
    for line in path.read_bytes().decode(errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows
