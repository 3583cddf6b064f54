"""Checks of settings: each raises one UserError that names the config key and says what is allowed."""

from collections.abc import Iterable, Sequence

from cvsa_jax.runtime.errors import UserError


def choice(key: str, value, allowed: Iterable) -> None:
    """`value` is one of `allowed`."""
    if value not in allowed:
        raise UserError(f"{key}={value!r} is unknown; take one of {', '.join(str(a) for a in allowed)}")


def area(key: str, value: Sequence[float]) -> None:
    """A range (low, high) of fractions within (0, 1]."""
    if len(value) != 2 or not 0 < value[0] <= value[1] <= 1:
        raise UserError(f"{key}={tuple(value)} is not a range within (0, 1]")


def share(key: str, value: float | int) -> None:
    """A number strictly between 0 and 1."""
    if not 0 < value < 1:
        raise UserError(f"{key}={value:g} does not lie in (0, 1)")


def probability(key: str, value: float | int) -> None:
    """A number from 0 to 1."""
    if not 0 <= value <= 1:
        raise UserError(f"{key}={value:g} does not lie in [0, 1]")


def at_least(key: str, value: float | int, least: float | int) -> None:
    """A number that is not below `least`."""
    if not value >= least:
        raise UserError(f"{key}={value:g} must be at least {least:g}")


def positive(key: str, value: float | int) -> None:
    """A number above 0."""
    if not value > 0:
        raise UserError(f"{key}={value:g} must be above 0")


def learning_rates(key: str, rates: Sequence[float]) -> None:
    """Learning rates, each once, to the six digits that name it in folders and figures; none negative."""
    if not len(rates) or len({f"{rate:g}" for rate in rates}) < len(rates) or min(rates) < 0:
        raise UserError(f"{key}={tuple(rates)}: give different rates, none negative")
