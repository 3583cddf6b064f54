"""The training step of an objective and of the alignment loss, jitted over the mesh.

Gradients under `shard_map`: with varying-axes checking (its default), the gradient of a replicated parameter is
already summed over the mesh, and that of a device's own copy is its share of the sum. So the *loss* is averaged with
`pmean` inside the loss function, and the shares are summed, not averaged, once after all micro-batches."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from cvsa_jax import losses
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime import checks
from cvsa_jax.runtime.distributed import AXIS, device_copies, replicated, sum_of_copies
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import balance, health, negatives, photometric
from cvsa_jax.training.accumulation import Pass, Stats, Vectors, accumulated
from cvsa_jax.training.state import Network, TrainState, target_parts

Metrics = dict[str, jax.Array]
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """`config.align`: `weight` of the alignment loss (0: the conv heads are not run), its `form`, one of
    `losses.ALIGNMENT_FORMS`, the `temperature` tau in it, and the `balance`: with `fixed` the weight is the loss's
    factor, with `gradient` the ratio at which its gradient on the features is held to the objective's."""

    weight: float
    form: str
    temperature: float
    balance: str = "fixed"

    def __post_init__(self):
        checks.at_least("config.align.weight", self.weight, 0)
        checks.choice("config.align.form", self.form, losses.ALIGNMENT_FORMS)
        checks.positive("config.align.temperature", self.temperature)
        checks.choice("config.align.balance", self.balance, balance.BALANCES)


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What a step trains for.

    Attributes:
        temperature: of the objectives with negatives.
        augment: photometric strengths of view 1 and of view 2.
        tau: step -> coefficient of the target's moving average.
        seed: of the photometric augmentation.
        accumulate: micro-batches into which each device splits its rows, one in memory at a time. The gradient is that
            of the whole batch, but for batch statistics, which are those of a micro-batch over the mesh. An objective
            that compares the whole batch cannot be split.
    """

    objective: losses.Objective
    temperature: float
    align: Alignment
    augment: tuple[photometric.Photometric, photometric.Photometric]
    tau: Callable[[jax.Array], jax.Array]
    seed: int
    accumulate: int = 1

    def __post_init__(self):
        checks.positive("config.contrast.temperature", self.temperature)
        checks.at_least("config.accumulate_steps", self.accumulate, 1)
        if self.accumulate > 1 and self.objective.whole_batch:
            raise UserError(
                f"config.accumulate_steps={self.accumulate} would split the batch, from which this config.objective "
                "takes its negatives: take config.model.remat=True, more devices, or config.objective=moco"
            )


def make_train_step(
    model: Siamese,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    spec: StepSpec,
    make_views: Callable[[Batch], Batch] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One step of an objective, with the alignment loss where its weight is above 0.

    The batch, or what `make_views` makes of it, holds `view1`, `view2` (B, S, S, 3) uint8, with the alignment `mask1`,
    `mask2` (B, M, M) uint8, `position` (B, 2) uint32, the high and low word of each example's place in the data order,
    which alone decides its photometric parameters, and `label` (B,) int32 where the state holds an online probe. The
    state's buffers are donated. The metrics are scalars of the global batch; `online_top1` is the probe's accuracy
    before it learns from the batch.
    """

    def step_fn(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # 0) The views, where the device makes them.
        if make_views is not None:
            batch = make_views(batch)
        if spec.align.weight > 0:
            batch = batch | _masks_in_cells(batch, batch["view1"].shape[1] // model.stride, spec.accumulate)
        stats = Stats(state.online.batch_stats, None if state.target is None else state.target.batch_stats)
        params = device_copies(state.online.params)
        one = functools.partial(_forward_backward, model, spec, state, params)
        shares, done = accumulated(one, params, stats, batch, spec.accumulate)
        grads = sum_of_copies(shares)

        # 5) Update the online network, move the target towards it, and let the queue forget its oldest keys.
        updates, opt_state = optimizer.update(grads, state.opt_state, state.online.params)
        params = optax.apply_updates(state.online.params, updates)
        new = state.replace(step=state.step + 1, online=Network(params, done.stats.online), opt_state=opt_state)
        metrics = done.metrics | {"grad_norm": optax.tree.norm(grads)}
        if state.target is not None:
            metrics["tau"] = spec.tau(state.step)
            moved = optax.incremental_update(target_parts(params), state.target.params, 1 - metrics["tau"])
            new = new.replace(target=Network(moved, done.stats.target))
        if state.balance is not None:
            new = new.replace(balance=balance.moved(state.balance, done.metrics))
        if state.queue is not None:
            new = new.replace(queue=negatives.enqueued(state.queue, done.vectors.key, state.step))

        # 6) Figures of collapse, and the probe that only watches.
        vectors = done.vectors
        crossed = jnp.roll(vectors.key, len(vectors.key) // 2, 0)
        metrics |= health.collapse_figures(vectors.projection, vectors.query, crossed)
        if "residual" in batch:
            metrics["residual"] = jax.lax.pmean(batch["residual"].mean(), AXIS)
        if state.probe is not None:
            probe, top1 = health.probe_step(state.probe, vectors.pooled, jnp.tile(batch["label"], 2))
            new, metrics = new.replace(probe=probe), metrics | {"online_top1": top1}
        return new, metrics

    sharded = jax.shard_map(
        step_fn, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(AXIS)), out_specs=PartitionSpec()
    )
    return jax.jit(sharded, donate_argnums=0, out_shardings=replicated(mesh))


def _forward_backward(
    model: Siamese, spec: StepSpec, state: TrainState, params: dict, stats: Stats, rows: Batch
) -> tuple[dict, Pass]:
    """Gradient by `params` and `Pass` of some rows of this device; the loss is that of such rows over the mesh."""
    objective, maps = spec.objective, spec.align.weight > 0
    weight = spec.align.weight if state.balance is None else balance.held_weight(spec.align.weight, state.balance)

    # 1) Photometric augmentation of both views.
    views = _augmented(rows, spec)

    # 2) Target network on both views, in one pass and so with common batch statistics.
    target_out, target_stats = None, None
    if objective.target:
        variables = {"params": state.target.params, "batch_stats": stats.target}
        target_out, mutated = model.apply(
            variables, views, train=True, maps=maps, method="project", mutable=["batch_stats"]
        )
        target_stats = mutated["batch_stats"]

    def loss_fn(params, taps):
        # 3) Online network on both views.
        variables = {"params": params, "batch_stats": stats.online} | taps
        out, mutated = model.apply(
            variables, views, train=True, maps=maps, predictor=objective.predictor, mutable=["batch_stats"]
        )
        keys = target_out if objective.target else out
        query = out.prediction if objective.predictor else out.projection

        # 4) Losses.
        inputs = negatives.objective_inputs(objective, query, keys.projection, state.queue)
        loss = jax.lax.pmean(objective.loss(inputs, spec.temperature).mean(), AXIS)
        metrics = {"contrastive": loss}
        if maps:
            aligned, align_metrics = _alignment(spec.align, out.prediction_map, keys.projection_map, rows)
            loss = loss + weight * aligned
            metrics |= {"align": aligned} | align_metrics
        vectors = jax.lax.stop_gradient(Vectors(out.pooled, out.projection, query, keys.projection))
        return loss, Pass(Stats(mutated["batch_stats"], target_stats), metrics | {"loss": loss}, vectors)

    online = {"params": params, "batch_stats": stats.online}
    taps = balance.taps(model, online, views) if maps else {}
    (grads, at_taps), done = jax.grad(loss_fn, (0, 1), has_aux=True)(params, taps)
    if maps:
        done = done._replace(metrics=done.metrics | balance.figures(at_taps, weight))
    return grads, done


def _augmented(rows: Batch, spec: StepSpec) -> jax.Array:
    """Network input of both views (2b, S, S, 3), one random key for each view of each example."""

    def key(position: jax.Array, view: int) -> jax.Array:
        return functools.reduce(jax.random.fold_in, (position[0], position[1], view), jax.random.key(spec.seed))

    keys = jnp.concatenate([jax.vmap(key, (0, None))(rows["position"], view) for view in (0, 1)])
    strengths = [jnp.repeat(jnp.stack(both), len(keys) // 2) for both in zip(*spec.augment, strict=True)]
    views = jnp.concatenate([rows["view1"], rows["view2"]])
    return photometric.augment(views, keys, photometric.Photometric(*strengths))


def _masks_in_cells(batch: Batch, side: int, parts: int) -> Batch:
    """`cells1`, `cells2` (b, side²), the masks on the feature map, and `weight` (b,), by which each pair counts in the
    alignment of its part of the batch, so that the mean over the parts is that over the usable pairs of the batch."""
    cells1, cells2 = (losses.cell_masks(batch[m].astype(jnp.float32) / 255, side) for m in ("mask1", "mask2"))
    usable = losses.usable_pairs(cells1, cells2).astype(jnp.float32)
    weight = usable * parts / jnp.maximum(jax.lax.psum(usable.sum(), AXIS), 1)
    return {"cells1": cells1, "cells2": cells2, "weight": weight}


def _alignment(align: Alignment, queries: jax.Array, keys: jax.Array, rows: Batch) -> tuple[jax.Array, Metrics]:
    """Alignment loss over the mesh, both directions summed, each pair with its weight."""
    mask1, mask2, weight = rows["cells1"], rows["cells2"], rows["weight"]
    (query1, query2), (key1, key2) = jnp.split(queries, 2), jnp.split(keys, 2)
    form, tau = losses.ALIGNMENT_FORMS[align.form], align.temperature
    both = form(query1, key2, mask1, mask2, tau) + form(query2, key1, mask2, mask1, tau)

    # How often the most attended cell of view 1 lies on its object: 1 when aligned, the mask's share by chance.
    similarity = losses.foreground_similarity(losses.attention(query1, key2), mask2)
    on_object = jnp.take_along_axis(mask1, similarity.argmax(-1, keepdims=True), 1)[:, 0] >= 0.5 * mask1.max(-1)
    return jax.lax.psum((weight * both).sum(), AXIS), {
        "align_hit": jax.lax.psum((weight * on_object).sum(), AXIS),
        "usable_pairs": jax.lax.pmean((weight > 0).mean(), AXIS),
    }
