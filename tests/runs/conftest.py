"""What the tests of fine-tuning share."""

import functools
import json

import pytest
from finetuning import Finished, tiny, watched
from helpers import few_devices

from cvsa_jax import settings
from cvsa_jax.evaluation import evaluator as summary
from cvsa_jax.runs import finetune, pretrain


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
