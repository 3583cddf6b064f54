"""What is made of the images of a batch on the host: two views for pre-training, a labelled crop, or the whole image
for evaluation. Each is a `Making`: NumPy decides for the batch at once, and TensorFlow makes the pixels of a group."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf

from cvsa_jax.data import pixels, plan
from cvsa_jax.data import saliency_swap as swap
from cvsa_jax.data.index import position_words
from cvsa_jax.data.pictures import Rows
from cvsa_jax.data.resample import centre_boxes
from cvsa_jax.data.saliency_maps import MapReader, Maps, object_too_large, saliency_maps, search
from cvsa_jax.data.view_spec import ViewSpec

Parts = dict[str, list[tf.Tensor]]


class Boxes(NamedTuple):
    """m boxes of a batch's images: of the one at the row `of` (m,) the box `box` (m, 4), in fractions, at the size
    `size` (m, 2), height and width in px. Where `used` (m,) is false nobody looks at it."""

    of: np.ndarray
    box: np.ndarray
    size: np.ndarray
    used: np.ndarray


@runtime_checkable
class Making(Protocol):
    """How the images of a batch become rows; `group`: so many images belong together; `shrinks`: JPEGs may be read
    smaller, as long as no box is enlarged for it.

    `decide` takes examples (b,), positions (b,) and shapes (b, 2) in px, and gives the boxes, in blocks of b, one block
    after the other; what `pixels` needs besides, name -> (k·b, …), in such blocks as well; and what goes into the batch
    as it is, name -> (b, …). `pixels` takes a group's images, and its boxes and needs, k·group of each; it gives
    name -> (group, …).
    """

    group: int
    shrinks: bool

    def decide(self, examples: np.ndarray, positions: np.ndarray, shapes: np.ndarray) -> tuple[Boxes, Rows, Rows]: ...

    def pixels(self, images: Sequence[tf.Tensor], cuts: "Cuts", needs: Parts) -> dict[str, tf.Tensor]: ...


class Cuts(NamedTuple):
    """`pixels.cuts` of each box of a group."""

    whole: list[tf.Tensor]
    real: list[tf.Tensor]

    def of(self, image: tf.Tensor, k: int) -> tf.Tensor:
        """Box k, of this image: (height, width, 3) uint8."""
        return pixels.resized(image, self.whole[k], self.real[k])


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Two views of each image, as `plan` decides. In the batch: `view1`, `view2` (b, S, S, 3) uint8 and `position`
    (b, 2) uint32; with maps what `resample.with_masks` takes; of swaps `residual` (b, 2) float32, see `plan.Plan`."""

    spec: ViewSpec
    seed: int
    maps: MapReader | None
    shrinks: bool = True

    @classmethod
    def of(cls, saliency: Maps | None, spec: ViewSpec, seed: int) -> "Pairs":
        """With the maps of a whole source, or None where no view needs one."""
        return cls(spec, seed, None if saliency is None else MapReader(saliency, spec))

    @property
    def group(self) -> int:
        return self.spec.group

    def decide(self, examples: np.ndarray, positions: np.ndarray, shapes: np.ndarray) -> tuple[Boxes, Rows, Rows]:
        spec, b, lent, maps = self.spec, len(examples), None, None
        words = position_words(positions)
        cells = None if self.maps is None else self.maps.saliency[examples]
        if spec.kind == "saliency_swap":
            maps = saliency_maps(cells, self.maps.min_cover_height(examples, cells), spec.threshold, np)
            too_large = object_too_large(maps.min_cover_height, spec.paste_area[1], np)
            lent = swap.background_indices(examples, too_large, spec, np).T.ravel()
        made = plan.plan_views(self.seed, words, shapes.astype(np.float32), maps, lent, spec, np, search)
        own = np.tile(np.arange(b), 2)
        boxes = Boxes(own, made.crop, made.target[:, 2:] - made.target[:, :2], np.ones(2 * b, bool))
        needs, told = {"mirrored": _axes(made.flip)}, {"position": words}
        if lent is not None:
            behind = self._backgrounds(made, lent)
            boxes = _together(boxes, behind)
            needs |= {"frame": pixels.frames(made.target, spec.size), "lent": lent % spec.group, "shown": behind.used}
            told["residual"] = made.residual.reshape(2, b).T
        if cells is not None:
            told["cells"] = cells
            for name in ("crop", "target", "flip"):
                first, second = np.split(getattr(made, name), 2)
                told |= {f"{name}1": first, f"{name}2": second}
        return boxes, needs, told

    def _backgrounds(self, made: plan.Plan, lent: np.ndarray) -> Boxes:
        """Where they are shown whole, of each image once for all views that it serves; else of each view."""
        n, size = len(lent), self.spec.size
        if self.spec.canvas_min < 1:
            return Boxes(lent, made.window, np.full((n, 2), size), made.swapped)
        b = n // 2
        used = np.zeros(b, bool)
        used[lent[made.swapped]] = True
        return Boxes(np.arange(b), np.tile(np.float32([0, 0, 1, 1]), (b, 1)), np.full((b, 2), size), used)

    def pixels(self, images: Sequence[tf.Tensor], cuts: Cuts, needs: Parts) -> dict[str, tf.Tensor]:
        g, size = len(images), self.spec.size
        views = [cuts.of(images[v % g], v) for v in range(2 * g)]
        if "lent" in needs:
            behind = self._behind(images, cuts, needs)
            views = [pixels.pasted(*parts, size) for parts in zip(behind, views, needs["frame"], strict=True)]
        views = [
            tf.raw_ops.Reverse(tensor=view, dims=axes) for view, axes in zip(views, needs["mirrored"], strict=True)
        ]
        both = [tf.ensure_shape(tf.stack(views[v : v + g]), (g, size, size, 3)) for v in (0, g)]
        return {"view1": both[0], "view2": both[1]}

    def _behind(self, images: Sequence[tf.Tensor], cuts: Cuts, needs: Parts) -> list[tf.Tensor]:
        """The background of each view."""
        g, lent, shown = len(images), needs["lent"], needs["shown"]
        nothing = tf.zeros([self.spec.size, self.spec.size, 3], tf.uint8)

        def resized(image: tf.Tensor, k: int) -> tf.Tensor:
            if self.spec.swap_prob == 1 and self.spec.swapped_views == 2:
                return cuts.of(image, 2 * g + k)
            return tf.cond(shown[k], lambda: cuts.of(image, 2 * g + k), lambda: nothing)

        if self.spec.canvas_min == 1:
            whole = tf.stack([resized(image, k) for k, image in enumerate(images)])
            return [tf.gather(whole, row) for row in lent]
        choices = [lambda image=image: image for image in images]
        return [resized(tf.switch_case(row, choices), v) for v, row in enumerate(lent)]


@dataclasses.dataclass(frozen=True)
class LabelledCrops:
    """A Random Resized Crop of each image, perhaps flipped: the only augmentation of the protocols that learn from
    labels. In the batch: `image` (b, size, size, 3) uint8. `area`: the crop's range of shares of the image."""

    area: tuple[float, ...]
    size: int
    seed: int
    group: int = 1
    shrinks: bool = True

    def decide(self, examples: np.ndarray, positions: np.ndarray, shapes: np.ndarray) -> tuple[Boxes, Rows, Rows]:
        b, words = len(examples), position_words(positions)
        box, flip = plan.labelled_crops(self.seed, words, shapes.astype(np.float32), self.area, np)
        return Boxes(np.arange(b), box, np.full((b, 2), self.size), np.ones(b, bool)), {"mirrored": _axes(flip)}, {}

    def pixels(self, images: Sequence[tf.Tensor], cuts: Cuts, needs: Parts) -> dict[str, tf.Tensor]:
        crop = tf.raw_ops.Reverse(tensor=cuts.of(images[0], 0), dims=needs["mirrored"][0])
        return {"image": tf.ensure_shape(crop[None], (1, self.size, self.size, 3))}


@dataclasses.dataclass(frozen=True)
class WholeImages:
    """The centre of each image at `size` px, after its shorter side was resized to `resize`; with `resize` 0 the whole
    image, squeezed to a square, so that masks can be laid over it. In the batch: `image` (b, size, size, 3) uint8, and
    with `maps` of the whole source the other fields of `Mapped`."""

    resize: int
    size: int
    maps: Maps | None = None
    group: int = 1
    shrinks: bool = False  # figures must not depend on how a file is encoded

    def decide(self, examples: np.ndarray, positions: np.ndarray, shapes: np.ndarray) -> tuple[Boxes, Rows, Rows]:
        b = len(examples)
        box = centre_boxes(shapes, self.resize, self.size) if self.resize else np.tile([0.0, 0, 1, 1], (b, 1))
        told = {} if self.maps is None else {"cells": self.maps[examples], "box": box.astype(np.float32)}
        return Boxes(np.arange(b), box, np.full((b, 2), self.size), np.ones(b, bool)), {}, told

    def pixels(self, images: Sequence[tf.Tensor], cuts: Cuts, needs: Parts) -> dict[str, tf.Tensor]:
        del needs
        return {"image": tf.ensure_shape(cuts.of(images[0], 0)[None], (1, self.size, self.size, 3))}


def _axes(flip: np.ndarray) -> np.ndarray:
    """(n, 3) bool, the axes of views to reverse."""
    return np.stack([np.zeros_like(flip), flip, np.zeros_like(flip)], 1)


def _together(first: Boxes, second: Boxes) -> Boxes:
    return Boxes(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))
