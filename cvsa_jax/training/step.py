"""The jitted steps: the only place with collectives.

Gradients under `shard_map`: with varying-axes checking (its default), the gradient of a replicated parameter is
already summed over the mesh. So the *loss* is averaged with `pmean` inside the loss function and the gradients are
left alone; a second `pmean` would make them too large by the number of devices.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from cvsa_jax import losses
from cvsa_jax.models.activation import READOUTS, class_activation, grad_cam
from cvsa_jax.models.classifier import Classifier
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.distributed import AXIS, replicated
from cvsa_jax.training import photometric
from cvsa_jax.training.optim import online_probe_optimizer
from cvsa_jax.training.state import Network, OnlineProbe, Queue, TrainState, ema

Metrics = dict[str, jax.Array]


class _Stats(NamedTuple):
    """Batch statistics of both networks."""

    online: dict
    target: dict | None


class _Pass(NamedTuple):
    """What a pass over rows gives besides its gradient; vectors are (2b, D), view 1 before view 2."""

    stats: _Stats
    metrics: Metrics
    pooled: jax.Array
    projection: jax.Array
    queries: jax.Array
    goals: jax.Array


def make_train_step(
    model: Siamese,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    objective: losses.Objective,
    temperature: float,
    tau: Callable[[jax.Array], jax.Array],
    augment1: photometric.Photometric,
    augment2: photometric.Photometric,
    align_form: str,
    align_weight: float,
    seed: int,
    accumulate: int = 1,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """One step of an objective, with the alignment loss where `align_weight` > 0; else the conv heads are not run.

    The batch holds `view1`, `view2` (B, S, S, 3) uint8, `mask1`, `mask2` (B, M, M) uint8 where `align_weight` > 0,
    `position` (B, 2) uint32, the high and low word of each example's place in the data order, which alone decides its
    photometric parameters, and `label` (B,) int32 where the state holds an online probe. The state's buffers are
    donated. The metrics are scalars of the global batch; `online_top1` is the probe's accuracy before it learns from
    the batch.

    Args:
        temperature: of the objectives with negatives.
        tau: step -> coefficient of the target's moving average.
        accumulate: micro-batches into which each device splits its rows, one in memory at a time. The gradient is that
            of the whole batch, but for batch statistics, which are those of a micro-batch over the mesh, and for
            objectives whose negatives are the batch itself, which must not be split.
    """
    maps = align_weight > 0

    def forward_backward(params, stats: _Stats, state: TrainState, rows: dict[str, jax.Array]):
        """Gradient and `_Pass` of some rows of this device; the loss is that of such rows over the mesh."""
        # 1) Photometric augmentation, one key for each view of each example.
        keys = jax.vmap(lambda p: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), p[0]), p[1]))(
            rows["position"]
        )
        keys = jnp.concatenate([jax.vmap(lambda key, v=v: jax.random.fold_in(key, v))(keys) for v in (0, 1)])
        both = [jnp.repeat(jnp.stack(strengths), len(keys) // 2) for strengths in zip(augment1, augment2, strict=True)]
        views = jnp.concatenate([rows["view1"], rows["view2"]])
        views = photometric.augment(views, keys, photometric.Photometric(*both))

        # 2) Target network on both views, in one pass and so with common batch statistics.
        target_out, target_stats = None, None
        if objective.target:
            variables = {"params": state.target.params, "batch_stats": stats.target}
            target_out, mutated = model.apply(
                variables, views, train=True, maps=maps, method="project", mutable=["batch_stats"]
            )
            target_stats = mutated["batch_stats"]

        def loss_fn(params):
            # 3) Online network on both views; the alignment is summed over both directions.
            out, mutated = model.apply(
                {"params": params, "batch_stats": stats.online},
                views,
                train=True,
                maps=maps,
                predictor=objective.predictor,
                mutable=["batch_stats"],
            )
            key_out = target_out if objective.target else out
            queries = out.prediction if objective.predictor else out.projection
            contrastive = _contrast(objective, queries, key_out.projection, state.queue, temperature)
            metrics = {"contrastive": contrastive}
            loss = contrastive
            if maps:
                aligned, align_metrics = _alignment(align_form, out.prediction_map, key_out.projection_map, rows)
                loss = loss + align_weight * aligned
                metrics |= {"align": aligned} | align_metrics
            vectors = (out.pooled, out.projection, queries, key_out.projection)
            new_stats = _Stats(mutated["batch_stats"], target_stats)
            return loss, _Pass(new_stats, metrics | {"loss": loss}, *jax.lax.stop_gradient(vectors))

        return jax.grad(loss_fn, has_aux=True)(params)

    def step_fn(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        params = state.online.params
        stats = _Stats(state.online.batch_stats, state.target.batch_stats if objective.target else None)
        if maps:
            batch = batch | _masks_in_cells(batch, batch["view1"].shape[1] // model.stride, accumulate)
        one = lambda stats, rows: forward_backward(params, stats, state, rows)  # noqa: E731
        grads, seen = _accumulated(one, params, stats, batch, accumulate) if accumulate > 1 else one(stats, batch)

        # 4) Update the online network, move the target towards it, and let the queue forget its oldest keys.
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        metrics = seen.metrics | {"grad_norm": optax.tree.norm(grads)}
        metrics |= _health(seen.projection, seen.queries, jnp.roll(seen.goals, len(seen.goals) // 2, 0))
        new_state = state.replace(step=state.step + 1, online=Network(params, seen.stats.online), opt_state=opt_state)
        if objective.target:
            metrics["tau"] = tau(state.step)
            target = Network(ema(state.target.params, params, metrics["tau"]), seen.stats.target)
            new_state = new_state.replace(target=target)
        if state.queue is not None:
            new_state = new_state.replace(queue=_enqueued(state.queue, seen.goals, state.step))

        # 5) The probe that only watches.
        if state.probe is not None:
            probe, metrics["online_top1"] = _probe_step(state.probe, seen.pooled, jnp.tile(batch["label"], 2))
            new_state = new_state.replace(probe=probe)
        return new_state, metrics

    sharded = jax.shard_map(
        step_fn, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(AXIS)), out_specs=PartitionSpec()
    )
    return jax.jit(sharded, donate_argnums=0, out_shardings=replicated(mesh))


class Encoded(NamedTuple):
    """Of B images, float32: `pooled` (B, C); where maps were asked for, the unit queries P and keys Z of the attention
    (B, h·w, D), the attention to the image's own mirror image (B, h, w), and the backbone's activation (B, h, w), as
    `mean` and as first `component`."""

    pooled: jax.Array
    queries: jax.Array | None = None
    keys: jax.Array | None = None
    mirrored: jax.Array | None = None
    mean: jax.Array | None = None
    component: jax.Array | None = None


def make_encoder(model: Siamese | Classifier, mesh: Mesh, *, maps: bool) -> Callable[[Network, jax.Array], Encoded]:
    """Evaluation pass of a network on uint8 images (B, S, S, 3), split over the mesh; B must divide by the devices.
    Only a Siamese network has maps."""

    def encode(network: Network, images: jax.Array) -> Encoded:
        views = photometric.normalize(photometric.to_float(images))
        feature_map, pooled = model.apply(network.variables, views, method="features")
        if not maps:
            return Encoded(pooled)
        out, mirror = (model.apply(network.variables, x, train=False) for x in (views, views[:, :, ::-1]))
        queries, keys, mirror_keys = map(_unit_cells, (out.prediction_map, out.projection_map, mirror.projection_map))
        mirrored = jnp.einsum("bid,bd->bi", queries, mirror_keys.mean(1), precision="highest")
        activation = {name: read(feature_map.astype(jnp.float32))[0] for name, read in READOUTS.items()}
        return Encoded(pooled, queries, keys, mirrored.reshape(feature_map.shape[:3]), **activation)

    return _on_rows(encode, mesh)


class Activation(NamedTuple):
    """Of B images: the classifier's logits (B, K), and for the class it predicts CAM and Grad-CAM (B, h, w)."""

    logits: jax.Array
    cam: jax.Array
    grad_cam: jax.Array


def make_class_activation(
    model: Siamese | Classifier, mesh: Mesh
) -> Callable[[tuple[Network, jax.Array], jax.Array], Activation]:
    """Evaluation pass of a network and a linear classifier (C + 1, K) on its pooled features, biases in the last row;
    images as in `make_encoder`."""

    def activation(network_and_weights: tuple[Network, jax.Array], images: jax.Array) -> Activation:
        network, weights = network_and_weights
        views = photometric.normalize(photometric.to_float(images))
        features, pooled = model.apply(network.variables, views, method="features")
        logits = jnp.matmul(pooled, weights[:-1], precision="highest") + weights[-1]
        given = (features.astype(jnp.float32), weights, logits.argmax(-1))
        return Activation(logits, class_activation(*given), grad_cam(*given))

    return _on_rows(activation, mesh)


def _on_rows(function: Callable, mesh: Mesh) -> Callable:
    """`function` (network, images) compiled for images split over the mesh."""
    rows = PartitionSpec(AXIS)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows))


def _contrast(
    objective: losses.Objective, queries: jax.Array, keys: jax.Array, queue: Queue | None, temperature: float
) -> jax.Array:
    """The objective's loss of the global batch; queries and keys are (2b, D), view 1 before view 2."""
    if objective.loss == "nt_xent":
        shard, views = len(queries) // 2, _gathered(queries)
        within = jax.lax.axis_index(AXIS) * shard + jnp.arange(shard)
        rows1, rows2 = within, len(views) // 2 + within
        own, other = jnp.concatenate([rows1, rows2]), jnp.concatenate([rows2, rows1])
        return jax.lax.pmean(losses.nt_xent(queries, views, own, other, temperature).mean(), AXIS)
    crossed = jnp.roll(keys, len(keys) // 2, 0)  # the query of one view meets the key of the other
    if objective.loss == "info_nce":
        return jax.lax.pmean(losses.info_nce(queries, crossed, queue.keys, temperature).mean(), AXIS)
    if objective.loss == "negative_cosine":
        return jax.lax.pmean(losses.negative_cosine(queries, crossed).mean(), AXIS)
    return jax.lax.pmean(2 * losses.regression(queries, crossed).mean(), AXIS)


def _gathered(rows: jax.Array) -> jax.Array:
    """(2b, D) on each device -> (2B, D) on all: view 1 of the global batch in its order, then view 2."""
    views = rows.reshape(2, len(rows) // 2, -1)
    shard, place = views.shape[1], jax.lax.axis_index(AXIS)
    # A sum of rows laid into zeros, and not an all-gather, whose result does not count as equal on all devices.
    empty = jnp.zeros((2, shard * jax.lax.axis_size(AXIS), views.shape[2]), views.dtype)
    laid = jax.lax.dynamic_update_slice(jax.lax.pcast(empty, AXIS, to="varying"), views, (0, place * shard, 0))
    return jax.lax.psum(laid, AXIS).reshape(-1, views.shape[2])


def _enqueued(queue: Queue, keys: jax.Array, step: jax.Array) -> Queue:
    """The queue with the batch's keys in the place of the oldest; its length is a multiple of theirs."""
    keys = _gathered(keys)
    keys = keys / jnp.maximum(jnp.linalg.norm(keys, axis=1, keepdims=True), 1e-9)
    turns = len(queue.keys) // len(keys)
    return Queue(jax.lax.dynamic_update_slice(queue.keys, keys, ((step % turns) * len(keys), 0)))


def _probe_step(probe: OnlineProbe, pooled: jax.Array, labels: jax.Array) -> tuple[OnlineProbe, jax.Array]:
    """One step of the probe on the batch's features, standardised by the batch; and its accuracy before the step."""
    pooled = jax.lax.stop_gradient(pooled)
    mean = jax.lax.pmean(pooled.mean(0), AXIS)
    variance = jax.lax.pmean(((pooled - mean) ** 2).mean(0), AXIS)
    x = (pooled - mean) * jax.lax.rsqrt(variance + 1e-6)

    def loss_fn(weights):
        logits = x @ weights[:-1] + weights[-1]
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jax.lax.pmean(cross_entropy.mean(), AXIS), (logits.argmax(-1) == labels).mean()

    (_, hits), grads = jax.value_and_grad(loss_fn, has_aux=True)(probe.weights)
    updates, opt_state = online_probe_optimizer().update(grads, probe.opt_state)
    return OnlineProbe(optax.apply_updates(probe.weights, updates), opt_state), jax.lax.pmean(hits, AXIS)


def _accumulated(one: Callable, params: dict, stats: _Stats, batch: dict, parts: int) -> tuple[dict, _Pass]:
    """What `one` (batch statistics, rows) -> (gradient, `_Pass`) gives for the batch in `parts` equal parts, one after
    the other: means of gradients and metrics, the vectors in the order of the whole, the last statistics."""

    def body(carry, rows):
        total, stats = carry
        grads, seen = one(stats, rows)
        return (jax.tree.map(jnp.add, total, grads), seen.stats), seen._replace(stats=None)

    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    (total, stats), seen = jax.lax.scan(body, (jax.tree.map(jnp.zeros_like, params), stats), split)
    ordered = lambda x: jnp.moveaxis(x.reshape(parts, 2, -1, x.shape[-1]), 0, 1).reshape(-1, x.shape[-1])  # noqa: E731
    metrics = jax.tree.map(lambda x: x.mean(0), seen.metrics)
    return jax.tree.map(lambda x: x / parts, total), _Pass(stats, metrics, *map(ordered, seen[2:]))


def _masks_in_cells(batch: dict, side: int, parts: int) -> dict[str, jax.Array]:
    """`cells1`, `cells2` (b, side²), the masks on the feature map, and `weight` (b,), by which each pair counts in the
    alignment of its part of the batch, so that the mean over the parts is that over the usable pairs of the batch."""
    cells1, cells2 = (losses.cell_masks(batch[m].astype(jnp.float32) / 255, side) for m in ("mask1", "mask2"))
    usable = losses.usable_pairs(cells1, cells2).astype(jnp.float32)
    weight = usable * parts / jnp.maximum(jax.lax.psum(usable.sum(), AXIS), 1)
    return {"cells1": cells1, "cells2": cells2, "weight": weight}


def _alignment(form: str, queries: jax.Array, keys: jax.Array, rows: dict) -> tuple[jax.Array, Metrics]:
    """Alignment loss over the mesh, both directions summed, each pair with its weight."""
    mask1, mask2, weight = rows["cells1"], rows["cells2"], rows["weight"]
    (query1, query2), (key1, key2) = jnp.split(queries, 2), jnp.split(keys, 2)
    both = losses.alignment(form, query1, key2, mask1, mask2) + losses.alignment(form, query2, key1, mask2, mask1)

    # How often the most attended cell of view 1 lies on its object: 1 when aligned, the mask's share by chance.
    similarity = losses.foreground_similarity(losses.attention(query1, key2), mask2)
    on_object = jnp.take_along_axis(mask1, similarity.argmax(-1, keepdims=True), 1)[:, 0] >= 0.5 * mask1.max(-1)
    return jax.lax.psum((weight * both).sum(), AXIS), {
        "align_hit": jax.lax.psum((weight * on_object).sum(), AXIS),
        "usable_pairs": jax.lax.pmean((weight > 0).mean(), AXIS),
    }


def _health(projection: jax.Array, prediction: jax.Array, goal: jax.Array) -> Metrics:
    """Collapse indicators of the global batch.

    `projection_std`: standard deviation of the normalised projections per dimension, averaged and times sqrt(D): 1
    when they fill the sphere, 0 when collapsed. `effective_rank`: participation ratio (tr C)² / tr C² of their
    covariance, 1 to D. `target_cosine`: mean cosine of a view's query (BYOL: the prediction) and the other view's key.
    """
    unit = projection / (jnp.linalg.norm(projection, axis=-1, keepdims=True) + 1e-9)
    mean = jax.lax.pmean(unit.mean(0), AXIS)
    second = jax.lax.pmean(unit.T @ unit / len(unit), AXIS)
    covariance = second - jnp.outer(mean, mean)
    variances = jnp.maximum(jnp.diagonal(covariance), 0)
    return {
        "projection_std": jnp.sqrt(variances).mean() * jnp.sqrt(len(variances)),
        "effective_rank": jnp.trace(covariance) ** 2 / jnp.maximum((covariance**2).sum(), 1e-20),
        "target_cosine": 1 - jax.lax.pmean(losses.regression(prediction, goal).mean(), AXIS) / 2,
    }


def _unit_cells(cells: jax.Array) -> jax.Array:
    """(B, h, w, D) -> (B, h·w, D), each cell of length 1 (0 where it is 0)."""
    cells = cells.reshape(len(cells), -1, cells.shape[-1])
    return cells / jnp.maximum(jnp.linalg.norm(cells, axis=-1, keepdims=True), 1e-9)
