"""The range of every documented key: defaults lie in it, what lies outside is refused by its key."""

import importlib
import math
from pathlib import Path

import pytest

from configs import common
from cvsa_jax.runtime import ranges
from cvsa_jax.runtime.config_files import flattened
from cvsa_jax.runtime.errors import UserError

MODES = ("pretrain", "linear", "finetune", "saliency_unet")
EVERY = {key: value for mode in MODES for key, value in flattened(getattr(common, mode)())}
NOT_GIVEN = {"total_steps", "optim.warmup_steps", "contrast.queue", "eval.size", "eval.resize", "views.stored"}
CONFIGS = sorted(path.stem for path in Path(common.__file__).parent.glob("*.py"))
SHARED = {"__init__", "common", "recipes", "sets"}


def is_number(value) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)


NUMBERS = sorted(NOT_GIVEN | {key for key, value in EVERY.items() if value is not None and is_number(value)})


def test_every_number_of_the_config_is_tested():
    assert {key for key, value in EVERY.items() if value is None} == NOT_GIVEN


@pytest.mark.parametrize("key", NUMBERS)
def test_number_outside_its_range_is_refused_with_its_key(key):
    low, high = ranges.range_of(key)
    assert low < high
    many = isinstance(EVERY[key], tuple)
    outside = (math.nan, math.inf, -math.inf, -1, low - 1, high + 1, high * 2 + 1)
    for wrong in outside:
        value = (low, wrong) if many else wrong
        with pytest.raises(UserError) as refused:
            ranges.check([(key, value)])
        text = str(refused.value)
        assert text.startswith(f"config.{key}=") and "\n" not in text
        assert ("finite" in text) == (not math.isfinite(wrong))
    for right in (low, high):
        ranges.check([(key, (right,) if many else right)])


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in SHARED])
def test_configs_lie_within_the_ranges(name):
    ranges.check(flattened(importlib.import_module(f"configs.{name}").get_config()))


def test_list_without_numbers_is_refused():
    # What the flags make of --config.views.crop_area="(0.1,inf)".
    with pytest.raises(UserError, match=r"config\.views\.crop_area=\('\(0\.1,inf\)',\) is no list of numbers"):
        ranges.check([("views.crop_area", ("(0.1,inf)",))])


def test_words_switches_and_absent_numbers_have_no_range():
    ranges.check([("data.kind", "folder"), ("model.remat", True), ("total_steps", None)])
