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

from cvsa_jax import losses, photometric
from cvsa_jax.distributed import AXIS, replicated
from cvsa_jax.models.activation import READOUTS
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.state import Network, TrainState, ema

Metrics = dict[str, jax.Array]


def make_train_step(
    model: Siamese,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    tau: Callable[[jax.Array], jax.Array],
    augment1: photometric.Photometric,
    augment2: photometric.Photometric,
    align_form: str,
    align_weight: float,
    seed: int,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """One step of CVSA; with `align_weight` 0 it is plain BYOL, and the conv heads are not run.

    The batch holds `view1`, `view2` (B, S, S, 3) uint8, `mask1`, `mask2` (B, M, M) uint8 where `align_weight` > 0,
    and `position` (B, 2) uint32, the high and low word of each example's place in the data order, which alone
    decides its photometric parameters. The state's buffers are donated. The metrics are scalars of the global batch.
    """
    maps = align_weight > 0

    def step_fn(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        # 1) Photometric augmentation, one key for each view of each example.
        keys = jax.vmap(lambda p: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), p[0]), p[1]))(
            batch["position"]
        )
        keys = jnp.concatenate([jax.vmap(lambda key, v=v: jax.random.fold_in(key, v))(keys) for v in (0, 1)])
        both = [jnp.repeat(jnp.stack(strengths), len(keys) // 2) for strengths in zip(augment1, augment2, strict=True)]
        views = jnp.concatenate([batch["view1"], batch["view2"]])
        views = photometric.augment(views, keys, photometric.Photometric(*both))

        # 2) Target network on both views, in one pass and so with common batch statistics.
        target_out, target_mutated = model.apply(
            state.target.variables, views, train=True, maps=maps, method="project", mutable=["batch_stats"]
        )
        goal1, goal2 = jnp.split(target_out.projection, 2)

        def loss_fn(params):
            # 3) Online network on both views; both directions of both losses are summed.
            out, mutated = model.apply(
                {"params": params, "batch_stats": state.online.batch_stats},
                views,
                train=True,
                maps=maps,
                mutable=["batch_stats"],
            )
            predicted1, predicted2 = jnp.split(out.prediction, 2)
            contrastive = losses.regression(predicted1, goal2) + losses.regression(predicted2, goal1)
            contrastive = jax.lax.pmean(contrastive.mean(), AXIS)
            metrics = {"contrastive": contrastive}
            loss = contrastive
            if maps:
                aligned, align_metrics = _alignment(align_form, out.prediction_map, target_out.projection_map, batch)
                loss = loss + align_weight * aligned
                metrics |= {"align": aligned} | align_metrics
            return loss, (mutated["batch_stats"], out, metrics)

        (loss, (online_stats, out, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.online.params)

        # 4) Update the online network, then move the target towards it.
        updates, opt_state = optimizer.update(grads, state.opt_state, state.online.params)
        params = optax.apply_updates(state.online.params, updates)
        decay = tau(state.step)
        new_state = TrainState(
            step=state.step + 1,
            online=Network(params, _filled(online_stats, state.online.batch_stats)),
            target=Network(
                ema(state.target.params, params, decay),
                _filled(target_mutated["batch_stats"], state.target.batch_stats),
            ),
            opt_state=opt_state,
        )
        metrics |= {"loss": loss, "grad_norm": optax.tree.norm(grads), "tau": decay}
        metrics |= _health(out.projection, out.prediction, jnp.concatenate([goal2, goal1]))
        return new_state, metrics

    sharded = jax.shard_map(
        step_fn, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(AXIS)), out_specs=PartitionSpec()
    )
    return jax.jit(sharded, donate_argnums=0, out_shardings=replicated(mesh))


class Encoded(NamedTuple):
    """Of B images, float32: `pooled` (B, C); where maps were asked for, the unit queries P and keys Z of the attention
    (B, h·w, D), and the backbone's activation (B, h, w), as `mean` and as first `component`."""

    pooled: jax.Array
    queries: jax.Array | None = None
    keys: jax.Array | None = None
    mean: jax.Array | None = None
    component: jax.Array | None = None


def make_encoder(model: Siamese, mesh: Mesh, *, maps: bool) -> Callable[[Network, jax.Array], Encoded]:
    """Evaluation pass of the online network on uint8 images (B, S, S, 3), split over the mesh; B must divide by the
    devices."""

    def encode(network: Network, images: jax.Array) -> Encoded:
        views = photometric.normalize(photometric.to_float(images))
        feature_map, pooled = model.apply(network.variables, views, method="features")
        if not maps:
            return Encoded(pooled)
        out = model.apply(network.variables, views, train=False)
        activation = {name: read(feature_map.astype(jnp.float32))[0] for name, read in READOUTS.items()}
        return Encoded(pooled, _unit_cells(out.prediction_map), _unit_cells(out.projection_map), **activation)

    rows = PartitionSpec(AXIS)
    return jax.jit(jax.shard_map(encode, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows))


def _alignment(form: str, queries: jax.Array, keys: jax.Array, batch: dict) -> tuple[jax.Array, Metrics]:
    """Alignment loss of the global batch, both directions summed, averaged over the pairs with two usable masks."""
    cells = queries.shape[1]
    mask1, mask2 = (losses.cell_masks(batch[m].astype(jnp.float32) / 255, cells) for m in ("mask1", "mask2"))
    usable = losses.usable_pairs(mask1, mask2).astype(jnp.float32)
    (query1, query2), (key1, key2) = jnp.split(queries, 2), jnp.split(keys, 2)
    both = losses.alignment(form, query1, key2, mask1, mask2) + losses.alignment(form, query2, key1, mask2, mask1)
    count = jnp.maximum(jax.lax.psum(usable.sum(), AXIS), 1)

    # How often the most attended cell of view 1 lies on its object: 1 when aligned, the mask's share by chance.
    similarity = losses.foreground_similarity(losses.attention(query1, key2), mask2)
    on_object = jnp.take_along_axis(mask1, similarity.argmax(-1, keepdims=True), 1)[:, 0] >= 0.5 * mask1.max(-1)
    return jax.lax.psum((usable * both).sum(), AXIS) / count, {
        "align_hit": jax.lax.psum((usable * on_object).sum(), AXIS) / count,
        "usable_pairs": jax.lax.pmean(usable.mean(), AXIS),
    }


def _health(projection: jax.Array, prediction: jax.Array, goal: jax.Array) -> Metrics:
    """Collapse indicators of the global batch.

    `projection_std`: standard deviation of the normalised projections per dimension, averaged and times sqrt(D): 1
    when they fill the sphere, 0 when collapsed. `effective_rank`: participation ratio (tr C)² / tr C² of their
    covariance, 1 to D. `target_cosine`: mean cosine of prediction and target.
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


def _filled(new: dict, old: dict) -> dict:
    """The updated batch statistics, with those of heads that were not run kept as they were."""
    return {**old, **new}
