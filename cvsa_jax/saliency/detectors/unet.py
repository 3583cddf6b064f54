"""The detector that we train ourselves on images with masks: a U-Net, from a run of configs/saliency_unet.py."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cvsa_jax import settings
from cvsa_jax.models.unet import UNet
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detector import Detector
from cvsa_jax.saliency.detectors.network import network_detector, on_devices
from cvsa_jax.training import checkpoint
from cvsa_jax.training.resume import read_config
from cvsa_jax.training.state import tree_hash

_MODE = "saliency_unet"


def unet(run: Path) -> Detector:
    """The U-Net of a run; UserError where `run` is none."""
    config = read_config(str(run))
    if config.mode != _MODE:
        raise UserError(f"--run={run} is a run of mode {config.mode!r}; --detector=unet needs one of {_MODE!r}")
    model, mesh = settings.unet(config.model), make_mesh(jax.local_devices())
    params, step = checkpoint.restore_item(run, "params", empty_params(model), mesh)
    facts = {"size": config.size, "step": step, "weights": tree_hash(params)}
    predict = functools.partial(predictor(model, mesh), params)
    return network_detector("unet", "supervised", facts, predict, config.size)


def predictor(model: UNet, mesh: Mesh) -> Callable:
    """(params, images (B, S, S, 3) uint8) -> probabilities (B, S/2, S/2) and the maximum of each (B,)."""

    def predict(params: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        probability = jax.nn.sigmoid(model.apply({"params": params}, images)[0])
        return probability, probability.max((1, 2))

    return on_devices(predict, mesh)


def empty_params(model: UNet) -> dict:
    """Shapes and types of a U-Net's parameters, without their values."""
    images = jnp.zeros((1, model.stride, model.stride, 3))
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]
