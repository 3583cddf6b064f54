"""The losses as pure functions: the contrastive objectives, and the alignment of cross-view attention with saliency.

All functions return one value per pair (`nt_xent`: per view); averaging over the (global) batch is the step's business.
Notation of the paper: P is the online network's `prediction_map` of view 1, Z the target network's `projection_map` of
view 2, A = P·Zᵀ their cosine similarities, m1 and m2 the views' saliency masks on the cells of the feature map.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

TEMPERATURE = 0.2
# A mask that sums to less than this many cells names no object: its pair takes no part in the alignment.
MIN_MASK_CELLS = 0.3
_EPS = 1e-6


def regression(prediction: Float[Array, "b d"], target: Float[Array, "b d"]) -> Float[Array, " b"]:
    """BYOL (arXiv 2006.07733, eq. 2): ‖p̄ − z̄‖² = 2 − 2·cos(p, z), in [0, 4]; no gradient reaches `target`."""
    return 2 - 2 * (_unit(prediction) * _unit(jax.lax.stop_gradient(target))).sum(-1)


def negative_cosine(prediction: Float[Array, "b d"], target: Float[Array, "b d"]) -> Float[Array, " b"]:
    """SimSiam (arXiv 2011.10566, eq. 1): −cos(p, z), in [-1, 1]; no gradient reaches `target`."""
    return -(_unit(prediction) * _unit(jax.lax.stop_gradient(target))).sum(-1)


def info_nce(
    queries: Float[Array, "b d"], keys: Float[Array, "b d"], queue: Float[Array, "k d"], temperature: float
) -> Float[Array, " b"]:
    """MoCo (arXiv 1911.05722, eq. 1): −log of the positive key's share in softmax([q·k, q·queue] / temperature), of
    unit vectors; the queue's rows are of unit length already. No gradient reaches `keys` or `queue`."""
    queries, keys = _unit(queries), _unit(jax.lax.stop_gradient(keys))
    positive = (queries * keys).sum(-1, keepdims=True)
    negative = jnp.einsum("bd,kd->bk", queries, jax.lax.stop_gradient(queue), precision="highest")
    logits = jnp.concatenate([positive, negative], 1) / temperature
    return jax.nn.logsumexp(logits, -1) - logits[:, 0]


def nt_xent(
    views: Float[Array, "b d"],
    all_views: Float[Array, "m d"],
    own: Int[Array, " b"],
    positive: Int[Array, " b"],
    temperature: float,
) -> Float[Array, " b"]:
    """SimCLR (arXiv 2002.05709, eq. 1): −log of the positive's share in the softmax of cosine / temperature over all
    views but the view itself. `own` and `positive` are the rows of `all_views` that hold the view itself and the other
    view of its image."""
    logits = jnp.einsum("bd,md->bm", _unit(views), _unit(all_views), precision="highest") / temperature
    itself = jnp.arange(len(all_views)) == own[:, None]
    chosen = jnp.take_along_axis(logits, positive[:, None], 1)[:, 0]
    return jax.nn.logsumexp(jnp.where(itself, -jnp.inf, logits), -1) - chosen


class Objective(NamedTuple):
    """What the pooled vectors are trained for, beside the alignment of the maps, which is the same for all.

    `predictor`: queries are the predictor's outputs, else the projections. `target`: keys are those of a second,
    slowly following network, else the online network's own. `loss`: `regression`, `negative_cosine`, `info_nce`
    (negatives from a queue of earlier keys) or `nt_xent` (negatives from the batch).
    """

    predictor: bool
    target: bool
    loss: str


# Of the two directions, BYOL sums and the others average, as their papers do.
OBJECTIVES = {
    "byol": Objective(predictor=True, target=True, loss="regression"),
    "moco": Objective(predictor=False, target=True, loss="info_nce"),
    "simclr": Objective(predictor=False, target=False, loss="nt_xent"),
    "simsiam": Objective(predictor=True, target=False, loss="negative_cosine"),
}


def attention(
    prediction_map: Float[Array, "b h w d"], projection_map: Float[Array, "b h2 w2 d"]
) -> Float[Array, "b n n2"]:
    """Cross-view attention A[i, j] = cos(P_i, Z_j) in [-1, 1]; cells in row-major order, n = h·w."""
    queries, keys = (_unit(x.reshape(x.shape[0], -1, x.shape[-1])) for x in (prediction_map, projection_map))
    return jnp.einsum("bid,bjd->bij", queries, keys, precision="highest")


def foreground_similarity(a: Float[Array, "b n n2"], mask2: Float[Array, "b n2"]) -> Float[Array, "b n"]:
    """fg_i = Σ_j m2_j·a_ij / Σ m2: mean similarity of cell i of view 1 to the object of view 2."""
    return jnp.einsum("bij,bj->bi", a, mask2, precision="highest") / jnp.maximum(mask2.sum(-1, keepdims=True), _EPS)


def cell_masks(masks: Float[Array, "b s s"], cells: int) -> Float[Array, "b n"]:
    """Area average of square masks in [0, 1] to cells × cells, flattened row-major; `cells` must divide s."""
    b, s, _ = masks.shape
    k = s // cells
    return masks.reshape(b, cells, k, cells, k).mean((2, 4)).reshape(b, cells * cells)


def usable_pairs(mask1: Float[Array, "b n"], mask2: Float[Array, "b n2"]) -> Bool[Array, " b"]:
    """Pairs in which both masks hold an object."""
    return (mask1.sum(-1) >= MIN_MASK_CELLS) & (mask2.sum(-1) >= MIN_MASK_CELLS)


def align_kl(a: Float[Array, "b n n2"], mask1: Float[Array, "b n"], mask2: Float[Array, "b n2"]) -> Float[Array, " b"]:
    """KL( m1 / Σ m1 ‖ softmax_i(fg_i / τ) )."""
    goal = mask1 / jnp.maximum(mask1.sum(-1, keepdims=True), _EPS)
    log_attention = jax.nn.log_softmax(foreground_similarity(a, mask2) / TEMPERATURE)
    return jnp.where(goal > 0, goal * (jnp.log(jnp.maximum(goal, _EPS)) - log_attention), 0).sum(-1)


def align_contrast_bce(
    a: Float[Array, "b n n2"], mask1: Float[Array, "b n"], mask2: Float[Array, "b n2"]
) -> Float[Array, " b"]:
    """BCE( sigmoid((fg_i − bg_i) / τ), m1 ), bg_i the mean similarity to the background of view 2."""
    contrast = foreground_similarity(a, mask2) - foreground_similarity(a, 1 - mask2)
    return _bce_logits(contrast / TEMPERATURE, mask1).mean(-1)


def align_propagate(
    a: Float[Array, "b n n2"], mask1: Float[Array, "b n"], mask2: Float[Array, "b n2"]
) -> Float[Array, " b"]:
    """BCE( Σ_j softmax_j(a_ij / τ)·m2_j, m1 ): view 2's mask, carried to view 1 by the attention."""
    carried = jnp.einsum("bij,bj->bi", jax.nn.softmax(a / TEMPERATURE), mask2)
    p = jnp.clip(carried, _EPS, 1 - _EPS)
    return -(mask1 * jnp.log(p) + (1 - mask1) * jnp.log(1 - p)).mean(-1)


def align_cosine(
    a: Float[Array, "b n n2"], mask1: Float[Array, "b n"], mask2: Float[Array, "b n2"]
) -> Float[Array, " b"]:
    """1 − cos( relu(fg), m1 )."""
    return 1 - (_unit(jax.nn.relu(foreground_similarity(a, mask2))) * _unit(mask1)).sum(-1)


def align_minmax(
    a: Float[Array, "b n n2"], mask1: Float[Array, "b n"], mask2: Float[Array, "b n2"]
) -> Float[Array, " b"]:
    """MSE( min–max(mean_j a_ij), m1 / max m1 ); `mask2` takes no part."""
    del mask2
    mean = a.mean(-1)
    low, high = mean.min(-1, keepdims=True), mean.max(-1, keepdims=True)
    scaled = (mean - low) / jnp.maximum(high - low, _EPS)
    return ((scaled - mask1 / jnp.maximum(mask1.max(-1, keepdims=True), _EPS)) ** 2).mean(-1)


def align_pairwise(
    a: Float[Array, "b n n2"], mask1: Float[Array, "b n"], mask2: Float[Array, "b n2"]
) -> Float[Array, " b"]:
    """BCE( sigmoid((a_ij − ½) / τ), m1_i·m2_j )."""
    return _bce_logits((a - 0.5) / TEMPERATURE, mask1[:, :, None] * mask2[:, None, :]).mean((-2, -1))


def align_mask_head(prediction_map: Float[Array, "b h w d"], mask1: Float[Array, "b n"]) -> Float[Array, " b"]:
    """Control without any cross-view attention: BCE of channel 0 of the view's own conv prediction against m1."""
    return _bce_logits(prediction_map[..., 0].reshape(mask1.shape), mask1).mean(-1)


ATTENTION_FORMS = {
    "kl": align_kl,
    "contrast_bce": align_contrast_bce,
    "propagate": align_propagate,
    "cosine": align_cosine,
    "minmax": align_minmax,
    "pairwise": align_pairwise,
}
FORMS = (*ATTENTION_FORMS, "mask_head")


def alignment(
    form: str,
    prediction_map: Float[Array, "b h w d"],
    projection_map: Float[Array, "b h w d"],
    mask1: Float[Array, "b n"],
    mask2: Float[Array, "b n"],
) -> Float[Array, " b"]:
    """Alignment loss of view 1 against view 2 in one of `FORMS`; no gradient reaches `projection_map`."""
    if form == "mask_head":
        return align_mask_head(prediction_map, mask1)
    a = attention(prediction_map, jax.lax.stop_gradient(projection_map))
    return ATTENTION_FORMS[form](a, mask1, mask2)


def _unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    # The epsilon sits under the root: the gradient of a norm at zero is otherwise NaN.
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + _EPS**2)


def _bce_logits(logits: Float[Array, "*b"], labels: Float[Array, "*b"]) -> Float[Array, "*b"]:
    return jax.nn.softplus(logits) - labels * logits
