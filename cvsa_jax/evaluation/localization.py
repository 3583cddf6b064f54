"""Where the network looks: the cross-view attention read without a mask, and how well it fits the true mask.

Reading: each cell's mean cosine to all cells of all *other* images of the evaluated set, query P of the image against
key Z of the others, both from the online network. No label and no mask takes part, and the order of the images
does not matter.
"""

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from cvsa_jax.data.sources import Source
from cvsa_jax.runtime.progress import Progress
from cvsa_jax.runtime.workers import over_cores

FEW = 200  # maps that are measured before other processes have started
CHUNK = 16  # maps that a process takes at a time
IOU_THRESHOLD = 0.5  # of the map, scaled to [0, 1] for each image
THRESHOLDS = np.linspace(0, 1, 101)  # among which the best is taken


def attention_maps(queries: Float[np.ndarray, "k n d"], keys: Float[np.ndarray, "k n d"]) -> Float[np.ndarray, "k h w"]:
    """Attention of each image to the others, (k, h, w) with h = w = √n; k at least 2."""
    own = keys.mean(1)
    others = (own.sum(0) - own) / (len(own) - 1)
    side = round(queries.shape[1] ** 0.5)
    return np.einsum("knd,kd->kn", queries, others).reshape(-1, side, side)


def foreground_key(queries: Float[np.ndarray, "k n d"], keys: Float[np.ndarray, "k n d"]) -> Float[np.ndarray, " d"]:
    """The mean key of what the network looks at in these images, k at least 2: of all cells, each weighted with the
    square of its attention to the others, scaled to [0, 1] in each image."""
    maps = attention_maps(queries, keys).reshape(len(keys), -1)
    low = maps.min(1, keepdims=True)
    weights = ((maps - low) / np.maximum(np.ptp(maps, axis=1, keepdims=True), 1e-12)) ** 2
    return np.einsum("kn,knd->d", weights, keys) / max(float(weights.sum()), 1e-12)


def upsample(attention: Float[np.ndarray, "h w"], size: int) -> Float[np.ndarray, "s s"]:
    """Bilinear to (size, size), then scaled to [0, 1]; a constant map becomes 0."""
    image = Image.fromarray(attention.astype(np.float32), "F").resize((size, size), Image.Resampling.BILINEAR)
    values = np.asarray(image)
    span = float(np.ptp(values))
    if span <= 1e-6 * float(np.abs(values).max()):  # constant, but for rounding
        return np.zeros_like(values)
    return (values - values.min()) / span


def pointing_score(values: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> float:
    """Pointing game (Zhang et al. 2016, without tolerance): 1 where the map's maximum lies on the object, 0 where it
    does not; equal maxima share the image."""
    return float(mask[values == values.max()].mean())


def iou(on: Bool[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union of a region and a mask that is not empty."""
    return float((on & mask).sum() / (on | mask).sum())


def square_mask(mask: np.ndarray, size: int) -> Bool[np.ndarray, "s s"]:
    """A ground-truth mask (H, W) uint8 squeezed to (size, size), as the evaluated images are."""
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.BOX)) > 127


def square_masks(source: Source, indices: np.ndarray, size: int) -> Bool[np.ndarray, "k s s"]:
    """The masks of a source's images, as `square_mask`; nothing of those that have none."""
    masks = np.zeros((len(indices), size, size), bool)
    for k in np.flatnonzero(source.has_mask(indices)):
        masks[k] = square_mask(source.mask(int(indices[k])), size)
    return masks


def center_prior_maps(count: int, size: int) -> Float[np.ndarray, "k s s"]:
    """The same Gaussian in the middle of every image, of standard deviation a quarter of the side."""
    profile = np.exp(-((((np.arange(size) + 0.5) / size - 0.5) / 0.25) ** 2) / 2)
    return np.broadcast_to(np.outer(profile, profile), (count, size, size))


def score(maps: Float[np.ndarray, "k h w"], masks: Bool[np.ndarray, "k s s"]) -> dict[str, float]:
    """Figures of maps against masks, over the images; those with an empty mask count for `pixel_ap` alone.

    `pointing_game`: mean rate. `mask_iou`: mean IoU at IOU_THRESHOLD. `mask_iou_best`: mean IoU at the one threshold
    of THRESHOLDS that is best for all images together (chosen on these images, so an upper bound). `pixel_ap`:
    average precision over the pixels of all images (PxAP of Choe et al. 2020), at THRESHOLDS.
    """
    progress, measured = Progress("maps against masks", len(maps)), []
    for one in over_cores(_image_score, zip(maps, masks, strict=True), chunk=CHUNK, alone=len(maps) < FEW):
        measured.append(one)
        progress.update(len(measured))
    counts, pointed, overlaps = (np.array(values) for values in zip(*measured, strict=True))
    figures = {"pixel_ap": _average_precision(*counts.sum(0))}
    shown = counts[:, 0, 0] > 0
    if shown.any():
        figures |= {
            "pointing_game": float(pointed[shown].mean()),
            "mask_iou": float(overlaps[shown].mean()),
            "mask_iou_best": _best_iou(counts[shown, 0], counts[shown, 1]),
        }
    return figures


def _image_score(m: np.ndarray, mask: np.ndarray) -> tuple[list[np.ndarray], float, float]:
    """`_counts`, pointing score and IoU of one map; the last two are 0 where the mask is empty."""
    scaled = upsample(m, mask.shape[-1])
    counts = _counts(scaled, mask)
    if not counts[0][0]:
        return counts, 0.0, 0.0
    return counts, pointing_score(scaled, mask), iou(scaled >= IOU_THRESHOLD, mask)


def _counts(scaled: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Pixels at or above each threshold: those of the object, and all."""
    level = np.searchsorted(THRESHOLDS, scaled, side="right") - 1
    return [np.bincount(level[m], minlength=len(THRESHOLDS))[::-1].cumsum()[::-1] for m in (mask, np.ones_like(mask))]


def _best_iou(hits: np.ndarray, above: np.ndarray) -> float:
    """(k, thresholds) counts of the object's pixels and of all; the lowest threshold, 0, has the whole object."""
    return float((hits / (hits[:, :1] + above - hits)).mean(0).max())


def _average_precision(hits: np.ndarray, above: np.ndarray) -> float:
    """Sum over falling thresholds of precision times the gain in recall; 0 where there is no object."""
    precision = hits / np.maximum(above, 1)
    gain = hits - np.append(hits[1:], 0)
    return float((precision * gain).sum() / max(hits[0], 1))
