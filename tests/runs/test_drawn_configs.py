"""Configs with values drawn for any of their keys: each starts, or is refused in one sentence that names the key."""

import fnmatch
import math
import os
import tempfile
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.compiling import few_devices

from configs import common, recipes
from cvsa_jax import settings as app_settings
from cvsa_jax.runs import finetune, linear, pretrain, saliency_unet
from cvsa_jax.runtime import ranges
from cvsa_jax.runtime.config_files import flattened
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors.annotation import center

COMMANDS = {
    "pretrain": pretrain.train,
    "linear": linear.linear_probe,
    "finetune": finetune.finetune,
    "saliency_unet": saliency_unet.train_unet,
}
# In their range, but too much work, or memory, for a test.
MOST = {"*size": 64, "*stored": 64, "data.procedural.*": 16, "model.depth": 18, "model.*": 64, "label_draws": 3}
WORDS = ["", "x", "no such thing", "ü/ß", "~/nowhere", "random_resized_crop", "saliency_swap", "stretch", "keep_aspect"]
WORDS += ["cover", "size", "common", "device", "host", "byol", "moco", "simsiam", "simclr", "lars", "adam", "adamw"]
WORDS += ["sgd", "fixed", "scheduled", "gradient", "bfloat16", "float32", "imagenet", "small", "same", "attention"]
WORDS += [
    "train",
    "test",
    "all",
    "procedural",
    "folder",
    "cub",
    "tfds:nothing",
    "skip",
    "stop",
    "pairwise",
    "mask_head",
]


class Started(Exception):
    """A command came to where it would begin."""


def base(mode: str):
    """A config of the mode on a few drawn images."""
    config = getattr(common, mode)()
    if mode == "pretrain":
        recipes.objective(config, {"byol"})
        common.small(config)
        config.saliency.store = "maps"
    config.data.kind = "procedural"
    config.data.procedural.update(classes=3, train_per_class=4, test_per_class=2, size=16)
    config.batch_size = 4
    if mode == "linear":
        config.init_from = "a run"
    if mode == "finetune":
        config.model.update(depth=8, width=4, stem="small")
        config.views.size = config.eval.size = config.eval.resize = 32
        config.learning_rates = (0.1,)
    return config


def values(key: str, value) -> st.SearchStrategy:
    """Of the key's type: for numbers what lies within their range, at its ends and beyond."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, str):
        return st.sampled_from([value, *WORDS]) | st.text(max_size=6)
    if isinstance(value, tuple):
        return st.lists(numbers(key, next(iter(value), 1)), max_size=3).map(tuple)
    return numbers(key, value)


def numbers(key: str, value) -> st.SearchStrategy:
    low, high = ranges.range_of(key)
    pattern = next((pattern for pattern in MOST if fnmatch.fnmatchcase(key, pattern)), None)
    most = min(high, MOST.get(pattern, high))
    odd = [low, most, low - 1, -1, 10**30]
    if value is None or isinstance(value, int):  # what is not given by default is an integer
        return st.integers(int(low), int(min(most, 200))) | st.sampled_from([int(one) for one in odd])
    inside = st.floats(low, min(most, 1e3), allow_nan=False)
    return inside | st.sampled_from([*map(float, odd), math.nan, math.inf, -math.inf])


@st.composite
def drawn(draw, mode: str):
    """One to three keys of a mode's config, with values."""
    keys = [(key, value) for key, value in flattened(base(mode)) if key not in ("mode", "init_from", "data.root")]
    chosen = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3, unique_by=lambda entry: entry[0]))
    return {key: draw(values(key, value)) for key, value in chosen}


@pytest.fixture(scope="module")
def stopped_before_the_first_step(tmp_path_factory):
    """Commands come as far as `Started`; what is kept lies in a folder of its own."""

    def begin(config, workdir, mesh, initialize, **_):
        jax.eval_shape(initialize, jax.random.key(0))
        raise Started

    def candidate(name, origin, source, evaluation, mesh, images, maps):
        app_settings.evaluation(evaluation, base("pretrain"))
        raise Started

    commands = (pretrain, linear, finetune, saliency_unet)
    with few_devices(1, *commands), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(tmp_path_factory.mktemp("here"))
        for command in (pretrain, finetune, saliency_unet):
            patch.setattr(command, "begin", begin)
        patch.setattr(linear.frozen, "candidate", candidate)
        source = app_settings.load_source(base("pretrain").data)
        compute(source, center(source), Path("maps"), threshold=0.5, on_bad_image="stop")
        yield


def outcome(mode: str, changes: dict) -> str:
    """`starts`, or the error's text."""
    config = base(mode)
    config.update_from_flattened_dict(changes)
    try:
        ranges.check(flattened(config))
        with tempfile.TemporaryDirectory() as folder:
            COMMANDS[mode](config, Path(folder) / "run")
    except Started:
        return "starts"
    except UserError as error:
        return str(error)
    return "came to an end"


@pytest.mark.usefixtures("stopped_before_the_first_step")
@pytest.mark.parametrize("mode", COMMANDS)
def test_random_config_starts_or_error_names_its_key(mode, capsys):
    seen = {"starts": 0, "refused": 0}

    @settings(
        max_examples=int(os.environ.get("CVSA_DRAWN_CONFIGS", 60)),
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn(mode))
    def check(changes):
        told = outcome(mode, changes)
        assert told != "came to an end"
        seen["starts" if told == "starts" else "refused"] += 1
        if told != "starts":
            assert "\n" not in told, (changes, told)
            given_words = [value for value in changes.values() if isinstance(value, str) and len(value) > 4]
            if any(key.startswith("data.") for key in changes) and "saliency store" in told:
                return  # it is of the set that was to be
            words = [f"config.{key}" for key in changes] + given_words
            if any(key.startswith(("data.", "views.")) for key in changes):
                words += ["config.batch_size"]  # which no longer fits
            assert any(word in told for word in words), (changes, told)

    check()
    assert min(seen.values()) > 10, seen
