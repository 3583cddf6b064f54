"""What is done for the two views of each image of a batch: Saliency Swap or Random Resized Crop, then a flip. Decided
from the images' shapes and maps alone, in operations that NumPy and JAX share (`xp` is one of the two)."""

from types import ModuleType
from typing import NamedTuple

import numpy as np

from cvsa_jax.data import draws
from cvsa_jax.data import saliency_swap as swap
from cvsa_jax.data.boxes import ASPECT_RANGE, draw_area, draw_aspect, to_pixels
from cvsa_jax.data.saliency_maps import SaliencyMaps
from cvsa_jax.data.view_spec import ViewSpec

_CROP_TRIES = 10
# Uniform draws of one view: those of a swap, whether to swap, whether to flip, and those of a crop.
_SWAP, _FLIP, _CROP = swap.SWAP_DRAWS, swap.SWAP_DRAWS + 1, swap.SWAP_DRAWS + 2
_DRAWS = _CROP + 4 * _CROP_TRIES


class Plan(NamedTuple):
    """Of n views: the box `crop` (n, 4) of the image, in fractions, is resized to the box `target` (n, 4) of the view,
    in whole pixels, over the box `window` (n, 4), in fractions, of the background where `swapped` (n,); then the view
    is mirrored where `flip` (n,). `residual` (n,): see `saliency_swap.Swap`; 0 where nothing is swapped."""

    crop: np.ndarray
    target: np.ndarray
    window: np.ndarray
    swapped: np.ndarray
    flip: np.ndarray
    residual: np.ndarray


def plan_views(
    seed: int,
    positions,
    shapes,
    maps: SaliencyMaps | None,
    lent,
    spec: ViewSpec,
    xp: ModuleType,
    search: swap.Search,
) -> Plan:
    """The plan of 2b views: view 1 of each of b images, then view 2 of each.

    Args:
        seed, positions: the latter (b, 2) uint32, as `index.position_words` gives them; they decide all that is random.
        shapes: (b, 2) float32 height and width of the images in pixels.
        maps: of the b images; None for Random Resized Crop, which needs none.
        lent: (2b,) int32, which image lends each view its background; None for Random Resized Crop.
    """
    b, shapes = len(shapes), xp.concatenate([shapes, shapes])
    u = xp.concatenate([draws.uniforms(seed, *draws.numbers(positions, view), _DRAWS, xp) for view in (0, 1)])
    crop = random_crop_boxes(u[:, _CROP:].reshape(2 * b, _CROP_TRIES, 4), shapes, spec.crop_area, xp)
    target = xp.tile(xp.asarray([[0, 0, spec.size, spec.size]], xp.int32), (2 * b, 1))
    flip = u[:, _FLIP] < 0.5
    if spec.kind == "random_resized_crop":
        nothing = xp.zeros(2 * b, xp.float32)
        return Plan(crop, target, xp.zeros_like(crop), nothing > 0, flip, nothing)
    own = xp.tile(xp.arange(b), 2)
    boxes = swap.swap_boxes(u[:, :_SWAP], shapes[:, 0] / shapes[:, 1], maps, own, lent, spec, xp, search)
    swapped = (u[:, _SWAP] < spec.swap_prob) & (xp.arange(2 * b) < spec.swapped_views * b)
    chosen = swapped[:, None]
    return Plan(
        crop=xp.where(chosen, boxes.crop, crop),
        target=xp.where(chosen, to_pixels(boxes.hole, spec.size, xp), target),
        window=boxes.window,
        swapped=swapped,
        flip=flip,
        residual=xp.where(swapped, boxes.residual, xp.float32(0)),
    )


def random_crop_boxes(u, shapes, area: tuple[float, ...], xp: ModuleType):
    """Random Resized Crop as in torchvision: the first of ten draws that fits, else the largest centred box whose
    aspect is allowed. `u`: (n, 10, 4) uniforms; `shapes`: (n, 2) heights and widths in pixels; boxes (n, 4) float32 in
    fractions."""
    ratio, n = (shapes[:, 0] / shapes[:, 1])[:, None], xp.arange(len(u))
    fraction = draw_area(u[..., 0], area)
    aspect = draw_aspect(u[..., 1], ASPECT_RANGE, xp)
    height, width = xp.sqrt(fraction / (aspect * ratio)), xp.sqrt(fraction * aspect * ratio)
    fits = (height <= 1) & (width <= 1)
    y, x = u[..., 2] * (1 - height), u[..., 3] * (1 - width)
    drawn = xp.stack([y, x, y + height, x + width], -1)[n, fits.argmax(1)]
    half_height = 0.5 * xp.minimum(1.0, 1 / (ASPECT_RANGE[0] * ratio))
    half_width = 0.5 * xp.minimum(1.0, ASPECT_RANGE[1] * ratio)
    centred = 0.5 + xp.concatenate([-half_height, -half_width, half_height, half_width], 1)
    return xp.where(fits.any(1)[:, None], drawn, centred).astype(xp.float32)


def labelled_crops(seed: int, positions, shapes, area: tuple[float, ...], xp: ModuleType) -> tuple:
    """Crop boxes (n, 4) in fractions, and whether to flip (n,), of the protocols that learn from labels: a Random
    Resized Crop, flipped half of the time, and nothing else. Arguments as in `plan_views`."""
    u = draws.uniforms(seed, positions[:, 0], positions[:, 1], 4 * _CROP_TRIES + 1, xp)
    return random_crop_boxes(u[:, 1:].reshape(-1, _CROP_TRIES, 4), shapes, area, xp), u[:, 0] < 0.5
