"""The figures of one network on one data set, as every command reports them."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh

from cvsa_jax.data import background
from cvsa_jax.data.saliency_maps import Maps
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.augmented import fit_crops
from cvsa_jax.evaluation.encode import (
    make_attended_encoder,
    make_cell_encoder,
    make_class_activation,
    make_encoder,
    make_look,
)
from cvsa_jax.evaluation.features import encoded_batches, evenly, extract
from cvsa_jax.evaluation.knn import leave_one_out
from cvsa_jax.evaluation.localizer import Localizer
from cvsa_jax.evaluation.look import NO_GUIDE, Guide, LookHead, fit, informative
from cvsa_jax.evaluation.probe import Standardization, logits
from cvsa_jax.evaluation.protocol import EvalSpec, Knn, Probe
from cvsa_jax.evaluation.recognition import Labelled, Recognition, recognized
from cvsa_jax.models.classifier import Classifier
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.distributed import replicated
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training.state import Network

_KEY_IMAGES = 1024  # from which the foreground's key is averaged


class Evaluator(Localizer):
    """Evaluates networks of one model on one source, with images and pooling as `spec` says; `guide`: what weights the
    cells where the network does not say that itself."""

    def __init__(
        self, model: Siamese | Classifier, mesh: Mesh, source: Source, spec: EvalSpec, guide: Guide = NO_GUIDE
    ):
        self.encode = {maps: make_encoder(model, mesh, maps=maps) for maps in (False, True)}
        self.encode_cells = make_cell_encoder(model, mesh)
        how = (spec.reading, spec.temperature) if spec.pooling == "attention" else (spec.pooling, 1.0)
        self.attend = None if spec.pooling == "average" else make_attended_encoder(model, mesh, *how)
        self.activate = make_class_activation(model, mesh, *how)
        self.look = make_look(model, mesh)
        super().__init__(source, spec.size)
        self.mesh, self.spec, self.guide = mesh, spec, guide

    def key(self, network: Network, images: np.ndarray) -> np.ndarray | None:
        """The vector that pooling uses: for attention the foreground of the train images, (D,); for a head its
        `vector`, fitted here to the maps of the train images if there is none; for saliency the maps' power; None for
        pooling by average. No label takes part. UserError where the images are fewer than two."""
        if self.attend is None:
            return None
        if self.spec.pooling == "head":
            return (self.guide.head or self.fit_head(network, images)).vector
        if self.spec.pooling == "saliency":
            return np.float32([self.guide.power])
        if self.spec.reading != "attention":
            return np.zeros(1, np.float32)
        if len(images) < 2:
            raise UserError("pooling by attention needs two images or more: each is read against the others")
        encoded = self._extract(self.encode[True], network, evenly(images, _KEY_IMAGES), self.spec.resize)
        return localization.foreground_key(encoded.queries, encoded.keys).astype(np.float32)

    def fit_head(self, network: Network, images: np.ndarray) -> LookHead:
        """The look head of the guide's maps of these images; UserError where fewer than two maps show anything."""
        images = informative(self.guide.maps, images)
        encode = functools.partial(self.encode_cells, network)
        how = {"size": self.size, "resize": 0, "batch_size": self.spec.batch_size}
        with self.timed("look_head"):
            batches = encoded_batches(encode, self.mesh, self.source, images, **how)
            return fit(batches, self.guide.maps, images)

    def features(
        self, network: Network, indices: np.ndarray, key: np.ndarray | None = None, source: Source | None = None
    ) -> np.ndarray:
        """Pooled features (k, C) of the centre crops, with the `key` of the train images. The images are those of
        `source`, by default the evaluator's own."""
        encode, argument = self._pooling(network, key)
        return self._extract(encode, argument, indices, self.spec.resize, source, self._mapped).pooled

    @property
    def _mapped(self) -> Maps | None:
        """The maps that an encoder of `pooling` takes beside the images."""
        return self.guide.maps if self.spec.pooling == "saliency" else None

    def _pooling(self, network: Network, key: np.ndarray | None):
        """The encoder of `features`, and its first argument."""
        if self.attend is None:
            return self.encode[False], network
        return self.attend, (network, jax.device_put(key, replicated(self.mesh)))

    def maps(self, network: Network, indices: np.ndarray, key: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Name -> (k, h, w) maps of whole images, each squeezed to a square: `attention`, where the network has the
        heads for it, `predicted_mask` of the control that predicts one, of the backbone alone `mean` and `component`,
        and of pooling by a look head, with its `key`, `look`."""
        maps = self._own_maps(network, indices)
        if self.spec.pooling == "head" and key is not None:
            argument = (network, jax.device_put(key, replicated(self.mesh)))
            maps |= {"look": self._extract(self.look, argument, indices, 0)}
        return maps

    def _own_maps(self, network: Network, indices: np.ndarray) -> dict[str, np.ndarray]:
        encoded = self._extract(self.encode[True], network, indices, 0)
        if encoded.queries is None:
            return {"mean": encoded.mean, "component": encoded.component}
        attention = encoded.mirrored
        if self.spec.attention == "others":
            attention = localization.attention_maps(encoded.queries, encoded.keys)
        maps = {"attention": attention, "mean": encoded.mean, "component": encoded.component}
        return maps | ({"predicted_mask": encoded.predicted_mask} if self.spec.reading == "mask" else {})

    @property
    def shown(self) -> str:
        """Which of the maps says where the network looks: the one that pools its features, or what its losses
        trained."""
        if self.spec.pooling == "head":
            return "look"
        return "predicted_mask" if self.spec.reading == "mask" else self.spec.reading

    def class_maps(
        self, network: Network, weights: np.ndarray, indices: np.ndarray, key: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Name -> (k, h, w) maps of the same squares for the class that a linear classifier on the pooled features,
        (C + 1, classes) with biases in the last row, predicts: `cam` and `grad_cam`; `key` as in `features`."""
        placed = (weights.astype(np.float32), np.zeros(1, np.float32) if key is None else key)
        argument = (network, *jax.device_put(placed, replicated(self.mesh)))
        activation = self._extract(self.activate, argument, indices, 0, mapped=self._mapped)
        return {"cam": activation.cam, "grad_cam": activation.grad_cam}

    def recognition(
        self,
        network: Network,
        train: np.ndarray,
        test: np.ndarray,
        *,
        knn: Knn,
        probe: Probe | None = None,
        key: np.ndarray | None = None,
    ) -> Recognition:
        """kNN and retrieval, and with `probe` the linear probe, on the test images; `key`: of the
        train images, where it is known."""
        labels = labels_of(self.source)
        key = self.key(network, train) if key is None else key
        features = self.features(network, np.concatenate([train, test]), key)
        fit = None
        if probe is not None and probe.crop_area is not None:
            fit = functools.partial(self._fit_crops, network, key, train)
        halves = Labelled(features[: len(train)], labels[train]), Labelled(features[len(train) :], labels[test])
        found = recognized(*halves, len(self.source.classes), knn=knn, probe=probe, timed=self.timed, fit=fit)
        return found._replace(key=key)

    def neighbors(self, network: Network, indices: np.ndarray, knn: Knn) -> dict[str, float]:
        """`knn_top1` of the images among themselves, leave-one-out, with the best k: to watch a training."""
        features = self.features(network, indices, self.key(network, indices))
        labels = labels_of(self.source)[indices]
        scores = leave_one_out(features, labels, knn.ks, knn.temperature)
        return {"knn_top1": float(scores.max())}

    def background(self, network: Network, found: Recognition, test: np.ndarray, seed: int) -> dict[str, float]:
        """Top-1 of the probe that was found, on the test images whose mask shows an object, {} where none does:
        `as_it_is_top1`; with another background (see `data.background`), of the image's own class and of another,
        `same_background_top1` and `other_background_top1`, and `background_gap`, their difference; without the object
        `background_only_top1`."""
        known = self.source.has_mask(test)
        known[known] = [(self.source.mask(int(i)) > 127).any() for i in test[known]]
        test, labels = test[known], labels_of(self.source)[test[known]]
        if not len(test):
            return {}
        changed = {
            "same_background": background.replaced(self.source, test, seed, same_class=True),
            "other_background": background.replaced(self.source, test, seed, same_class=False),
            "background_only": background.removed(self.source),
        }
        features = {"as_it_is": found.features[known]}
        features |= {name: self.features(network, test, found.key, source) for name, source in changed.items()}
        predicted = {name: logits(found.weights, x).argmax(1) for name, x in features.items()}
        figures = {f"{name}_top1": float((classes == labels).mean()) for name, classes in predicted.items()}
        gap = figures["same_background_top1"] - figures["other_background_top1"]
        return figures | {"background_gap": gap}

    def _extract(
        self,
        encode,
        network,
        indices: np.ndarray,
        resize: int,
        source: Source | None = None,
        mapped: Maps | None = None,
    ):
        encode, source = functools.partial(encode, network), source or self.source
        how = {"size": self.size, "resize": resize, "batch_size": self.spec.batch_size, "maps": mapped}
        with self.timed("network"):
            return extract(encode, self.mesh, source, indices, **how)

    def _fit_crops(self, network: Network, key, train: np.ndarray, x: np.ndarray, rows, probe: Probe, seed: int):
        encode = functools.partial(*self._pooling(network, key))
        scale = Standardization.of(x[rows])
        return fit_crops(encode, self.mesh, self.source, train[rows], scale, probe, size=self.size, seed=seed)


def chance(source: Source, test: np.ndarray, masks: np.ndarray | None) -> dict[str, float]:
    """What guessing gives: the most frequent class, and a random point and the whole image as localisation."""
    figures = {}
    if source.labels is not None:
        majority = float(np.bincount(source.labels[test]).max() / len(test))
        figures |= {"linear_top1": majority, "knn_top1": majority}
    if masks is not None and (known := source.has_mask(test)).any():
        figures["pixel_ap"] = float(masks[known].mean())
        # As `localization.score`: of images that show an object.
        if (shown := masks[known][masks[known].any((1, 2))]).size:
            figures |= dict.fromkeys(("pointing_game", "mask_iou", "mask_iou_best"), float(shown.mean()))
    return figures


def center_prior(source: Source, test: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Localisation figures of a Gaussian in the middle of every image, the row that any map has to beat."""
    masks = masks[source.has_mask(test)]
    if not len(masks):
        return {}
    return localization.score(localization.center_prior_maps(len(masks), masks.shape[-1]), masks)


def labels_of(source: Source) -> np.ndarray:
    """Labels of a source; UserError where it has none."""
    if source.labels is None:
        raise UserError(f"{source.name} has no labels, which the probe and kNN need")
    return source.labels
