"""The views of a group of images on the host: what `plan` decides, with the saliency masks following."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cvsa_jax.data import decode, plan
from cvsa_jax.data import saliency_swap as swap
from cvsa_jax.data.resample import placed_masks
from cvsa_jax.data.saliency_maps import SaliencyMaps, fills, search
from cvsa_jax.data.view_spec import ViewSpec


def group_views(
    images: Sequence[decode.Opened],
    examples: np.ndarray,
    positions: np.ndarray,
    maps: SaliencyMaps | None,
    spec: ViewSpec,
    seed: int,
) -> dict[str, np.ndarray]:
    """Two views of each image of a group; the images lend each other their backgrounds.

    Args:
        images: g images of any sizes.
        examples: (g,) which examples they are: an image is never its own background.
        positions: (g, 2) uint32 places in the data order, as words; with `seed` they decide every random choice.
        maps: of each image, or None where nothing needs them.

    Returns:
        `view1`, `view2` (g, S, S, 3) uint8; with maps `mask1`, `mask2` (g, M, M) uint8, M = S / MASK_STRIDE: the
        image's saliency inside its box, 0 elsewhere; and of swaps `residual` (g, 2) float32, see `plan.Plan`.

    Raises:
        decode.Unreadable: an image cannot be decoded.
    """
    g, lent, backgrounds = len(images), None, None
    shapes = np.array([image.size[::-1] for image in images], np.float32)
    own = np.tile(np.arange(g), 2)
    if spec.kind == "saliency_swap":
        lent = swap.lenders(examples, fills(maps.rows, spec.paste_area[1], np), spec, np).T.ravel()
        backgrounds = maps.take(lent)
    sources = None if maps is None else maps.take(own)
    made = plan.plan_views(seed, positions, shapes, sources, backgrounds, spec, np, search)
    least = _least_sizes(made, own, lent, g, spec)
    read = [image.pixels(size) for image, size in zip(images, least, strict=True)]

    views = rendered(read, own, lent, made, spec)
    batch = {"view1": views[:g], "view2": views[g:]}
    if maps is not None:
        masks = np.round(placed_masks(sources.cells, made.crop, made.target, spec.size, np)).astype(np.uint8)
        masks = np.where(made.flip[:, None, None], masks[:, :, ::-1], masks)
        batch |= {"mask1": masks[:g], "mask2": masks[g:]}
    if spec.kind == "saliency_swap":
        batch["residual"] = made.residual.reshape(2, g).T
    return batch


def rendered(
    images: list[Image.Image], own: np.ndarray, lent: np.ndarray | None, made: plan.Plan, spec: ViewSpec
) -> np.ndarray:
    """The views of a plan, (n, S, S, 3) uint8, of the images at `own` (n,) over those at `lent` (n,)."""
    views, canvases = np.empty((len(own), spec.size, spec.size, 3), np.uint8), {}
    for k, target in enumerate(made.target):
        view = resized(images[own[k]], made.crop[k], target[2:] - target[:2])
        if made.swapped[k]:
            # A background that is shown whole is resized once for all views that it serves.
            shown = lent[k] if spec.canvas_min == 1 else f"of view {k}"
            if shown not in canvases:
                canvases[shown] = resized(images[lent[k]], made.window[k], [spec.size] * 2)
            pasted, view = view, canvases[shown].copy()
            view.paste(pasted, (int(target[1]), int(target[0])))
        views[k] = _flipped(np.asarray(view), made.flip[k])
    return views


def labelled_crop(
    image: decode.Opened, position: np.ndarray, area: tuple[float, ...], size: int, seed: int
) -> np.ndarray:
    """A Random Resized Crop of an image, perhaps flipped, as (size, size, 3) uint8: the only augmentation of the
    protocols that learn from labels. `position` (2,) uint32 and `seed` decide it."""
    shape = np.array([image.size[::-1]], np.float32)
    (box,), (flip,) = plan.labelled_crops(seed, position[None], shape, area, np)
    read = image.pixels(size / (box[2:] - box[:2]))
    return _flipped(np.asarray(resized(read, box, [size] * 2)), flip)


def resized(image: Image.Image, box: np.ndarray, shape: Sequence[int] | np.ndarray) -> Image.Image:
    """The box (y0, x0, y1, x1), in fractions, of an image, resized to `shape` (height, width)."""
    width, height = image.size
    edges = np.clip(box, 0, 1) * np.array([height, width, height, width], np.float64)
    return image.resize((int(shape[1]), int(shape[0])), Image.Resampling.BILINEAR, tuple(edges[[1, 0, 3, 2]]))


def _least_sizes(made: plan.Plan, own: np.ndarray, lent: np.ndarray | None, g: int, spec: ViewSpec) -> np.ndarray:
    """(g, 2) smallest height and width in px at which no view enlarges what it takes of an image."""
    least = np.zeros((g, 2))
    np.maximum.at(least, own, (made.target[:, 2:] - made.target[:, :2]) / (made.crop[:, 2:] - made.crop[:, :2]))
    if lent is not None:
        shown = spec.size / (made.window[:, 2:] - made.window[:, :2])
        np.maximum.at(least, lent[made.swapped], shown[made.swapped])
    return least


def _flipped(pixels: np.ndarray, flip: np.bool_) -> np.ndarray:
    return pixels[:, ::-1] if flip else pixels
