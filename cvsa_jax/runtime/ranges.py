"""The range of every number of the config, so that a wrong one is answered at once, by its key; what depends on several
keys, and the choices of strings, are checked where they are used."""

import fnmatch
import math
from collections.abc import Iterable
from typing import Any

from cvsa_jax.runtime.errors import UserError

# Pattern of keys -> (lowest, highest); the first that fits counts.
RANGES: dict[str, tuple[float | int, float | int]] = {
    "*_prob": (0, 1),
    "augment.side": (0.05, 10),
    "augment.aspect": (1, 10),
    "augment.*.hue": (0, 0.5),
    "augment.*": (0, 10),
    "batch_size": (1, 10**7),
    "accumulate_steps": (1, 10**6),
    "total_epochs": (0, 10**7),
    "total_steps": (1, 10**12),
    "seed": (0, 2**31 - 1),
    "data.procedural.seed": (0, 2**31 - 1),
    "data.procedural.size": (16, 4096),
    "data.procedural.scale": (1e-6, 1),
    "data.procedural.*": (1, 10**7),
    "align.weight": (0, 10**6),
    "*temperature": (1e-4, 10**4),
    "contrast.queue": (1, 10**9),
    "eval.knn": (1, 10**6),
    "eval.power": (0, 100),
    "eval.*": (1, 10**6),
    "label_fractions": (1e-9, 1),
    "label_counts": (1, 10**6),
    "label_draws": (1, 1000),
    "learning_rates": (0, 10**4),
    "probe.learning_rates": (0, 10**4),
    "probe.crop_area": (1e-6, 1),
    "*validation_share": (1e-6, 1 - 1e-6),
    "probe.*": (1, 10**6),
    "log_steps": (1, 10**12),
    "checkpoint_steps": (1, 10**12),
    "profile_steps": (0, 10**6),
    "model.depth": (1, 1000),
    "model.channels": (1, 10**5),
    "model.*": (1, 10**6),
    "optim.lr": (0, 10**4),
    "optim.momentum": (0, 1),
    "optim.weight_decay": (0, 10),
    "optim.warmup_*": (0, 10**12),
    "saliency.threshold": (0, 1),
    "saliency.warn_fallback": (0, 1),
    "size": (8, 10**5),
    "threshold": (0, 1),
    "target.tau": (0, 1),
    "target.reference_batch": (1, 10**9),
    "views.group": (3, 10**6),
    "views.swapped_views": (1, 2),
    "views.size": (8, 10**5),
    "views.stored": (8, 10**5),
    "views.*": (1e-6, 1),
    "watch.knn_images": (2, 10**9),
    "watch.*": (0, 10**9),
}


def check(config: Iterable[tuple[str, Any]]) -> None:
    """Checks the numbers among the dotted keys and values of a config; those not given (None) are left alone.

    Raises:
        UserError: a number is no number, infinite, or out of the range of its key.
    """
    for key, value in config:
        values = value if isinstance(value, tuple | list) else (value,)
        if values is value and any(isinstance(one, str) for one in values):
            raise UserError(f"config.{key}={value} is no list of numbers, written as (1, 2)")
        for one in values:
            if isinstance(one, int | float) and not isinstance(one, bool):
                _check_one(key, value, one)


def range_of(key: str) -> tuple[float | int, float | int]:
    """Lowest and highest value of a key; any, of one that is not ours."""
    fitting = (bounds for pattern, bounds in RANGES.items() if fnmatch.fnmatchcase(key, pattern))
    return next(fitting, (-math.inf, math.inf))


def _check_one(key: str, value: Any, one: float | int) -> None:
    shown = f"config.{key}={tuple(value) if isinstance(value, list) else value}"
    if not math.isfinite(one):
        raise UserError(f"{shown} is not a finite number")
    low, high = range_of(key)
    if not low <= one <= high:
        raise UserError(f"{shown} is out of range: it lies between {_brief(low)} and {_brief(high)}")


def _brief(bound: float | int) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
