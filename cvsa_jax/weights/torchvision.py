"""A ResNet under torchvision's names as our backbone's parameters and batch statistics, and back.

The layouts differ in the convolutions alone: (out, in, h, w) there, (h, w, in, out) here.
"""

import re

import numpy as np
from flax.traverse_util import flatten_dict

_NORM = {"weight": ("params", "scale"), "bias": ("params", "bias"), "running_mean": ("batch_stats", "mean")}
_NORM |= {"running_var": ("batch_stats", "var")}
_PARTS = {"downsample.0": "downsample_conv", "downsample.1": "downsample_bn"}
_THEIRS = {ours: theirs for theirs, ours in _PARTS.items()}


def to_backbone(tensors: dict[str, np.ndarray]) -> dict[str, dict]:
    """`params` and `batch_stats` trees, float32, of tensors under torchvision's names; others, such as a classifier's,
    are not taken."""
    trees: dict[str, dict] = {"params": {}, "batch_stats": {}}
    for name, tensor in tensors.items():
        place = _place(name)
        if place is not None:
            collection, module, leaf = place
            node = trees[collection]
            for part in module:
                node = node.setdefault(part, {})
            array = np.asarray(tensor, np.float32)
            node[leaf] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return trees


def from_backbone(params: dict, batch_stats: dict) -> dict[str, np.ndarray]:
    """Tensors under torchvision's names, float32, of the backbone's trees; the inverse of `to_backbone`."""
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    tensors = {}
    for path, leaf in [*flatten_dict(params).items(), *flatten_dict(batch_stats).items()]:
        *module, kind = path
        if len(module) == 1:
            name = {"stem_conv": "conv1", "stem_bn": "bn1"}[module[0]]
        else:
            stage, block = re.fullmatch(r"stage(\d+)_block(\d+)", module[0]).groups()
            name = f"layer{stage}.{int(block) - 1}.{_THEIRS.get(module[1], module[1])}"
        array = np.asarray(leaf, np.float32)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        tensors[f"{name}.{leaves[kind]}"] = np.ascontiguousarray(array)
    return tensors


def _place(name: str) -> tuple[str, tuple[str, ...], str] | None:
    """Collection, module path and leaf of a tensor of the backbone; None for others, such as the classifier."""
    match = re.fullmatch(r"(?:layer(\d+)\.(\d+)\.)?(conv\d|bn\d|downsample\.[01])\.(\w+)", name)
    if not match:
        return None
    stage, block, part, kind = match.groups()
    if stage is None:
        module = ({"conv1": "stem_conv", "bn1": "stem_bn"}.get(part, part),)
    else:
        module = (f"stage{stage}_block{int(block) + 1}", _PARTS.get(part, part))
    if module[-1].endswith("conv") or module[-1].startswith("conv"):
        return ("params", module, "kernel") if kind == "weight" else None
    return (_NORM[kind][0], module, _NORM[kind][1]) if kind in _NORM else None
