"""Resizing a box of an image, or of a map, to a box of a view: bilinear with antialiasing, as `PIL.Image.resize` does.

Each axis is a matrix, in operations that NumPy and JAX share (`xp` is one of the two). Boxes are (y0, x0, y1, x1).
"""

from types import ModuleType

import numpy as np

from cvsa_jax.data.view_spec import MASK_STRIDE


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
