import math

import jax.numpy as jnp
import pytest

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training.monitor import FiniteCheck, named


def values(loss: float = 1.0, grad_norm: float = 1.0) -> dict:
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(grad_norm), "tau": jnp.float32(math.nan)}


def test_finite_check_passes_finite_steps():
    finite = FiniteCheck()
    for step in range(1, 4):
        finite.add(step, values())
    finite.check(None)
    finite.check(2)


@pytest.mark.parametrize("bad", [{"loss": math.nan}, {"grad_norm": math.inf}], ids=["loss", "gradient"])
def test_finite_check_names_the_first_nonfinite_step(bad):
    finite = FiniteCheck()
    finite.add(5, values())
    finite.check(4)
    for step in range(6, 10):
        finite.add(step, values(**bad if step == 7 else {"loss": math.nan} if step > 7 else {}))
    with pytest.raises(UserError, match=r"^step 7: .*the last checkpoint, step 4, is kept"):
        finite.check(4)


def test_finite_check_before_the_first_checkpoint_says_so():
    finite = FiniteCheck()
    finite.add(1, values(loss=math.nan))
    with pytest.raises(UserError, match=r"^step 1: loss nan, gradient norm 1\.0.*no checkpoint"):
        finite.check(None)


def test_named_maps_step_metrics_to_log_names():
    names = named({"loss": jnp.float32(2), "grad_norm": jnp.float32(3), "align_hit": jnp.float32(0.5)})
    assert names == {"train/loss": 2.0, "health/grad_norm": 3.0, "health/align_hit": 0.5}
