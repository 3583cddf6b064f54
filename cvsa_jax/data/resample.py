"""Resizing a box of an image, or of a map, to a box of a view: bilinear with antialiasing, as `PIL.Image.resize` does.

Each axis is a matrix, in operations that NumPy and JAX share (`xp` is one of the two). Boxes are (y0, x0, y1, x1).
"""

from types import ModuleType

import numpy as np

from cvsa_jax.data.view_spec import MASK_STRIDE

# Of a batch of the host's views, what becomes masks in the step.
PLACES = ("cells", "crop1", "target1", "flip1", "crop2", "target2", "flip2")

LEAST_RANGE = 8  # levels of 256


def axis_weights(low, high, start, stop, inside: int, size: int, xp: ModuleType):
    """Along one axis, what each of `size` pixels of a view takes of each of `inside` pixels of an image, when the part
    from `low` to `high` (n,), in fractions, is resized to the pixels from `start` to `stop` (n,), integers: (n, size,
    inside) float32. Pixels beside the part take part at its edges; the view's other pixels are 0."""
    low, start = (xp.asarray(end, xp.float32)[:, None] for end in (low, start))
    pixel = xp.arange(size, dtype=xp.float32) + np.float32(0.5)
    step = (high[:, None] - low) * inside / (stop[:, None] - start)  # pixels of the image per pixel of the view
    centre = (low * inside + (pixel - start) * step)[..., None]
    reach = xp.maximum(step, 1.0)[..., None]
    triangle = xp.maximum(1.0 - abs(xp.arange(inside, dtype=xp.float32) + np.float32(0.5) - centre) / reach, 0.0)
    within = (pixel > start) & (pixel < stop[:, None])
    total = xp.maximum(triangle.sum(-1), np.float32(1e-6))
    return (triangle * (within / total)[..., None]).astype(xp.float32)


def with_masks(batch: dict, size: int, xp: ModuleType) -> dict:
    """A batch of the host's views with `mask1` and `mask2` (b, M, M) uint8, M = size / MASK_STRIDE, the image's
    saliency inside of its box and 0 elsewhere, in place of what tells of them: the maps `cells` (b, G, G) uint8, and of
    each view the boxes and the flip of its plan. A batch without maps stays as it is."""
    if "cells" not in batch:
        return batch
    made = {name: rows for name, rows in batch.items() if name not in PLACES}
    for v in (1, 2):
        crop, target, flip = (batch[f"{name}{v}"] for name in ("crop", "target", "flip"))
        made[f"mask{v}"] = view_masks(batch["cells"], crop, target, flip, size, xp)
    return made


def view_masks(cells, crop, target, flip, size: int, xp: ModuleType):
    """(n, M, M) uint8 masks of views, from the maps (n, G, G) and the plan of each view."""
    masks = placed_masks(cells, crop, target, size, xp)
    masks = xp.where(flip[:, None, None], masks[:, :, ::-1], masks)
    return xp.round(masks).astype(xp.uint8)


def placed_masks(cells, source, target, size: int, xp: ModuleType):
    """Maps (n, G, G) whose boxes `source` (n, 4) in fractions fill the whole-pixel boxes `target` (n, 4) of size × size
    views that are 0 elsewhere, averaged over squares of MASK_STRIDE pixels: (n,) + (size / MASK_STRIDE,) * 2 float32.
    So no mask is ever made at full size."""
    n, grid, _ = cells.shape
    rows, columns = (
        axis_weights(source[:, k], source[:, k + 2], target[:, k], target[:, k + 2], grid, size, xp)
        .reshape(n, -1, MASK_STRIDE, grid)
        .mean(2)
        for k in (0, 1)
    )
    return rows @ cells.astype(xp.float32) @ xp.swapaxes(columns, 1, 2)


def cell_means(maps, boxes, rows: int, columns: int, xp: ModuleType):
    """Maps (n, G, G) cut to boxes (n, 4), in fractions, and averaged by area over rows × columns cells: (n, rows,
    columns) float32."""
    grid = maps.shape[1]

    def shares(low, high, cells: int):  # (n, cells, G), what each cell takes of each part of the map
        edge = low[:, None] + (high - low)[:, None] * xp.arange(cells + 1, dtype=xp.float32) / cells
        edge, part = edge[..., None] * grid, xp.arange(grid, dtype=xp.float32)
        common = xp.minimum(edge[:, 1:], part + 1) - xp.maximum(edge[:, :-1], part)
        return xp.maximum(common, 0) / xp.maximum(edge[:, 1:] - edge[:, :-1], np.float32(1e-6))

    boxes = xp.asarray(boxes, xp.float32)
    over_rows, over_columns = (shares(boxes[:, k], boxes[:, k + 2], n) for k, n in enumerate((rows, columns)))
    return over_rows @ maps.astype(xp.float32) @ xp.swapaxes(over_columns, 1, 2)


def stretched(maps, xp: ModuleType):
    """Maps (n, G, G) uint8 as float32, each over [0, 1]; one with a range of fewer levels than LEAST_RANGE, which shows
    nothing, becomes 0."""
    low = maps.min((1, 2), keepdims=True).astype(xp.float32)
    span = maps.max((1, 2), keepdims=True) - low
    return xp.where(span < LEAST_RANGE, np.float32(0), (maps - low) / xp.maximum(span, np.float32(1)))


def centre_boxes(shapes: np.ndarray, resize: int, size: int) -> np.ndarray:
    """(n, 4) in fractions: the middle of images of these shapes (n, 2) whose shorter side is `resize`. Nothing else of
    them is resized, so that an image of extreme shape costs no more than others."""
    scaled = np.round(shapes * (resize / shapes.min(1, keepdims=True)))
    low = (scaled - size) // 2
    return np.concatenate([low, low + size], 1) / np.tile(scaled, 2)
