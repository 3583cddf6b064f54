"""The alignment's part of the gradient, and the weight that holds it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.comparing import numpy_of
from support.compiling import quick
from support.small_step import BATCH, FIRST_VIEWS, MODEL, SECOND_VIEWS, SIZE, WEIGHT, batch, contrast, normalized, start

from cvsa_jax import losses
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training.balance import Balance
from cvsa_jax.training.step import Alignment

NAME = "simsiam"


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    """Root mean squares of the gradients that the views' own losses give their feature maps, cut out of the network."""
    model, rows = MODEL.clone(axis_name=None), batch()
    variables = jax.tree.map(jnp.asarray, start(NAME).online.variables)
    views = normalized(jnp.concatenate([rows["view1"], rows["view2"]]))
    cells = SIZE // model.stride
    mask1, mask2 = (losses.cell_masks(jnp.asarray(rows[m], jnp.float32) / 255, cells) for m in ("mask1", "mask2"))
    kl = losses.ALIGNMENT_FORMS["kl"]

    def heads(network, features):
        projection = network.projector(features.mean((1, 2)), True)
        projection_map = network.conv_projector(features, True)
        return (
            projection,
            network.predictor(projection, True),
            projection_map,
            network.conv_predictor(projection_map, True),
        )

    def apply(method, *args):
        return model.apply(variables, *args, method=method, mutable=["batch_stats"])[0]

    @quick
    @jax.jacrev
    def gradients(features):
        projection, prediction, z, p = apply(heads, features)
        z = jax.lax.stop_gradient(z)
        aligned = kl(p[FIRST_VIEWS], z[SECOND_VIEWS], mask1, mask2, 0.2)
        aligned += kl(p[SECOND_VIEWS], z[FIRST_VIEWS], mask2, mask1, 0.2)
        return {
            "objective": contrast(NAME, prediction, jax.lax.stop_gradient(projection)),
            "align": aligned.mean(),
        }

    found = numpy_of(gradients(apply(lambda network, x: network.backbone(x, True)[0], views)))
    # The loss is the mean over 2 · BATCH views.
    return {name: np.sqrt(((2 * BATCH * g) ** 2).sum() / (2 * BATCH)) for name, g in found.items()}


@pytest.mark.slow
def test_gradient_norms_of_both_losses_match_reference_on_1_and_8_devices(run, expected):
    for devices in (1, 8):
        _, metrics = run(NAME, devices)
        np.testing.assert_allclose(metrics["objective_gradient"], expected["objective"], rtol=1e-3)
        np.testing.assert_allclose(metrics["align_gradient"], expected["align"], rtol=1e-3)
        aligned = WEIGHT * expected["align"]
        np.testing.assert_allclose(
            metrics["align_gradient_share"], aligned / (aligned + expected["objective"]), rtol=1e-3
        )


def test_balanced_weight_follows_the_averaged_gradient_norms(run, expected):
    balanced = start(NAME).replace(balance=Balance(np.array([3.0, 2.0], np.float32)))
    state, metrics = run(NAME, 8, balanced)
    np.testing.assert_allclose(metrics["align_weight"], 1.5 * WEIGHT, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], metrics["contrastive"] + 1.5 * WEIGHT * metrics["align"], rtol=1e-5)
    # What is averaged is the gradient without the weight.
    now = np.array([expected["objective"], expected["align"]])
    np.testing.assert_allclose(state.balance.norms, 0.99 * np.array([3.0, 2.0]) + 0.01 * now, rtol=1e-4)


def test_balanced_weight_starts_at_its_config_value_then_holds_the_gradient_ratio(run, expected):
    state = start(NAME).replace(balance=Balance(np.zeros(2, np.float32)))
    state, metrics = run(NAME, 8, state)
    assert metrics["align_weight"] == WEIGHT
    # From the second step on its gradient is WEIGHT times the objective's.
    _, metrics = run(NAME, 8, state.replace(online=start(NAME).online, step=np.int32(0)))
    np.testing.assert_allclose(metrics["align_gradient_share"], WEIGHT / (1 + WEIGHT), rtol=2e-3)


def test_unknown_balance_is_refused():
    with pytest.raises(UserError, match=r"config\.align\.balance='none' is unknown; take one of fixed, gradient"):
        Alignment(1.0, "kl", 0.2, "none")
