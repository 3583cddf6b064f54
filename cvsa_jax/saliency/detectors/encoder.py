"""Saliency without any annotation: where the backbone of a pre-training run is active."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cvsa_jax import settings
from cvsa_jax.models.activation import READOUTS
from cvsa_jax.runtime import checks
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detector import Detector, scaled
from cvsa_jax.saliency.detectors.network import network_detector, on_devices
from cvsa_jax.training import checkpoint
from cvsa_jax.training.resume import read_config
from cvsa_jax.training.state import empty_network, tree_hash

ENCODER_MAP = "component"
ENCODER_ZOOM = 2  # of the images, against the size at which the run is evaluated, for a finer feature map


def encoder(run: Path, kind: str) -> Detector:
    """Activation of the backbone of a pre-training run; UserError where `run` is none.

    Args:
        kind: `mean`, the mean over the channels of the last feature map; or `component`, the map's projection on its
            own first principal component, with the sign that makes the border darker than the rest. Both are scaled
            to the image's own range. The confidence is, for `mean`, (max − min) / max, and for `component` the share
            of the variance that the component explains.
    """
    checks.choice("--encoder_map", kind, READOUTS)
    config = read_config(str(run))
    if config.mode != "pretrain":
        raise UserError(f"--run={run} is a run of mode {config.mode!r}; --detector=encoder needs a pre-training run")
    model, mesh = settings.model(config.model), make_mesh(jax.local_devices())
    network, step = checkpoint.restore_online(run, empty_network(model), mesh)
    size = ENCODER_ZOOM * settings.evaluation(config.eval, config).size
    alone = model.clone(axis_name=None)

    def activation(variables: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        feature_map, _ = alone.apply(variables, images, method="features")
        return READOUTS[kind](feature_map.astype(jnp.float32))

    activate = on_devices(activation, mesh)

    def predict(images: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        maps, confidences = activate(network.variables, images)
        return [scaled(saliency) for saliency in maps], confidences

    facts = {"map": kind, "size": size, "step": step, "weights": tree_hash(network)}
    return network_detector("encoder", "unsupervised", facts, predict, size)
