"""What a training is watched for: the names of its figures, and the stop at NaN."""

import math

import jax

from cvsa_jax.runtime.errors import Diverged

# What a step says of the health of the training, and not of what is trained for.
HEALTH = ("grad_norm", "projection_std", "effective_rank", "target_cosine", "align_hit", "usable_pairs", "residual")
HEALTH += ("objective_gradient", "align_gradient", "align_gradient_share", "align_weight")


def named(metrics: dict[str, jax.Array]) -> dict[str, float]:
    """The metrics of a step as the log calls them: `health/…` or `train/…`."""
    return {f"{'health' if name in HEALTH else 'train'}/{name}": float(value) for name, value in metrics.items()}


_LOOKED_AT = ("train/align", "health/align_gradient", "health/objective_gradient", "health/align_hit")
_NO_GRADIENT = 1e-5  # of the objective's gradient, below which the alignment's is none
_SHARE, _STEPS = 0.2, 100  # of the run, and at least so many steps, after which the alignment must have moved
_ROWS = 5  # averaged to see it
_MOVED, _ALIGNED = 0.02, 0.75  # relative change of the loss, and the share of hits at which it need not move


def alignment_trouble(rows: list[dict], total: int) -> str:
    """Why the alignment of a run does not learn, by the rows of its log and its number of steps; "" where it does, or
    where it is too early to say.

    Heads that pass no gradient on show at the first row. Otherwise the mean of the first rows' loss is compared with
    that of the last ones, once a fifth of the run is over; an alignment that hits the object already may stay.
    """
    rows = [row for row in rows if all(isinstance(row.get(key), float | int) for key in _LOOKED_AT)]
    if not rows:
        return ""
    first, last = rows[0], rows[-1]
    if last["health/usable_pairs"] == 0:
        return (
            f"no pair of step {last['step']} has a mask to align with: look at the saliency maps, and at "
            "config.views.source_area, which may leave the object out"
        )
    if last["health/align_gradient"] <= _NO_GRADIENT * last["health/objective_gradient"]:
        return (
            f"the alignment loss has no gradient at step {last['step']}: its conv heads pass none on, so it cannot "
            "learn. Where config.init_from gave these heads, start from another run or a file of weights"
        )
    if last["step"] < max(first["step"] + _STEPS, _SHARE * total) or len(rows) < 2 * _ROWS:
        return ""
    before, now = (sum(row["train/align"] for row in part) / _ROWS for part in (rows[:_ROWS], rows[-_ROWS:]))
    hits = sum(row["health/align_hit"] for row in rows[-_ROWS:]) / _ROWS
    if abs(now - before) > _MOVED * abs(before) or hits >= _ALIGNED:
        return ""
    return (
        f"the alignment loss has not moved by step {last['step']} ({before:.4g} at first, {now:.4g} now): look at "
        "health/align_gradient and health/usable_pairs; a higher config.optim.lr or config.align.weight may help"
    )


class AlignmentCheck:
    """Warns once where the alignment of a run does not learn; `rows` are those of its log so far."""

    def __init__(self, rows: list[dict], total: int):
        self._rows, self._total, self._warned = rows, total, False

    def look(self, row: dict) -> None:
        """At one more row, with its `step`."""
        if self._warned:
            return
        self._rows.append(row)
        if trouble := alignment_trouble(self._rows, self._total):
            print(f"warning: {trouble}", flush=True)
            self._warned = True


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
                kept = f"the last checkpoint, step {last_good}, is kept" if last_good else "no checkpoint was written"
                raise Diverged(
                    f"step {step}: loss {float(loss)}, gradient norm {float(grad_norm)}. Training stopped; {kept}. A "
                    "lower learning rate (config.optim.lr), a longer warm-up, or config.model.dtype=float32 may help"
                )
        self.pending.clear()
