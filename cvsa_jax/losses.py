"""The losses as pure functions: the contrastive objectives, and the alignment of cross-view attention with saliency.

Every function returns one value per pair or per view; averaging over the (global) batch is the step's business.
Notation of the paper: P is the online network's `prediction_map` of view 1, Z the target network's `projection_map` of
view 2, A = P·Zᵀ their cosine similarities, m1 and m2 the views' saliency masks on the cells of the feature map. tau is
the temperature `config.align.temperature`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

# A mask that sums to less than this many cells names no object: its pair takes no part in the alignment.
MIN_MASK_CELLS = 0.3
_EPS = 1e-6


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Vectors of length 1 along the last axis; 0 stays 0."""
    # The epsilon sits under the root: the gradient of a norm at zero is otherwise NaN.
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + _EPS**2)


# --- Objectives: what the pooled vectors are trained for.


class ObjectiveInputs(NamedTuple):
    """What an objective sees: `query` (v, d), the vectors that are trained, view 1 of each image of this device before
    view 2, and `key` (v, d), for each the vector of the image's other view. `queue` (k, d) holds unit keys of earlier
    batches, `batch` (m, d) the queries of the whole global batch, view 1 before view 2, and `row` (v,) the place of
    each query there; each is None where the objective does not ask for it."""

    query: Float[Array, "v d"]
    key: Float[Array, "v d"]
    queue: Float[Array, "k d"] | None = None
    batch: Float[Array, "m d"] | None = None
    row: Int[Array, " v"] | None = None


def byol(inputs: ObjectiveInputs, temperature: float) -> Float[Array, " v"]:
    """BYOL (arXiv 2006.07733, eq. 2): ‖p̄ − z̄‖² = 2 − 2·cos(p, z), the two directions summed; in [0, 8]."""
    del temperature
    return 2 * regression(inputs.query, inputs.key)


def simsiam(inputs: ObjectiveInputs, temperature: float) -> Float[Array, " v"]:
    """SimSiam (arXiv 2011.10566, eqs. 1 and 2): −cos(p, z), the two directions averaged; in [-1, 1]."""
    del temperature
    return regression(inputs.query, inputs.key) / 2 - 1


def moco(inputs: ObjectiveInputs, temperature: float) -> Float[Array, " v"]:
    """MoCo (arXiv 1911.05722, eq. 1): −log of the positive key's share in softmax([q·k, q·queue] / temperature), of
    unit vectors, in both directions. No gradient reaches the keys or the queue."""
    query, key = unit(inputs.query), unit(jax.lax.stop_gradient(inputs.key))
    positive = (query * key).sum(-1, keepdims=True)
    negative = jnp.einsum("vd,kd->vk", query, jax.lax.stop_gradient(inputs.queue), precision="highest")
    logits = jnp.concatenate([positive, negative], 1) / temperature
    return jax.nn.logsumexp(logits, -1) - logits[:, 0]


def simclr(inputs: ObjectiveInputs, temperature: float) -> Float[Array, " v"]:
    """SimCLR (arXiv 2002.05709, eq. 1): −log of the positive's share in the softmax of cosine / temperature over all
    views of the global batch but the view itself."""
    count = len(inputs.batch)
    logits = jnp.einsum("vd,md->vm", unit(inputs.query), unit(inputs.batch), precision="highest") / temperature
    other = jnp.take_along_axis(logits, ((inputs.row + count // 2) % count)[:, None], 1)[:, 0]
    itself = jnp.arange(count) == inputs.row[:, None]
    return jax.nn.logsumexp(jnp.where(itself, -jnp.inf, logits), -1) - other


def regression(prediction: Float[Array, "v d"], target: Float[Array, "v d"]) -> Float[Array, " v"]:
    """2 − 2·cos(p, z), in [0, 4]; no gradient reaches `target`."""
    return 2 - 2 * (unit(prediction) * unit(jax.lax.stop_gradient(target))).sum(-1)


class Objective(NamedTuple):
    """What the pooled vectors are trained for, beside the alignment of the maps, which is the same for all.

    `loss`: (inputs, temperature) -> (v,), of which the mean over the global batch is minimised. `predictor`: queries
    are the predictor's outputs, else the projections. `target`: keys are those of a second, slowly following network,
    else the online network's own. `queue`: it takes its negatives from earlier batches. `whole_batch`: it compares the
    views of all images of the global batch.
    """

    loss: Callable[[ObjectiveInputs, float], Float[Array, " v"]]
    predictor: bool
    target: bool
    queue: bool = False
    whole_batch: bool = False


# The recipe of each (optimiser, schedule, temperature) is in configs/recipes.py.
OBJECTIVES = {
    "byol": Objective(byol, predictor=True, target=True),
    "moco": Objective(moco, predictor=False, target=True, queue=True),
    "simclr": Objective(simclr, predictor=False, target=False, whole_batch=True),
    "simsiam": Objective(simsiam, predictor=True, target=False),
}


# --- The alignment of the cross-view attention with the saliency masks.

Attention = Float[Array, "b n n2"]
Mask1, Mask2 = Float[Array, "b n"], Float[Array, "b n2"]
PerPair = Float[Array, " b"]


def attention(prediction_map: Float[Array, "b h w d"], projection_map: Float[Array, "b h2 w2 d"]) -> Attention:
    """Cross-view attention A[i, j] = cos(P_i, Z_j) in [-1, 1]; cells in row-major order, n = h·w."""
    queries, keys = (unit(x.reshape(x.shape[0], -1, x.shape[-1])) for x in (prediction_map, projection_map))
    return jnp.einsum("bid,bjd->bij", queries, keys, precision="highest")


def foreground_similarity(a: Attention, mask2: Mask2) -> Float[Array, "b n"]:
    """fg_i = Σ_j m2_j·a_ij / Σ m2: mean similarity of cell i of view 1 to the object of view 2."""
    return jnp.einsum("bij,bj->bi", a, mask2, precision="highest") / jnp.maximum(mask2.sum(-1, keepdims=True), _EPS)


def cell_masks(masks: Float[Array, "b s s"], cells: int) -> Float[Array, "b n"]:
    """Area average of square masks in [0, 1] to cells × cells, flattened row-major; `cells` must divide s."""
    b, s, _ = masks.shape
    k = s // cells
    return masks.reshape(b, cells, k, cells, k).mean((2, 4)).reshape(b, cells * cells)


def usable_pairs(mask1: Mask1, mask2: Mask2) -> Bool[Array, " b"]:
    """Pairs in which both masks hold an object."""
    return (mask1.sum(-1) >= MIN_MASK_CELLS) & (mask2.sum(-1) >= MIN_MASK_CELLS)


def align_kl(a: Attention, mask1: Mask1, mask2: Mask2, tau: float) -> PerPair:
    """KL( m1 / Σ m1 ‖ softmax_i(fg_i / tau) )."""
    share = mask1 / jnp.maximum(mask1.sum(-1, keepdims=True), _EPS)
    log_attention = jax.nn.log_softmax(foreground_similarity(a, mask2) / tau)
    return jnp.where(share > 0, share * (jnp.log(jnp.maximum(share, _EPS)) - log_attention), 0).sum(-1)


def align_contrast_bce(a: Attention, mask1: Mask1, mask2: Mask2, tau: float) -> PerPair:
    """BCE( sigmoid((fg_i − bg_i) / tau), m1 ), bg_i the mean similarity to the background of view 2."""
    contrast = foreground_similarity(a, mask2) - foreground_similarity(a, 1 - mask2)
    return optax.sigmoid_binary_cross_entropy(contrast / tau, mask1).mean(-1)


def align_propagate(a: Attention, mask1: Mask1, mask2: Mask2, tau: float) -> PerPair:
    """BCE( Σ_j softmax_j(a_ij / tau)·m2_j, m1 ): view 2's mask, carried to view 1 by the attention."""
    carried = jnp.einsum("bij,bj->bi", jax.nn.softmax(a / tau), mask2)
    p = jnp.clip(carried, _EPS, 1 - _EPS)
    return -(mask1 * jnp.log(p) + (1 - mask1) * jnp.log(1 - p)).mean(-1)


def align_cosine(a: Attention, mask1: Mask1, mask2: Mask2, tau: float) -> PerPair:
    """1 − cos( relu(fg), m1 ); `tau` takes no part."""
    del tau
    return 1 - (unit(jax.nn.relu(foreground_similarity(a, mask2))) * unit(mask1)).sum(-1)


def align_minmax(a: Attention, mask1: Mask1, mask2: Mask2, tau: float) -> PerPair:
    """MSE( min–max(mean_j a_ij), m1 / max m1 ); `mask2` and `tau` take no part."""
    del mask2, tau
    mean = a.mean(-1)
    low, high = mean.min(-1, keepdims=True), mean.max(-1, keepdims=True)
    scaled = (mean - low) / jnp.maximum(high - low, _EPS)
    return ((scaled - mask1 / jnp.maximum(mask1.max(-1, keepdims=True), _EPS)) ** 2).mean(-1)


def align_pairwise(a: Attention, mask1: Mask1, mask2: Mask2, tau: float) -> PerPair:
    """BCE( sigmoid((a_ij − ½) / tau), m1_i·m2_j )."""
    both = mask1[:, :, None] * mask2[:, None, :]
    return optax.sigmoid_binary_cross_entropy((a - 0.5) / tau, both).mean((-2, -1))


def mask_head(prediction_map, projection_map, mask1, mask2, tau: float) -> PerPair:
    """Control without any cross-view attention: BCE of channel 0 of the view's own conv prediction against m1."""
    del projection_map, mask2, tau
    return optax.sigmoid_binary_cross_entropy(prediction_map[..., 0].reshape(mask1.shape), mask1).mean(-1)


def masked_dense(prediction_map, projection_map, mask1, mask2, tau: float) -> PerPair:
    """Control that localises nothing: 2 − 2·cos of the mean descriptors of the two views' objects."""
    del tau
    of_objects = ((mask1, prediction_map), (mask2, projection_map))
    return regression(
        *(jnp.einsum("bn,bnd->bd", m, x.reshape(*m.shape, -1), precision="highest") for m, x in of_objects)
    )


def _of_attention(form: Callable) -> Callable:
    """A form (a, mask1, mask2, tau) as a function of the two maps; no gradient reaches `projection_map`."""

    def loss(prediction_map, projection_map, mask1, mask2, tau: float) -> PerPair:
        return form(attention(prediction_map, jax.lax.stop_gradient(projection_map)), mask1, mask2, tau)

    return loss


# name -> loss of view 1 against view 2: (prediction_map (b, h, w, d) of view 1, projection_map (b, h, w, d) of view 2,
# mask1 (b, h·w), mask2 (b, h·w), tau) -> (b,).
ALIGNMENT_FORMS = {
    "kl": _of_attention(align_kl),
    "contrast_bce": _of_attention(align_contrast_bce),
    "propagate": _of_attention(align_propagate),
    "cosine": _of_attention(align_cosine),
    "minmax": _of_attention(align_minmax),
    "pairwise": _of_attention(align_pairwise),
    "mask_head": mask_head,
    "masked_dense": masked_dense,
}
