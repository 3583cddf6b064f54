"""Training state: the online and the target network as two variable trees of one module, and the optimiser."""

import functools
import hashlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cvsa_jax.models.siamese import TARGET_PARTS, Siamese
from cvsa_jax.training.balance import Balance
from cvsa_jax.training.health import OnlineProbe, init_probe
from cvsa_jax.training.negatives import Queue, random_queue


@flax.struct.dataclass
class Network:
    """Parameters and batch statistics of one of the two networks."""

    params: dict
    batch_stats: dict

    @property
    def variables(self) -> dict:
        return {"params": self.params, "batch_stats": self.batch_stats}

    def only(self, parts: tuple[str, ...]) -> "Network":
        """These of its parts, such as the backbone and the projector."""
        kept = ({part: tree[part] for part in parts if part in tree} for tree in (self.params, self.batch_stats))
        return Network(*kept)

    def with_parts(self, other: "Network") -> "Network":
        """This network with the parts that `other` has, such as its backbone, in the place of its own."""
        return Network(self.params | other.params, self.batch_stats | other.batch_stats)


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; `step` counts the steps done. What the objective does without is None."""

    step: Any  # () int32; abstract where the state is a pattern to restore into
    online: Network
    target: Network | None
    opt_state: optax.OptState
    queue: Queue | None = None
    probe: OnlineProbe | None = None
    balance: Balance | None = None

    @property
    def params(self) -> dict:
        """Those that the optimiser moves."""
        return self.online.params

    def starting_from(self, online: Network) -> "TrainState":
        """This state with another online network, of which the target is a copy."""
        return self.replace(online=online, target=None if self.target is None else initial_target(online))


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
    balanced: bool = False,
) -> TrainState:
    """Random online network, its copy as target, `queue` random unit keys, a probe of `classes` classes, step 0; with
    `balanced` no average of gradients yet."""
    variables = model.clone(axis_name=None).init(key, jnp.zeros((2, view_size, view_size, 3)), True)
    online = Network(variables["params"], variables["batch_stats"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        online=online,
        target=initial_target(online) if target else None,
        opt_state=optimizer.init(online.params),
        queue=random_queue(queue, model.head_out, jax.random.fold_in(key, 1)) if queue else None,
        probe=init_probe(model.features_out, classes) if classes else None,
        balance=Balance(jnp.zeros(2)) if balanced else None,
    )


def initial_target(online: Network) -> Network:
    """Target network equal to the online one; copies, because the step donates its state's buffers."""
    return jax.tree.map(jnp.copy, Network(target_parts(online.params), target_parts(online.batch_stats)))


def tree_hash(tree: Any) -> str:
    """Hash of all values of a tree of arrays."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def empty_network(model: Siamese) -> Network:
    """Shapes and types of the online network, without its values."""
    initialize = functools.partial(init_state, model, optax.identity(), 4 * model.stride)
    return jax.eval_shape(initialize, jax.random.key(0)).online
