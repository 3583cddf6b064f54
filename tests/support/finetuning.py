"""Fine-tuning on a set and a network of seconds, and what its trainings leave."""

import contextlib
import dataclasses
import functools
import io
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from configs import folder_finetune
from cvsa_jax import settings
from cvsa_jax.runs import finetune
from cvsa_jax.training import checkpoint
from cvsa_jax.training.finetune_step import ClassifierState, init_classifier
from cvsa_jax.training.state import Network
from support.running import Step

CLASSES, PER_CLASS, STEPS = 3, 8, 18  # train images of a class; steps of every training
FAST = 3.0  # a learning rate that moves the network within so few steps
TRAININGS = ("labels_100/lr_0/validation", "labels_100/lr_3/validation", "labels_100/lr_3/final")
LOCALIZATION = {"pointing_game", "mask_iou", "mask_iou_best", "pixel_ap", "max_box_acc_v2", "corloc"}


def tiny(rates=(0.0, FAST)):
    config = folder_finetune.get_config("small")
    config.data.kind = "procedural"
    config.data.procedural.update(classes=CLASSES, train_per_class=PER_CLASS, test_per_class=4, size=32)
    config.views.size = config.eval.size = config.eval.resize = 32
    config.model.update(width=8)
    config.batch_size, config.total_epochs = 8, 6.0
    config.learning_rates = rates
    config.log_steps, config.checkpoint_steps = 1, 6
    return config


def copies_of(tree):
    # Copies: the step donates its state's buffers, and an array of NumPy may be a view of them.
    return jax.tree.map(np.array, tree)


class Training(NamedTuple):
    """What one training started from, and which images it read."""

    start: Network
    read: set[int]


@contextlib.contextmanager
def watched():
    """Gives name of the training -> `Training`, filled while fine-tuning runs inside."""
    trainings, seen = {}, []
    load, loop = settings.load_source, finetune.run_steps

    def load_source(data):
        source = load(data)

        def read(i):
            seen.append(i)
            return source.read(i)

        return dataclasses.replace(source, read=read)

    def run_steps(run, *args, **kwargs):
        start = copies_of(run.state.network)
        seen.clear()
        result = loop(run, *args, **kwargs)
        trainings["/".join(run.workdir.parts[-3:])] = Training(start, set(seen))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "load_source", load_source)
        patch.setattr(finetune, "run_steps", run_steps)
        yield trainings


def kill_at(patch, count):
    """Makes the `count`-th step, over all trainings, of this process die."""
    make, done = finetune.make_finetune_step, []

    def dying(*args):
        real = make(*args)

        def step(state, batch):
            done.append(None)
            if len(done) == count:
                raise KeyboardInterrupt
            return real(state, batch)

        return Step(step)

    patch.setattr(finetune, "make_finetune_step", dying)


def start_of(config, workdir) -> Network:
    """What the first training of a call starts from; it goes no further."""
    starts = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def run_steps(run, *args, **kwargs):
            starts.append(copies_of(run.state.network))
            raise KeyboardInterrupt

        patch.setattr(finetune, "run_steps", run_steps)
        finetune.finetune(config, workdir)
    return starts[0]


class Finished(NamedTuple):
    workdir: Path
    figures: dict[str, float]
    trainings: dict[str, Training]


@functools.cache
def shapes() -> ClassifierState:
    optimizer, _ = settings.optimizer(tiny(), CLASSES * PER_CLASS)
    model = settings.classifier(tiny().model, CLASSES)
    return jax.eval_shape(lambda key: init_classifier(model, optimizer, 32, key), jax.random.key(0))


def final_state(workdir: Path) -> ClassifierState:
    checkpoints = checkpoint.Checkpointer(workdir)
    state = checkpoints.restore(shapes(), finetune.make_mesh())
    checkpoints.close()
    return copies_of(state)


def images_of(workdir: Path) -> list[int]:
    checkpoints = checkpoint.Checkpointer(workdir)
    images = checkpoints.meta()["images"]
    checkpoints.close()
    return images


def procedural():
    return settings.load_source(tiny().data)


@functools.cache
def classifier():
    model = settings.classifier(tiny().model, CLASSES).clone(axis_name=None)
    return jax.jit(lambda variables, x: model.apply(variables, x, False))


def predict(workdir: Path, rows) -> np.ndarray:
    """(images, classes) logits of a training's last checkpoint, without any of the evaluation; nothing to resize."""
    source = procedural()
    decoded = [np.asarray(Image.open(io.BytesIO(source.read(int(i)))).convert("RGB")) for i in rows]
    images = (np.stack(decoded) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.asarray(classifier()(final_state(workdir).network.variables, images.astype(np.float32)))


def share_right(workdir: Path, rows, labels=None) -> float:
    """Share of the images whose class has the one largest logit: where all tie, none."""
    logits, labels = predict(workdir, rows), (procedural().labels if labels is None else labels)[rows]
    best = logits == logits.max(1, keepdims=True)
    return float((best[np.arange(len(rows)), labels] & (best.sum(1) == 1)).mean())


def held_out(workdir: Path) -> np.ndarray:
    """The labelled images that a validation training was not given."""
    return np.setdiff1d(procedural().splits["train"], images_of(workdir))
