"""Detectors that run a network of ours over batches: the trained U-Net, and the backbone of a pre-training run."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cvsa_jax import settings
from cvsa_jax.models.activation import READOUTS
from cvsa_jax.models.unet import UNet
from cvsa_jax.runtime.distributed import make_mesh, replicated, to_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detector import Detection, Detector, scaled, squeezed
from cvsa_jax.training import checkpoint, photometric
from cvsa_jax.training.state import empty_network

UNET_MODE = "saliency_unet"  # config.mode of the runs that `unet` takes
ENCODER_MAP = "component"
ENCODER_ZOOM = 2  # of the images, against the size at which the run is evaluated, for a finer feature map
_BATCH = 32


def unet(run: Path) -> Detector:
    """The U-Net of a finished run of configs/saliency_unet.py; UserError where `run` is none."""
    config = settings.read_config(str(run))
    if config.mode != UNET_MODE:
        raise UserError(f"--run={run} is a run of mode {config.mode!r}; --detector=unet needs one of {UNET_MODE!r}")
    model, mesh = settings.unet(config.model), make_mesh(jax.local_devices())
    params, step = checkpoint.restore_item(run, "params", empty_params(model), mesh)
    facts = {"size": config.size, "step": step, "weights": weights_hash(params)}
    as_it_is = lambda saliency: saliency  # noqa: E731
    return _detector("unet", "supervised", facts, predictor(model, mesh), params, config.size, as_it_is)


def encoder(run: Path, kind: str) -> Detector:
    """Activation of the backbone of a pre-training run, without any annotation; UserError where `run` is none.

    Args:
        kind: `mean`, the mean over the channels of the last feature map; or `component`, the map's projection on its
            own first principal component, with the sign that makes the border darker than the rest. Both are scaled
            to the image's own range. The confidence is, for `mean`, (max − min) / max, and for `component` the share
            of the variance that the component explains.
    """
    if kind not in READOUTS:
        raise UserError(f"--encoder_map={kind!r} is unknown; take one of {', '.join(READOUTS)}")
    config = settings.read_config(str(run))
    if config.mode != "pretrain":
        raise UserError(f"--run={run} is a run of mode {config.mode!r}; --detector=encoder needs a pre-training run")
    model, mesh = settings.model(config.model), make_mesh(jax.local_devices())
    network, step = checkpoint.restore_online(run, empty_network(model), mesh)
    size = ENCODER_ZOOM * settings.eval_sizes(config.eval, config)[0]
    alone = model.clone(axis_name=None)

    def activation(variables: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        feature_map, _ = alone.apply(variables, _normalized(images), method="features")
        return READOUTS[kind](feature_map.astype(jnp.float32))

    facts = {"map": kind, "size": size, "step": step, "weights": weights_hash(network)}
    predict = _on_devices(activation, mesh)
    return _detector("encoder", "unsupervised", facts, predict, network.variables, size, scaled)


def empty_params(model: UNet) -> dict:
    """Shapes and types of a U-Net's parameters, without their values."""
    images = jnp.zeros((1, model.stride, model.stride, 3))
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def predictor(model: UNet, mesh: jax.sharding.Mesh) -> Callable:
    """(params, images (B, S, S, 3) uint8) -> probabilities (B, S/2, S/2) and the maximum of each (B,)."""

    def predict(params: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        probability = jax.nn.sigmoid(model.apply({"params": params}, _normalized(images))[0])
        return probability, probability.max((1, 2))

    return _on_devices(predict, mesh)


def weights_hash(tree) -> str:
    """Hash of all values of a tree of arrays."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _detector(name, supervision, facts, predict, variables, size: int, finish: Callable) -> Detector:
    def detect(images: list[np.ndarray]) -> list[Detection]:
        padding = [np.zeros_like(images[0])] * (_BATCH - len(images))
        saliency, confidence = predict(variables, np.stack(images + padding))
        rows = zip(saliency, confidence, strict=True)
        return [Detection(finish(m), float(c)) for (m, c), _ in zip(rows, images, strict=False)]

    return Detector(name, supervision, facts, lambda i, image: squeezed(image, size), detect, _BATCH)


def _on_devices(function: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """`function` (variables, images) jitted, with the images split over this machine's devices and the results as
    NumPy arrays. The last rows that do not fill the devices are padding."""
    compiled = jax.jit(function)

    def run(variables, images: np.ndarray) -> list[np.ndarray]:
        rows = len(images)
        images = np.pad(images, [(0, -rows % mesh.size), (0, 0), (0, 0), (0, 0)])
        placed = to_mesh({"images": images}, mesh)["images"]
        return [np.asarray(output)[:rows] for output in compiled(jax.device_put(variables, replicated(mesh)), placed)]

    return run


def _normalized(images: jax.Array) -> jax.Array:
    return photometric.normalize(photometric.to_float(images))
