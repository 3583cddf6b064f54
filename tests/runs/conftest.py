"""What the tests of fine-tuning share, and those of what is made of a run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.compiling import few_devices, quickly_compiled
from support.finetuning import Finished, tiny, watched
from support.running import shared_programs
from support.tiny_runs import tiny as tiny_pretraining

from cvsa_jax import api
from cvsa_jax.runs import compare, embed, finetune, linear, look, pretrain, search, weights


@pytest.fixture(scope="module")
def small_finetuning(quick_compilation):
    with few_devices(2, pretrain, finetune), shared_programs():
        yield


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory) -> Finished:
    """From scratch, with all labels, uninterrupted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with quickly_compiled(), few_devices(2, finetune), shared_programs(), watched() as trainings:
        figures = finetune.finetune(tiny(), workdir)
    return Finished(workdir, figures, trainings)


@pytest.fixture(scope="module")
def on_one_device(quick_compilation):
    with few_devices(1, pretrain, api, embed, search, weights, compare, look, linear), shared_programs():
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A finished pre-training with BYOL, to be read only."""
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    with quickly_compiled(), few_devices(1, pretrain), shared_programs():
        pretrain.train(tiny_pretraining("byol"), workdir)
    return workdir


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Fourteen labelled images, of which two are equal and one name has a comma."""
    root, rng = tmp_path_factory.mktemp("images") / "birds", np.random.default_rng(0)
    for k in range(14):
        place = root / ("gull" if k % 2 else "tern") / f"a,{k:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (34 + k, 40, 3), np.uint8)).save(place)
    (root / "tern" / "copy.png").write_bytes((root / "gull" / "a,03.png").read_bytes())
    return root
