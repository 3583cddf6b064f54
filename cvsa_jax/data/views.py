"""The two views of each image: Saliency Swap or Random Resized Crop, then a flip, with the saliency mask following."""

import functools
import math

import tensorflow as tf

from cvsa_jax.data import resample
from cvsa_jax.data import saliency_swap as swap
from cvsa_jax.data.view_spec import ViewSpec

_CROP_TRIES = 10
# Uniform draws of one view: those of a swap, whether to swap, whether to flip, and those of a crop.
_SWAP, _FLIP, _CROP = swap.SWAP_DRAWS, swap.SWAP_DRAWS + 1, swap.SWAP_DRAWS + 2
_DRAWS = _CROP + 4 * _CROP_TRIES


def group_views(
    images: list[tf.Tensor],
    examples: tf.Tensor,
    positions: tf.Tensor,
    saliency: tf.Tensor | None,
    spec: ViewSpec,
    seed: int,
) -> dict[str, tf.Tensor]:
    """Two views of each image of a group; the images lend each other their backgrounds.

    Args:
        images: g decoded images (H, W, 3) uint8 of any sizes.
        examples: (g,) int64, which examples they are: an image is never its own background.
        positions: (g,) int64 places in the data order; with `seed` they decide every random choice.
        saliency: (g, G, G) uint8, or None where nothing needs it.

    Returns:
        `view1`, `view2` (g, S, S, 3) uint8, and with saliency `mask1`, `mask2` (g, M, M) uint8.
    """
    one_view = _view_function(spec)
    swapped = spec.kind == "saliency_swap"
    lent = tf.TensorArray(
        tf.float32 if spec.canvas_min == 1 else tf.uint8,
        len(images),
        clear_after_read=False,
        infer_shape=False,
        element_shape=(None, None, 3),
    )
    for k, image in enumerate(images if swapped else ()):
        lent = lent.write(k, swap.canvas(image, spec))
    maps = None if saliency is None else swap.saliency_maps(saliency, spec.threshold)

    def map_of(k) -> swap.SaliencyMap | None:
        return None if maps is None else swap.SaliencyMap(*(field[k] for field in maps))

    rows = {name: [] for name in ("view1", "view2", "mask1", "mask2")}
    for k, image in enumerate(images):
        # View 1 takes the next image of the group as background and view 2 the one after it.
        lenders = _lenders(examples, k) if swapped else None
        for v in (0, 1):
            background = None
            if lenders is not None and v < spec.swapped_views:
                background = (lent.read(lenders[v]), map_of(lenders[v]))
            draw_seed = tf.stack([tf.constant(seed, tf.int64), positions[k] * 2 + v])
            view, mask = one_view(image, map_of(k), background, draw_seed)
            rows[f"view{v + 1}"].append(_to_uint8(view))
            if saliency is not None:
                rows[f"mask{v + 1}"].append(_to_uint8(mask))
    return {name: tf.stack(parts) for name, parts in rows.items() if parts}


def labelled_crop(image: tf.Tensor, position: tf.Tensor, area: tuple[float, float], size: int, seed: int) -> tf.Tensor:
    """A Random Resized Crop of an image (H, W, 3) uint8, flipped half of the time, as (size, size, 3) uint8: the only
    augmentation of the protocols that learn from labels. `position` () int64 and `seed` decide it."""
    u = tf.random.stateless_uniform([4 * _CROP_TRIES + 1], tf.stack([tf.constant(seed, tf.int64), position]))
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    box = random_crop_box(tf.reshape(u[1:], [_CROP_TRIES, 4]), shape, area)
    view = _to_uint8(resample.place(image, box, [size, size]))
    return tf.cond(u[0] < 0.5, lambda: view[:, ::-1], lambda: view)


def random_crop_box(u: tf.Tensor, shape: tf.Tensor, area: tuple[float, float]) -> tf.Tensor:
    """Random Resized Crop as in torchvision: the first of ten draws that fits, else the largest centred box whose
    aspect is allowed. `u`: (10, 4) uniforms; `shape`: height and width in pixels; a box in fractions."""
    ratio = shape[0] / shape[1]
    fraction = area[0] + u[:, 0] * (area[1] - area[0])
    low, high = (math.log(a) for a in swap.ASPECT_RANGE)
    aspect = tf.exp(low + u[:, 1] * (high - low))
    height, width = tf.sqrt(fraction / (aspect * ratio)), tf.sqrt(fraction * aspect * ratio)
    fits = (height <= 1) & (width <= 1)
    first = tf.argmax(tf.cast(fits, tf.int32))
    y, x = u[:, 2] * (1 - height), u[:, 3] * (1 - width)
    drawn = tf.stack([y, x, y + height, x + width], -1)[first]
    high_enough = tf.minimum(1.0, shape[1] / swap.ASPECT_RANGE[0] / shape[0])
    wide_enough = tf.minimum(1.0, shape[0] * swap.ASPECT_RANGE[1] / shape[1])
    centred = 0.5 + 0.5 * tf.stack([-high_enough, -wide_enough, high_enough, wide_enough])
    return tf.where(tf.reduce_any(fits), drawn, centred)


@functools.lru_cache
def _view_function(spec: ViewSpec) -> tf.types.experimental.PolymorphicFunction:
    """`_one_view` of a spec. As a function, a view is built once and not for every image, which takes seconds."""
    return tf.function(functools.partial(_one_view, spec=spec), autograph=False, reduce_retracing=True)


def _one_view(image, saliency, background, draw_seed, *, spec: ViewSpec) -> tuple[tf.Tensor, tf.Tensor]:
    """`saliency`: the image's map, or None; `background`: a `swap.canvas` and its map, or None, and the view is a crop.
    `draw_seed` (2,) int64 decides its random choices."""
    u = tf.random.stateless_uniform([_DRAWS], draw_seed)

    def cropped() -> tuple[tf.Tensor, tf.Tensor]:
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        box = random_crop_box(tf.reshape(u[_CROP:], [_CROP_TRIES, 4]), shape, spec.crop_area)
        view = resample.place(image, box, [spec.size] * 2)
        if saliency is None:
            return view, tf.zeros([0, 0])
        return view, resample.placed_mask(saliency.cells, box, tf.constant([0, 0, spec.size, spec.size]), spec.size)

    def swapped() -> tuple[tf.Tensor, tf.Tensor]:
        return swap.swap(image, saliency, *background, u[: swap.SWAP_DRAWS], spec)

    view, mask = cropped() if background is None else tf.cond(u[_SWAP] < spec.swap_prob, swapped, cropped)
    flip = u[_FLIP] < 0.5
    return tf.cond(flip, lambda: (view[:, ::-1], mask[:, ::-1]), lambda: (view, mask))


def _lenders(examples: tf.Tensor, k: int) -> tf.Tensor:
    """(2,) int32 places in the group of the backgrounds of image k's two views: the next two images, passing over k's
    own example and, for view 2, view 1's background where there is another. Equal examples meet in a group only where
    it straddles the border of two epochs."""
    turn = tf.constant([(k + shift) % examples.shape[0] for shift in range(1, examples.shape[0])])
    others = tf.gather(examples, turn)
    foreign = others != examples[k]
    first = tf.argmax(tf.cast(foreign, tf.int32), output_type=tf.int32)
    fresh = foreign & (others != others[first])
    second = tf.where(tf.reduce_any(fresh), tf.argmax(tf.cast(fresh, tf.int32), output_type=tf.int32), first)
    return tf.gather(turn, tf.stack([first, second]))


def _to_uint8(x: tf.Tensor) -> tf.Tensor:
    return tf.saturate_cast(tf.round(x), tf.uint8)
