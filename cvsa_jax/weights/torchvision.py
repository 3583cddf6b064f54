"""Weights of a ResNet under torchvision's names, as our backbone's parameters and batch statistics.

Most published self-supervised and supervised ResNets use these names, some behind a prefix such as
`module.encoder_q.`. The layouts differ in the convolutions alone: (out, in, h, w) there, (h, w, in, out) here.
"""

import re
from pathlib import Path

import numpy as np

from cvsa_jax.runtime.errors import UserError, some

KINDS = (".safetensors", ".npz", ".pth", ".pt")
# Networks that follow another one; theirs are not the weights that were trained.
_FOLLOWERS = ("encoder_k", "target", "momentum", "teacher", "ema")
_NORM = {"weight": ("params", "scale"), "bias": ("params", "bias"), "running_mean": ("batch_stats", "mean")}
_NORM |= {"running_var": ("batch_stats", "var")}
_PARTS = {"downsample.0": "downsample_conv", "downsample.1": "downsample_bn"}


def read(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of a weights file; UserError where it cannot be read."""
    if path.suffix not in KINDS:
        raise UserError(f"{path}: weights are read from {', '.join(KINDS)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return dict(arrays)
        return _read_pickle(path)
    except ImportError as error:
        raise UserError(f"{path} needs {error.name}: pip install {error.name}") from None
    except UserError:
        raise
    except Exception as error:  # each library has its own
        raise UserError(f"cannot read the weights in {path}: {str(error).splitlines()[0][:160]}") from None


def to_backbone(tensors: dict[str, np.ndarray], path: Path) -> dict[str, dict]:
    """`params` and `batch_stats` trees of the backbone; `path` is for the errors.

    Raises:
        UserError: no ResNet under torchvision's names is there, or several between which nothing decides.
    """
    prefix = _prefix(tensors, path)
    trees: dict[str, dict] = {"params": {}, "batch_stats": {}}
    for name, tensor in tensors.items():
        place = _place(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if place is not None:
            collection, module, leaf = place
            node = trees[collection]
            for part in module:
                node = node.setdefault(part, {})
            array = np.asarray(tensor, np.float32)
            node[leaf] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return trees


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


def _prefix(tensors: dict[str, np.ndarray], path: Path) -> str:
    ends = "layer1.0.conv1.weight"
    prefixes = [name.removesuffix(ends) for name in tensors if name.endswith(ends)]
    leading = [p for p in prefixes if not any(follower in p for follower in _FOLLOWERS)] or prefixes
    if len(leading) == 1:
        return leading[0]
    if leading:
        raise UserError(f"{path} holds several ResNets ({', '.join(leading)}): keep the one that is meant")
    raise UserError(
        f"{path} holds no ResNet under torchvision's names (layer1.0.conv1.weight …): it has {some(tensors)}"
    )


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    import torch

    tensors = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        tensors = tensors[key] if isinstance(tensors.get(key), dict) else tensors
    return {name: tensor.float().numpy() for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
