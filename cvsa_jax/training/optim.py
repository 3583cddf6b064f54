"""Optimisers and schedules. LARS, Adam and SGD are Optax's; the masks and the schedules are BYOL's."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cvsa_jax.runtime import checks

OPTIMIZERS = ("lars", "adam", "sgd")
LARS_TRUST_COEFFICIENT = 1e-3


def learning_rate(base: float, batch_size: int, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then cosine to 0 at `total_steps`; the peak is base · batch_size / 256 (BYOL, F.1)."""
    return optax.warmup_cosine_decay_schedule(0.0, base * batch_size / 256, warmup_steps, total_steps)


def target_decay(base: float, total_steps: int, cosine: bool) -> Callable[[jax.Array], jax.Array]:
    """EMA coefficient tau of the target network at a step: `base` throughout, or 1 − (1 − base)·(cos(πk/K) + 1)/2,
    which rises from `base` at k = 0 to 1 at k = K (BYOL, F.1)."""

    distance = optax.cosine_decay_schedule(1 - base, total_steps) if cosine else optax.constant_schedule(1 - base)
    return lambda step: 1 - jnp.asarray(distance(step), jnp.float32)


def kernels_only(params) -> dict:
    """True for kernels, False for biases and normalisation parameters (everything of rank 1)."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """`config.optim` but for the schedule. `momentum`: of LARS (heavy ball) and SGD, there Nesterov's if `nesterov`.
    `decay`: what the weight decay is on, `kernels` or `all`. `predictor_rate`: the predictors' learning rate where it
    does not follow the schedule."""

    name: str
    weight_decay: float
    momentum: float = 0.9
    nesterov: bool = True
    decay: str = "kernels"
    predictor_rate: float | None = None

    def __post_init__(self):
        checks.choice("config.optim.name", self.name, OPTIMIZERS)
        checks.choice("config.optim.decay", self.decay, ("kernels", "all"))


def make_optimizer(
    schedule: optax.Schedule, spec: OptimizerSpec, trained: tuple[str, ...] | None = None
) -> optax.GradientTransformation:
    """One of `OPTIMIZERS`. The trust ratio of LARS acts on kernels only; Adam's decay is decoupled (AdamW).

    Args:
        trained: the top-level parts of the parameters that the loss gives a gradient; None: all. The others stay as
            they are. Without this, LARS would scale their bare weight decay up to the size of a gradient step, and
            shrink them to nothing.
    """
    if spec.predictor_rate is None and trained is None:
        return _optimizer(schedule, spec)
    rates = {"schedule": _optimizer(schedule, spec), "none": optax.set_to_zero()}
    if spec.predictor_rate is not None:
        rates["fixed"] = _optimizer(optax.constant_schedule(spec.predictor_rate), spec)

    def rate_of(part: str) -> str:
        if trained is not None and part not in trained:
            return "none"
        return "fixed" if spec.predictor_rate is not None and "predictor" in part else "schedule"

    def rates_of(params) -> dict:
        return {part: jax.tree.map(lambda _, part=part: rate_of(part), tree) for part, tree in params.items()}

    return optax.partition(rates, rates_of)


def _optimizer(schedule: optax.Schedule, spec: OptimizerSpec) -> optax.GradientTransformation:
    decayed = True if spec.decay == "all" else kernels_only
    if spec.name == "lars":
        return optax.lars(
            schedule,
            weight_decay=spec.weight_decay,
            weight_decay_mask=decayed,
            trust_coefficient=LARS_TRUST_COEFFICIENT,
            trust_ratio_mask=kernels_only,
            momentum=spec.momentum,
        )
    if spec.name == "adam":
        return optax.adamw(schedule, weight_decay=spec.weight_decay, mask=None if spec.decay == "all" else decayed)
    decay = optax.add_decayed_weights(spec.weight_decay, mask=None if spec.decay == "all" else decayed)
    return optax.chain(decay, optax.sgd(schedule, spec.momentum, nesterov=spec.nesterov))
