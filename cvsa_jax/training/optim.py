"""Optimisers and schedules. LARS, Adam and SGD are Optax's; the masks and the schedules are BYOL's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

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


def make_optimizer(
    name: str, schedule: optax.Schedule, weight_decay: float, momentum: float
) -> optax.GradientTransformation:
    """One of `OPTIMIZERS`; weight decay, and the trust ratio of LARS, act on kernels only. Adam's decay is decoupled
    (AdamW); `momentum` is that of LARS (heavy ball) and of SGD (Nesterov)."""
    if name == "lars":
        return optax.lars(
            schedule,
            weight_decay=weight_decay,
            weight_decay_mask=kernels_only,
            trust_coefficient=LARS_TRUST_COEFFICIENT,
            trust_ratio_mask=kernels_only,
            momentum=momentum,
        )
    if name == "adam":
        return optax.adamw(schedule, weight_decay=weight_decay, mask=kernels_only)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=kernels_only), optax.sgd(schedule, momentum, nesterov=True)
    )
