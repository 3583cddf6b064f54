"""DeepMind's BYOL (google-deepmind/deepmind-research, `byol`): the names of its Haiku ResNet as torchvision's.

Its networks pad as TensorFlow's SAME does, asymmetrically where the stride is 2.
"""

import re
from typing import Any

import numpy as np

from cvsa_jax.weights.nets import Net
from cvsa_jax.weights.tensors import Tensor
from cvsa_jax.weights.unpickler import nodes

_PLACE = re.compile(r"(?:block_group_(\d)/~/block_(\d+)/~/)?(\w+?)(?:/~/(mean|var)_ema)?")
_PARTS = {"initial_conv": "conv1", "initial_batchnorm": "bn1"}
_PARTS |= {"shortcut_conv": "downsample.0", "shortcut_batchnorm": "downsample.1"}
_PARTS |= {
    f"{theirs}_{k}": f"{ours}{k + 1}" for theirs, ours in (("conv", "conv"), ("batchnorm", "bn")) for k in range(3)
}
_LEAVES = {"w": "weight", "scale": "weight", "offset": "bias"}


def net_of(tree: Any) -> Net | None:
    """The online network of a checkpoint of DeepMind's, or None where it is none."""
    groups = [
        group
        for group in nodes(tree)
        if isinstance(group, dict) and any(re.search(r"res_net\d+.*initial_", str(key)) for key in group)
    ]
    params = next((group for group in groups if any(str(key).endswith("initial_conv") for key in group)), None)
    state = next((group for group in groups if any(str(key).endswith("mean_ema") for key in group)), None)
    if params is None or state is None:
        return None
    tensors, left_out = {}, {}
    for name, leaves in [*params.items(), *state.items()]:
        prefix, inside, place = name.partition("/~/")
        match = _PLACE.fullmatch(place) if inside and prefix.startswith("res_net") else None
        if match is None or match[3] not in _PARTS:
            left_out[prefix.split("/")[0]] = left_out.get(prefix.split("/")[0], 0) + len(leaves)
            continue
        layer = f"layer{int(match[1]) + 1}.{match[2]}." if match[1] else ""
        part = layer + _PARTS[match[3]]
        if match[4]:
            tensors[f"{part}.running_{match[4]}"] = _flat(leaves["average"])
        else:
            tensors |= {f"{part}.{_LEAVES[leaf]}": _theirs(leaf, value) for leaf, value in leaves.items()}
    return Net(("experiment_state",), "online", tensors, left_out, padding="same")


def _theirs(leaf: str, value: Tensor) -> Tensor:
    """Kernels are (h, w, in, out) there, (out, in, h, w) in torchvision."""
    if leaf != "w":
        return _flat(value)
    h, w, inputs, out = value.shape
    return Tensor((out, inputs, h, w), value.dtype, lambda: value.read().transpose(3, 2, 0, 1))


def _flat(value: Tensor) -> Tensor:
    return Tensor((int(np.prod(value.shape, dtype=object)),), value.dtype, lambda: np.ravel(value.read()))
