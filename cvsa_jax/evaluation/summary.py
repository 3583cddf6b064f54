"""The figures of one network on one data set, as every command reports them."""

import numpy as np
from jax.sharding import Mesh

from cvsa_jax.data.sources import Source
from cvsa_jax.errors import UserError
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.boxes import box_score, true_box
from cvsa_jax.evaluation.features import extract
from cvsa_jax.evaluation.knn import knn_predict
from cvsa_jax.evaluation.linear import linear_probe
from cvsa_jax.evaluation.retrieval import retrieval
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.state import Network
from cvsa_jax.steps import make_encoder


class Evaluator:
    """Evaluates networks of one model on one source; `size`, `resize` in px and `batch_size` as in `extract`."""

    def __init__(self, model: Siamese, mesh: Mesh, source: Source, *, size: int, resize: int, batch_size: int):
        self.encode = {maps: make_encoder(model, mesh, maps=maps) for maps in (False, True)}
        self.mesh, self.source = mesh, source
        self.size, self.resize, self.batch_size = size, resize, batch_size

    def _extract(self, network: Network, indices: np.ndarray, resize: int, maps: bool):
        return extract(
            self.encode[maps],
            network,
            self.mesh,
            self.source,
            indices,
            size=self.size,
            resize=resize,
            batch_size=self.batch_size,
        )

    def maps(self, network: Network, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> (k, h, w) maps of whole images, each squeezed to a square: `attention`, and of the backbone alone
        `mean` and `component`."""
        encoded = self._extract(network, indices, resize=0, maps=True)
        attention = localization.attention_maps(encoded.queries, encoded.keys)
        return {"attention": attention, "mean": encoded.mean, "component": encoded.component}

    def masks(self, indices: np.ndarray) -> np.ndarray:
        """(k, size, size) bool ground-truth masks of the same squares."""
        return np.stack([localization.square_mask(self.source.mask(int(i)), self.size) for i in indices])

    def localization(self, maps: np.ndarray, indices: np.ndarray, masks: np.ndarray | None) -> dict[str, float]:
        """Figures of maps (k, h, w) against the images' masks, as `masks` gives them, and boxes (those around the
        masks where the source has none); {} where there is neither."""
        figures = {} if masks is None else localization.score(maps, masks)
        truths = [None] * len(indices) if masks is None else masks
        boxes = [true_box(self.source, int(i), mask) for i, mask in zip(indices, truths, strict=True)]
        known = [k for k, box in enumerate(boxes) if box is not None]
        if not known:
            return figures
        scaled = np.stack([localization.upsample(maps[k], self.size) for k in known])
        return figures | box_score(scaled, np.stack([boxes[k] for k in known]))

    def recognition(
        self, network: Network, train: np.ndarray, test: np.ndarray, *, knn: int, probe: dict | None = None
    ) -> dict[str, float]:
        """kNN top-1, and with `probe` (the keywords of `linear_probe`) linear top-1, top-5 and mean per class, and
        retrieval, on the test images."""
        labels = self.source.labels
        if labels is None:
            raise UserError(f"{self.source.name} has no labels, which the probe and kNN need")
        features = self._extract(network, np.concatenate([train, test]), self.resize, maps=False).pooled
        x, x_test, y, y_test = features[: len(train)], features[len(train) :], labels[train], labels[test]
        figures = {"knn_top1": float((knn_predict(x, y, x_test, knn) == y_test).mean())}
        if probe is not None:
            result = linear_probe(x, y, x_test, y_test, classes=len(self.source.classes), **probe)
            figures |= {"linear_top1": result.top1, "linear_top5": result.top5, "linear_mean_class": result.mean_class}
            figures |= {"learning_rate": result.learning_rate} | retrieval(x_test, y_test)
        return figures


def chance(source: Source, test: np.ndarray, masks: np.ndarray | None) -> dict[str, float]:
    """What guessing gives: the most frequent class, and a random point and the whole image as localisation."""
    figures = {}
    if source.labels is not None:
        majority = float(np.bincount(source.labels[test]).max() / len(test))
        figures |= {"linear_top1": majority, "knn_top1": majority}
    if masks is not None:
        share = float(masks.mean())
        figures |= dict.fromkeys(("pointing_game", "mask_iou", "mask_iou_best", "pixel_ap"), share)
    return figures


def center_prior(masks: np.ndarray) -> dict[str, float]:
    """Localisation figures of a Gaussian in the middle of every image, the row that any map has to beat."""
    return localization.score(localization.center_prior_maps(len(masks), masks.shape[-1]), masks)
