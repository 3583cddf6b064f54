"""What the tests of fine-tuning share, and those of what is made of a run."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.compiling import few_devices
from support.finetuning import Finished, tiny, watched
from support.tiny_runs import tiny as tiny_pretraining

from cvsa_jax import api, settings
from cvsa_jax.evaluation import evaluator as summary
from cvsa_jax.runs import compare, embed, finetune, linear, look, pretrain, search, weights


@pytest.fixture(scope="module")
def small_finetuning(quick_compilation):
    # Most of what is left is tracing: equal trainings and evaluations share one compiled function.
    optimizers, make = {}, settings.optimizer

    def optimizer(config, images):
        lengths = (config.batch_size, config.total_steps, config.total_epochs, images)
        key = json.dumps([config.optim.to_dict(), *lengths])
        return optimizers.setdefault(key, make(config, images))

    with few_devices(2, pretrain, finetune), pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "optimizer", optimizer)
        patch.setattr(finetune, "make_finetune_step", functools.cache(finetune.make_finetune_step))
        for name in ("make_encoder", "make_class_activation"):
            patch.setattr(summary, name, functools.cache(getattr(summary, name)))
        yield


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, small_finetuning) -> Finished:
    """From scratch, with all labels, uninterrupted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with watched() as trainings:
        figures = finetune.finetune(tiny(), workdir)
    return Finished(workdir, figures, trainings)


@pytest.fixture(scope="module")
def on_one_device(quick_compilation):
    with few_devices(1, pretrain, api, embed, search, weights, compare, look, linear):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, on_one_device) -> Path:
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain.train(tiny_pretraining("byol"), workdir)
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Fourteen labelled images, of which two are equal and one name has a comma."""
    root, rng = tmp_path_factory.mktemp("images") / "birds", np.random.default_rng(0)
    for k in range(14):
        place = root / ("gull" if k % 2 else "tern") / f"a,{k:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (34 + k, 40, 3), np.uint8)).save(place)
    (root / "tern" / "copy.png").write_bytes((root / "gull" / "a,03.png").read_bytes())
    return root
