"""What the detectors with a network of ours share: batches over this machine's devices."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from cvsa_jax.runtime.distributed import replicated, to_mesh
from cvsa_jax.saliency.detector import Detection, Detector, squeezed
from cvsa_jax.training import photometric

_BATCH = 32


def network_detector(name: str, supervision: str, facts: dict, predict: Callable, size: int) -> Detector:
    """A detector of images squeezed to `size` px.

    Args:
        facts: its settings.
        predict: (_BATCH, size, size, 3) uint8 -> maps (_BATCH, h, w) in [0, 1] and confidences (_BATCH,).
    """

    def detect(images: list[np.ndarray]) -> list[Detection]:
        padding = [np.zeros_like(images[0])] * (_BATCH - len(images))
        maps, confidences = predict(np.stack(images + padding))
        return [Detection(maps[k], float(confidences[k])) for k in range(len(images))]

    return Detector(name, supervision, facts, lambda i, image: squeezed(image, size), detect, _BATCH)


def on_devices(function: Callable, mesh: Mesh) -> Callable:
    """`function` (variables, images) jitted, with uint8 images split over this machine's devices and the results as
    NumPy arrays. The function gets normalised images, of which the last that do not fill the devices are padding."""
    compiled = jax.jit(lambda variables, x: function(variables, photometric.normalize(photometric.to_float(x))))

    def run(variables, images: np.ndarray) -> list[np.ndarray]:
        rows = len(images)
        images = np.pad(images, [(0, -rows % mesh.size), (0, 0), (0, 0), (0, 0)])
        placed = to_mesh({"images": images}, mesh)["images"]
        return [np.asarray(output)[:rows] for output in compiled(jax.device_put(variables, replicated(mesh)), placed)]

    return run
