"""Steps that learn from labels: fine-tuning of a whole network, and the linear probe on augmented crops.

The rule for gradients under `shard_map` is that of `step.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cvsa_jax.models.classifier import Classifier
from cvsa_jax.models.resnet import stride
from cvsa_jax.runtime.distributed import AXIS, device_copies, replicated, sum_of_copies
from cvsa_jax.training import photometric
from cvsa_jax.training.state import Network

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class ClassifierState:
    """Everything that a step of fine-tuning changes; `step` counts the steps done."""

    step: Any  # () int32; abstract where the state is a pattern to restore into
    network: Network
    opt_state: optax.OptState

    @property
    def params(self) -> dict:
        """Those that the optimiser moves."""
        return self.network.params


def init_classifier(
    model: Classifier, optimizer: optax.GradientTransformation, size: int, key: jax.Array
) -> ClassifierState:
    """Random backbone, classifier of zeros, step 0."""
    variables = model.clone(axis_name=None).init(key, jnp.zeros((2, size, size, 3)), True)
    network = Network(variables["params"], variables["batch_stats"])
    return ClassifierState(jnp.zeros((), jnp.int32), network, optimizer.init(network.params))


def empty_classifier(model: Classifier) -> Network:
    """Shapes and types of the network, without its values."""
    size = 4 * stride(model.depth, model.stem)
    initialize = functools.partial(init_classifier, model, optax.identity(), size)
    return jax.eval_shape(initialize, jax.random.key(0)).network


def make_finetune_step(
    model: Classifier, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[ClassifierState, Batch], tuple[ClassifierState, dict[str, jax.Array]]]:
    """One step of cross-entropy on the whole network, from `image` (B, S, S, 3) uint8 and `label` (B,) int32. Batch
    statistics are those of the global batch. The state's buffers are donated."""

    def step_fn(state: ClassifierState, batch: Batch) -> tuple[ClassifierState, dict[str, jax.Array]]:
        images = photometric.normalize(photometric.to_float(batch["image"]))

        def loss_fn(params):
            variables = {"params": params, "batch_stats": state.network.batch_stats}
            logits, mutated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            hits = (logits.argmax(-1) == batch["label"]).mean()
            return jax.lax.pmean(losses.mean(), AXIS), (mutated["batch_stats"], jax.lax.pmean(hits, AXIS))

        (loss, (stats, top1)), shares = jax.value_and_grad(loss_fn, has_aux=True)(device_copies(state.network.params))
        grads = sum_of_copies(shares)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.network.params)
        params = optax.apply_updates(state.network.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), "top1": top1}
        return ClassifierState(state.step + 1, Network(params, stats), opt_state), metrics

    sharded = jax.shard_map(
        step_fn, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(AXIS)), out_specs=PartitionSpec()
    )
    return jax.jit(sharded, donate_argnums=0, out_shardings=replicated(mesh))


@flax.struct.dataclass
class ProbeState:
    """(R, C + 1, K) classifiers, one for each learning rate, biases in the last row, and their common optimiser."""

    weights: jax.Array
    opt_state: optax.OptState


def make_probe_step(
    optimizer: optax.GradientTransformation, mesh: Mesh, rates: tuple[float, ...], mean: jax.Array, std: jax.Array
) -> Callable[[ProbeState, Batch], ProbeState]:
    """One step of cross-entropy on the classifiers alone, from `pooled` (B, C), which are standardised with the mean
    and deviation given, `label` (B,) and `weight` (B,), 0 of rows that only fill the devices. `optimizer` has learning
    rate 1 at its peak; its updates are multiplied by each classifier's own rate, which for SGD with momentum is the
    same as giving it that rate."""

    def step_fn(state: ProbeState, batch: Batch) -> ProbeState:
        x = (batch["pooled"] - mean) / std

        def loss_fn(weights):
            logits = jnp.einsum("bc,rck->rbk", x, weights[:, :-1]) + weights[:, -1:]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"][None])
            return (losses * batch["weight"]).sum() / batch["weight"].sum()

        updates, opt_state = optimizer.update(jax.grad(loss_fn)(state.weights), state.opt_state)
        weights = state.weights + jnp.asarray(rates)[:, None, None] * updates
        return ProbeState(weights, opt_state)

    rows, same = NamedSharding(mesh, PartitionSpec(AXIS)), replicated(mesh)
    return jax.jit(step_fn, in_shardings=(same, rows), out_shardings=same, donate_argnums=0)
