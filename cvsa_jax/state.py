"""Training state: the online and the target network as two variable trees of one module, and the optimiser."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cvsa_jax.models.siamese import TARGET_PARTS, Siamese


@flax.struct.dataclass
class Network:
    """Parameters and batch statistics of one of the two networks."""

    params: dict
    batch_stats: dict

    @property
    def variables(self) -> dict:
        return {"params": self.params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; `step` counts the steps done."""

    step: Any  # () int32; abstract where the state is a pattern to restore into
    online: Network
    target: Network
    opt_state: optax.OptState


def target_parts(tree: dict) -> dict:
    """The part of an online tree that has a target: backbone and projectors."""
    return {name: tree[name] for name in TARGET_PARTS if name in tree}


def init_state(model: Siamese, optimizer: optax.GradientTransformation, view_size: int, key: jax.Array) -> TrainState:
    """Random online network, its copy as target, step 0."""
    variables = model.clone(axis_name=None).init(key, jnp.zeros((2, view_size, view_size, 3)), True)
    online = Network(variables["params"], variables["batch_stats"])
    return TrainState(jnp.zeros((), jnp.int32), online, initial_target(online), optimizer.init(online.params))


def initial_target(online: Network) -> Network:
    """Target network equal to the online one; copies, because the step donates its state's buffers."""
    copy = lambda tree: jax.tree.map(jnp.copy, target_parts(tree))  # noqa: E731
    return Network(copy(online.params), copy(online.batch_stats))


def ema(target: dict, online: dict, tau: jax.Array) -> dict:
    """tau · target + (1 − tau) · online, on the target's parts of the online tree."""
    return jax.tree.map(lambda t, o: tau * t + (1 - tau) * o, target, target_parts(online))


def empty_network(model: Siamese) -> Network:
    """Shapes and types of the online network, without its values."""
    initialize = functools.partial(init_state, model, optax.identity(), 4 * model.stride)
    return jax.eval_shape(initialize, jax.random.key(0)).online
