"""Training state: the online and the target network as two variable trees of one module, and the optimiser."""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cvsa_jax.models.siamese import TARGET_PARTS, Siamese
from cvsa_jax.training.optim import online_probe_optimizer


@flax.struct.dataclass
class Network:
    """Parameters and batch statistics of one of the two networks."""

    params: dict
    batch_stats: dict

    @property
    def variables(self) -> dict:
        return {"params": self.params, "batch_stats": self.batch_stats}


class OnlineProbe(NamedTuple):
    """A linear classifier that learns from the online network's features and gives nothing back; (C + 1, classes)
    weights, biases in the last row."""

    weights: jax.Array
    opt_state: optax.OptState


class Queue(NamedTuple):
    """(K, D) unit keys of earlier batches, MoCo's negatives."""

    keys: jax.Array


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; `step` counts the steps done. What the objective does without is None."""

    step: Any  # () int32; abstract where the state is a pattern to restore into
    online: Network
    target: Network | None
    opt_state: optax.OptState
    queue: Queue | None = None
    probe: OnlineProbe | None = None


def target_parts(tree: dict) -> dict:
    """The part of an online tree that has a target: backbone and projectors."""
    return {name: tree[name] for name in TARGET_PARTS if name in tree}


def init_state(
    model: Siamese,
    optimizer: optax.GradientTransformation,
    view_size: int,
    key: jax.Array,
    *,
    target: bool = True,
    queue: int = 0,
    classes: int = 0,
) -> TrainState:
    """Random online network, its copy as target, `queue` random unit keys, a probe of `classes` classes, step 0."""
    variables = model.clone(axis_name=None).init(key, jnp.zeros((2, view_size, view_size, 3)), True)
    online = Network(variables["params"], variables["batch_stats"])
    keys = jax.random.normal(jax.random.fold_in(key, 1), (queue, model.head_out))
    probe = jnp.zeros((model.features_out + 1, classes))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        online=online,
        target=initial_target(online) if target else None,
        opt_state=optimizer.init(online.params),
        queue=Queue(keys / jnp.linalg.norm(keys, axis=1, keepdims=True)) if queue else None,
        probe=OnlineProbe(probe, online_probe_optimizer().init(probe)) if classes else None,
    )


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
