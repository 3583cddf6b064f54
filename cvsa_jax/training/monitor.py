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
