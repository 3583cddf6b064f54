"""The alignment's part of the gradient, and the weight that holds it.

Both losses reach the backbone through its feature map, the objective by way of the average over the cells, so their
gradients there can be told apart without a second pass: the network adds zeros to what each head takes (flax's
`perturb`), and the gradient by these zeros is that loss's own. On the demo's network the ratio of the two is .55 to 2.2
times that of the gradients on the backbone's parameters after 30 to 100 steps, for every form (4 times for `cosine` at
the start), where the forms are about 25-fold apart.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.distributed import AXIS

BALANCES = ("fixed", "gradient")
DECAY = 0.99  # of the average, which so spans about 100 steps
COLLECTION = "perturbations"  # flax's
_EPS = 1e-20


class Balance(NamedTuple):
    """`norms` (2,): the slow averages of `objective_gradient` and `align_gradient`, zeros at the start."""

    norms: jax.Array


def taps(model: Siamese, variables: dict, views: jax.Array) -> dict:
    """The variables with zeros to be added to what the heads take, each device its own."""
    online = functools.partial(model.apply, train=True, mutable=["batch_stats", COLLECTION])
    shapes = jax.eval_shape(online, variables, views)[1][COLLECTION]
    zeros = jax.tree.map(lambda s: jax.lax.pcast(jnp.zeros(s.shape, s.dtype), AXIS, to="varying"), shapes)
    return {COLLECTION: zeros}


def figures(at_taps: dict, weight: float | jax.Array) -> dict[str, jax.Array]:
    """From the gradient by the `taps` of a loss with the alignment times `weight`: `objective_gradient` and
    `align_gradient`, root mean squares over the views of the global batch of the norm that each view's loss gives its
    feature map, the latter at factor 1; the factor, `align_weight`; and `align_gradient_share`, the alignment's part
    of the sum of both with the factor."""
    vector, feature_map = (at_taps[COLLECTION][name].astype(jnp.float32) for name in ("to_vector", "to_map"))
    cells = feature_map.shape[1] * feature_map.shape[2]  # over which the average spreads the vector's gradient
    squares = jnp.stack([(vector**2).sum() / cells, (feature_map**2).sum()])
    # The loss is a mean over the views, of which each so has its share.
    objective, aligned = jnp.sqrt(jax.lax.psum(squares, AXIS) * len(vector) * jax.lax.axis_size(AXIS))
    return {
        "objective_gradient": objective,
        "align_gradient": aligned / weight,
        "align_gradient_share": aligned / jnp.maximum(objective + aligned, _EPS),
        "align_weight": jnp.asarray(weight, jnp.float32),
    }


def held_weight(weight: float, balance: Balance) -> jax.Array:
    """The factor of the alignment loss at which its gradient is `weight` times the objective's, by their averages;
    `weight` itself where there are none yet."""
    objective, aligned = balance.norms
    known = jnp.minimum(objective, aligned) > _EPS
    return weight * jnp.where(known, objective / jnp.where(known, aligned, 1), 1)


def moved(balance: Balance, now: dict[str, jax.Array]) -> Balance:
    """The averages one step later. They start at zeros, which the ratio of the two does not notice."""
    norms = jnp.stack([now["objective_gradient"], now["align_gradient"]])
    return Balance(DECAY * balance.norms + (1 - DECAY) * norms)
