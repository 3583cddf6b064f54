"""The warnings of a run whose alignment does not learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.comparing import numpy_of
from support.small_step import start

from cvsa_jax.training.monitor import AlignmentCheck, alignment_trouble, named


def rows(values, *, every: int = 10, gradient: float = 0.1, hit: float = 0.3, usable: float = 1.0) -> list[dict]:
    return [
        {
            "step": every * (k + 1),
            "train/align": value,
            "health/align_gradient": gradient,
            "health/objective_gradient": 0.1,
            "health/align_hit": hit,
            "health/usable_pairs": usable,
        }
        for k, value in enumerate(values)
    ]


FLAT = [2.19, 2.20, 2.18, 2.19, 2.20] * 6  # of 300 steps


def test_alignment_loss_that_falls_or_is_low_gives_no_warning():
    assert alignment_trouble(rows(np.linspace(2, 1, 30)), 300) == ""
    assert alignment_trouble(rows([0.013] * 30, hit=0.95), 300) == ""
    assert alignment_trouble([{"step": 10, "train/contrastive": 1.0}], 300) == ""


def test_flat_alignment_loss_warns_after_a_fifth_of_the_run():
    assert "has not moved by step 300 (2.192 at first, 2.192 now)" in alignment_trouble(rows(FLAT), 1500)
    assert alignment_trouble(rows(FLAT), 1501) == ""
    # 100 steps at least: early steps are warm-up.
    assert alignment_trouble(rows(FLAT, every=1), 30) == ""


def test_vanishing_alignment_gradient_warns_at_once():
    assert "has no gradient at step 10" in alignment_trouble(rows([2.19], gradient=1e-12), 10_000)


def test_warning_names_empty_masks_as_the_cause():
    trouble = alignment_trouble(rows([0.0], gradient=0.0, usable=0.0), 10_000)
    assert "no pair of step 10 has a mask" in trouble and "saliency maps" in trouble


def test_alignment_warning_is_printed_once(capsys):
    check = AlignmentCheck(rows(FLAT), 300)
    for row in rows(FLAT):
        check.look(row)
    assert capsys.readouterr().out.count("warning: the alignment loss has not moved") == 1


# Conv heads as LARS left them after a stage 1 that did not train them: 1e-14 of what they were.
@pytest.mark.parametrize("scale", [pytest.param(1.0, id="living"), pytest.param(1e-14, id="dead")])
def test_step_with_dead_conv_heads_triggers_the_warning(run, scale):
    state = numpy_of(start("byol"))
    heads = ("conv_projector", "conv_predictor")
    shrunk = functools.partial(jax.tree.map, lambda leaf: np.asarray(leaf * scale, np.float32))
    params, target = (
        {part: shrunk(tree) if part in heads else tree for part, tree in network.params.items()}
        for network in (state.online, state.target)
    )
    state = state.replace(online=state.online.replace(params=params), target=state.target.replace(params=target))
    _, metrics = run("byol", 2, state)
    trouble = alignment_trouble([{"step": 1} | named(jax.tree.map(jnp.asarray, metrics))], 100)
    assert ("has no gradient" in trouble) == (scale < 1)
