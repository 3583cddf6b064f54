"""Boxes (y0, x0, y1, x1) in fractions of an image, drawn and moved, in operations that NumPy and JAX share (`xp` is one
of the two)."""

from types import ModuleType

ASPECT_RANGE = (3 / 4, 4 / 3)  # width / height in pixels, drawn log-uniformly, as in Random Resized Crop


def draw_area(u, area_range: tuple):
    """Areas uniform in a range of fractions, numbers or (n,) arrays, from uniform draws."""
    return area_range[0] + u * (area_range[1] - area_range[0])


def draw_aspect(u, aspect_range: tuple, xp: ModuleType):
    """Aspects (width / height) log-uniform in a range of numbers or (n,) arrays, from uniform draws (n, …)."""
    low, high = (xp.log(xp.asarray(end, xp.float32)) for end in aspect_range)
    return xp.exp(low + u * (high - low))


def box_shape(area, aspect, xp: ModuleType) -> tuple:
    """(heights, widths) of boxes in fractions of an image, each at most 1: a side that would be longer is cut off.
    `aspect` is that of the fractions: the aspect in pixels times the image's height / width."""
    return xp.minimum(xp.sqrt(area / aspect), 1.0), xp.minimum(xp.sqrt(area * aspect), 1.0)


def to_pixels(box, size: int, xp: ModuleType):
    """Boxes (n, 4) in fractions -> the nearest whole-pixel boxes of a size × size view, at least one pixel a side."""
    corners = xp.round(box * size).astype(xp.int32)
    low = xp.minimum(corners[:, :2], size - 1)
    return xp.concatenate([low, xp.maximum(corners[:, 2:], low + 1)], 1)


def window_around(box, smallest: float, u, xp: ModuleType):
    """Random square windows (n, 4) in fractions, of sides of at least `smallest`, that keep `box` inside; u: (n, 3)
    uniforms."""
    side = xp.maximum(smallest + u[:, :1] * (1 - smallest), (box[:, 2:] - box[:, :2]).max(1, keepdims=True))
    low = xp.maximum(box[:, 2:] - side, 0.0)
    high = xp.minimum(box[:, :2], 1 - side)
    start = low + u[:, 1:3] * (high - low)
    return xp.concatenate([start, start + side], 1)
