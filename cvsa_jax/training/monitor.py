"""What a run says while it runs: progress with ETA, TensorBoard and metrics.jsonl, and the stop at NaN."""

import contextlib
import hashlib
import json
import math
import sys
import time

import jax
import tensorboard.summary

from cvsa_jax.runtime.errors import Diverged, UserError
from cvsa_jax.runtime.files import AnyPath, is_local, write_text_atomically

PLAIN_INTERVAL = 15  # seconds between progress lines where the output is not a terminal
QUICK = 3  # seconds
# What a step says of the health of the training, and not of what is trained for.
HEALTH = ("grad_norm", "projection_std", "effective_rank", "target_cosine", "align_hit", "usable_pairs")


def named(metrics: dict[str, jax.Array]) -> dict[str, float]:
    """The metrics of a step as the log calls them: `health/…` or `train/…`."""
    return {f"{'health' if name in HEALTH else 'train'}/{name}": float(value) for name, value in metrics.items()}


class Progress:
    """A line with share done, rate and remaining time: rewritten in place on a terminal, else printed now and then.

    The first update only starts the clock, so that compilation does not count; what takes less than QUICK seconds
    leaves no line.
    """

    def __init__(self, label: str, total: int, *, unit: str = "images", per_count: int = 1):
        """`per_count`: units (for the rate) per count of `update`."""
        self.label, self.total, self.unit, self.per_count = label, total, unit, per_count
        self.began = self.shown = time.monotonic()
        self.first: tuple[int, float] | None = None

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        live, last = sys.stdout.isatty(), done >= self.total
        start, clock = self.first = self.first or (done, now)
        due = now - self.shown >= (0.2 if live else PLAIN_INTERVAL)
        if last and now - self.began < QUICK:
            print("\r\x1b[K" if live else "", end="", flush=True)
            return
        if not last and (not due or done == start):
            return
        self.shown = now
        rate = (done - start) / max(now - clock, 1e-9)
        speed = f"{rate * self.per_count:.{0 if rate * self.per_count >= 10 else 1}f} {self.unit}/s"
        left = f"{_clock(now - self.began)} in all" if last else f"{_clock((self.total - done) / rate)} left"
        line = f"{self.label} {done}/{self.total}  {speed}  {left}  {note}".rstrip()
        print(f"\r\x1b[K{line}" if live else line, end="\n" if last or not live else "", flush=True)


class Writer:
    """Scalars to `metrics.jsonl` (one object per line, with `step`), to TensorBoard, and to Weights & Biases where a
    project of it is given, on the first process only.

    After a resume at a step, lines of later steps that an interrupted run had already written are dropped.
    """

    def __init__(self, workdir: AnyPath, start_step: int, wandb_project: str = ""):
        self.active = jax.process_index() == 0
        if not self.active:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        kept = [row for row in read_metrics(workdir) if row["step"] <= start_step]
        write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._open = contextlib.ExitStack()  # a bucket's file is open within a `with` only
        self.file = self._open.enter_context(path.open("a"))
        self.board = tensorboard.summary.Writer(str(workdir / "tensorboard"))
        self.wandb = _wandb_run(workdir, wandb_project) if wandb_project else None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if not self.active:
            return
        self.file.write(json.dumps({"step": step} | metrics) + "\n")
        self.file.flush()
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(metrics, step=step)

    def close(self) -> None:
        if self.active:
            self._open.close()
            self.board.close()
            if self.wandb:
                self.wandb.finish()


def _wandb_run(workdir: AnyPath, project: str):
    try:
        import wandb
    except ImportError:
        raise UserError("config.wandb_project needs Weights & Biases: pip install wandb") from None
    # The same workdir is the same run, also after an interruption.
    folder = str(workdir.absolute()) if is_local(workdir) else None
    identity = hashlib.sha1((folder or str(workdir)).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=workdir.name, id=identity, resume="allow", dir=folder)


def read_metrics(workdir: AnyPath) -> list[dict]:
    """The rows of a run's metrics.jsonl, [] where there is none. A last line cut off by a kill is left out."""
    path = workdir / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class FiniteCheck:
    """Finds the first step whose loss or gradient is not finite, without waiting for the device at every step."""

    def __init__(self):
        self.pending: list[tuple[int, jax.Array, jax.Array]] = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self.pending.append((step, metrics["loss"], metrics["grad_norm"]))

    def check(self, last_good: int | None) -> None:
        """Waits for the steps added since the last call; Diverged, a UserError, names the first bad one."""
        for step, loss, grad_norm in self.pending:
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                kept = f"the last checkpoint, step {last_good}, is intact" if last_good else "no checkpoint was written"
                raise Diverged(
                    f"step {step}: loss {float(loss)}, gradient norm {float(grad_norm)}. Training stopped; {kept}. A "
                    "lower learning rate (config.optim.lr), a longer warm-up, or config.model.dtype=float32 may help"
                )
        self.pending.clear()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
