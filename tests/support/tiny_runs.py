"""Pre-training and probe on a budget of seconds."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from configs import demo
from cvsa_jax.runs import pretrain
from cvsa_jax.training.state import TrainState
from support.running import Step

LOCALIZATION = {"pointing_game", "mask_iou", "mask_iou_best", "pixel_ap", "max_box_acc_v2", "corloc"}


def tiny(arg=""):
    """The demo's config on a budget of seconds."""
    config = demo.get_config(arg)
    config.data.procedural.update(classes=3, train_per_class=7, test_per_class=5, size=32)
    config.views.size = config.eval.size = config.eval.resize = 32
    config.model.update(width=4, head_hidden=16, head_out=8)
    config.batch_size, config.total_steps, config.optim.warmup_steps = 8, 10, 2
    config.log_steps, config.checkpoint_steps = 1, 5
    return config


def tiny_probe():
    config = demo.get_probe_config()
    config.data.procedural.update(tiny().data.procedural)
    config.probe.total_epochs = 3
    return config


def kill_at(monkeypatch, step):
    """Makes the `step`-th training step of this process die."""
    make = pretrain.make_train_step

    def dying(*args, **kwargs):
        real = make(*args, **kwargs)

        def train_step(state, batch):
            if int(state.step) + 1 == step:
                raise KeyboardInterrupt
            return real(state, batch)

        return Step(train_step)

    monkeypatch.setattr(pretrain, "make_train_step", dying)


class Start(NamedTuple):
    """What a pre-training begins with."""

    state: TrainState
    batch: dict[str, np.ndarray]
    identity: dict  # of its data


def start_of(config, workdir) -> Start:
    """What a pre-training begins with; it goes no further, so its step is not compiled."""
    starts = []

    def run_steps(run, step, stream, *args, **kwargs):
        starts.append(Start(jax.tree.map(np.array, run.state), next(stream), run.identity))
        run.checkpoints.close()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "run_steps", run_steps)
        pretrain.train(config, workdir)
    return starts[0]
