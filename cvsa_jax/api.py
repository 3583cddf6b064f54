"""What `import cvsa_jax` offers to Python: configs, training, and frozen networks on arrays of images."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import tensorflow as tf
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data.pixels import cut_out
from cvsa_jax.data.resample import centre_boxes
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.encode import make_attended_encoder, make_encoder, make_look
from cvsa_jax.evaluation.evaluator import Evaluator  # noqa: F401  offered
from cvsa_jax.evaluation.look import LookHead
from cvsa_jax.evaluation.protocol import EvalSpec
from cvsa_jax.models.classifier import Classifier
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runs import feed, pretrain
from cvsa_jax.runtime import config_files, ranges
from cvsa_jax.runtime.distributed import make_mesh, to_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import as_path
from cvsa_jax.saliency.store import SaliencyStore  # noqa: F401  offered
from cvsa_jax.training.resume import check_mode, flat_config
from cvsa_jax.training.state import Network
from cvsa_jax.weights import frozen, look_file

Images = UInt8[np.ndarray, "n h w 3"] | Sequence[np.ndarray]
_BATCH = 64


def load_config(reference: str, changes: dict | None = None) -> ConfigDict:
    """A config by name as `folder:small,byol`, by file as `configs/folder.py:small,byol`, or of a run as
    `runs/mine/config.json`, with other values: dotted key -> value, or sections of such. UserError where there is no
    such config or key, TypeError at a value of another type."""
    config = config_files.load(reference)
    config_files.change(config, changes or {}, reference)
    return config


def load_source(config: ConfigDict) -> Source:
    """The data set of a config: names, labels, splits, and random access to images, masks and boxes."""
    return settings.load_source(config.data)


def train(config: ConfigDict, workdir: str) -> dict[str, float]:
    """Pre-trains as `python -m cvsa_jax.main` does, or continues, and returns the figures of the report. UserError for
    whatever the user can put right."""
    ranges.check(flat_config(config).items())
    _check_pretrain(config, "train")
    check_mode(config, as_path(workdir))
    return pretrain.train(config, as_path(workdir))


def views(config: ConfigDict) -> tf.data.Dataset:
    """The views that a pre-training of this config would see, in its order, batch after batch over all of its steps:
    for somebody else's step. Random Resized Crops or Saliency Swaps, flipped at random, without photometric
    augmentation.

    Elements are dictionaries: `view1`, `view2` (b, S, S, 3) uint8; where the views or the loss need maps, `mask1` and
    `mask2` (b, S / 4, S / 4) uint8, the saliency of the image inside of its box and 0 elsewhere; and of labelled sets
    `label` (b,) int32. An image that cannot be decoded, or a damaged JPEG that only Pillow reads, ends the data set
    with TensorFlow's own error. UserError for whatever the user can put right before.
    """
    _check_pretrain(config, "views")
    ranges.check(flat_config(config).items())
    return feed.view_dataset(config)


def load_backbone(origin: str, size: int | None = None, look: str | None = None) -> "Backbone":
    """A frozen network from the workdir of a pre-training or fine-tuned run, or from a file of ResNet weights, whose
    architecture is read off its tensors (docs/how-to/starting_weights.md). UserError where it is none of these.

    Args:
        size: side of the images in px, where not the network's own (of most files 224).
        look: file of a look head (`python -m cvsa_jax.look fit`) of this network, which then pools the features.
    """
    mesh = make_mesh()
    network = frozen.load(origin, mesh)
    spec = network.spec()
    if size is not None:
        spec = dataclasses.replace(spec, size=size, resize=round(size * 256 / 224))
    head = None if look is None else look_file.of_network(look, network.network, origin)
    return Backbone(network.model, network.network, spec, mesh, network.heads, head)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen network; `heads`: it has the conv heads that the attention is read from; `head`: what weights the cells
    of its features, if anything does. Images are (n, h, w, 3) uint8,
    or a list of such of any sizes; UserError where they are not."""

    model: Siamese | Classifier
    network: Network
    spec: EvalSpec
    mesh: Mesh
    heads: bool
    head: LookHead | None = None

    def features(self, images: Images) -> Float[np.ndarray, "n c"]:
        """Features of the centre crops, averaged over the cells, as the probe and kNN see them by default, or pooled by
        the look head where the backbone was loaded with one."""
        crops = [self._crop(image) for image in _checked(images)]
        if self.head is None:
            return self._encoded(crops, maps=False).pooled
        return self._over(
            crops, functools.partial(_attended(self.model, self.mesh), (self.network, self.head.vector))
        ).pooled

    def look(self, images: Images) -> Float[np.ndarray, "n rows cols"]:
        """The look head's value for each cell of the whole images: about 1 on objects and about 0 elsewhere."""
        if self.head is None:
            raise UserError("there is no look head: load_backbone(…, look='look.safetensors')")
        argument = (self.network, self.head.vector)
        return self._over(self._squares(images), functools.partial(_look(self.model, self.mesh), argument))

    def attention(self, images: Images) -> Float[np.ndarray, "n rows cols"]:
        """Where the network looks in each whole image: the mean cosine of each cell to all cells of all *other* images
        given, of which there must be at least one. No label or mask takes part."""
        squares = self._squares(images)
        if len(squares) < 2 or not self.heads:
            raise UserError("the attention needs at least two images, and a run's conv heads, which weights files lack")
        encoded = self._encoded(squares, maps=True)
        return localization.attention_maps(encoded.queries, encoded.keys)

    def _encoded(self, images: list[np.ndarray], maps: bool):
        return self._over(images, functools.partial(_encoder(self.model, self.mesh, maps), self.network))

    def _over(self, images: list[np.ndarray], encode: Callable):
        step = -(-_BATCH // self.mesh.size) * self.mesh.size
        parts = []
        for first in range(0, len(images), step):
            rows = np.stack(images[first : first + step])
            padded = np.pad(rows, [(0, -len(rows) % self.mesh.size), (0, 0), (0, 0), (0, 0)])
            encoded = encode(to_mesh(padded, self.mesh))
            parts.append(jax.tree.map(np.asarray, encoded))
        return jax.tree.map(lambda *outputs: np.concatenate(outputs)[: len(images)], *parts)

    def _squares(self, images: Images) -> list[np.ndarray]:
        whole, size = np.array([0, 0, 1, 1]), self.spec.size
        return [cut_out(image, whole, (size, size)) for image in _checked(images)]

    def _crop(self, image: np.ndarray) -> np.ndarray:
        (box,) = centre_boxes(np.array([image.shape[:2]]), self.spec.resize, self.spec.size)
        return cut_out(image, box, (self.spec.size, self.spec.size))


@functools.lru_cache
def _encoder(model: Siamese | Classifier, mesh: Mesh, maps: bool):
    """Compiled once, and not for each call."""
    return make_encoder(model, mesh, maps=maps)


@functools.lru_cache
def _attended(model: Siamese | Classifier, mesh: Mesh):
    return make_attended_encoder(model, mesh, "head", 1.0)


@functools.lru_cache
def _look(model: Siamese | Classifier, mesh: Mesh):
    return make_look(model, mesh)


def _check_pretrain(config: ConfigDict, name: str) -> None:
    if config.mode != "pretrain":
        raise UserError(f"{name} takes a config of mode 'pretrain', not {config.mode!r}: see python -m cvsa_jax.main")


def _checked(images: Images) -> Images:
    if not isinstance(images, np.ndarray | list | tuple):
        raise UserError(f"images are an array (n, h, w, 3) or a list of arrays, not {type(images).__name__}")
    for k, image in enumerate(images):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            told = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
            raise UserError(f"images are arrays of (h, w, 3) uint8, and number {k} is {told}: np.asarray(image) in RGB")
    if len(images) == 0:
        raise UserError("there are no images")
    return images
