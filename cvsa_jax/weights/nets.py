"""Which network of a file of weights is meant, and its tensors under torchvision's names.

The files of self-supervised training hold several networks (online and target, query and key, student and teacher)
below names of their own, in dictionaries of any depth. A network here is wherever the first block of a ResNet is.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.weights.tensors import Tensor
from cvsa_jax.weights.unpickler import Record

MAX_BYTES = 2**32  # of the tensors of one backbone: a ResNet-50 four times as wide has 1.5 GB
_MAX_LEVELS, _MAX_DEPTH = 100_000, 32

# Words in the name of a network that follows another one; what was trained is the other.
_FOLLOWERS = {"k", "key", "momentum", "target", "teacher", "ema", "slow", "follower"}
_LEAF = re.compile(
    r".*(conv\d|downsample\.0)\.weight|.*(bn\d|downsample\.1)\.(weight|bias|running_\w+|num_batches_tracked)"
)
_PART = re.compile(r"(?:layer\d+\.\d+\.)?(?:conv\d|bn\d|downsample\.[01])\.\w+")


class Naming(NamedTuple):
    """`first`: what the name of the first block's first kernel ends with; `translate`: name in the network ->
    torchvision's, or None where it is no part of the backbone; `inside`: what the names of its blocks begin with."""

    first: str
    translate: Callable[[str], str | None]
    inside: str


def _plain(name: str) -> str | None:
    return name if _PART.fullmatch(name) else None


def _numbered(name: str) -> str | None:
    """`nn.Sequential(*resnet.children())`: 0 is conv1, 1 is bn1, 4 to 7 are the layers."""
    number, _, rest = name.partition(".")
    known = {"0": "conv1", "1": "bn1"} | {str(k + 3): f"layer{k}" for k in (1, 2, 3, 4)}
    return _plain(f"{known[number]}.{rest}") if number in known else None


def _transformers(name: str) -> str | None:
    """`ResNetModel` of Hugging Face's transformers (models/resnet/modeling_resnet.py)."""
    kind = {"convolution": "conv", "normalization": "bn"}
    if match := re.fullmatch(r"embedder\.embedder\.(\w+)\.(\w+)", name):
        return _plain(f"{kind.get(match[1], '')}1.{match[2]}")
    match = re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(layer\.(\d+)|shortcut)\.(\w+)\.(\w+)", name)
    if match is None or match[5] not in kind:
        return None
    part = f"downsample.{int(match[5] == 'normalization')}"
    if match[4] is not None:
        part = f"{kind[match[5]]}{int(match[4]) + 1}"
    return _plain(f"layer{int(match[1]) + 1}.{match[2]}.{part}.{match[6]}")


NAMINGS = (
    Naming("layer1.0.conv1.weight", _plain, r"layer\d"),
    Naming("4.0.conv1.weight", _numbered, r"[4-7]\.\d"),
    Naming("encoder.stages.0.layers.0.layer.0.convolution.weight", _transformers, r"encoder\.stages"),
)


@dataclasses.dataclass(frozen=True)
class Net:
    """A network in a file: the keys of the dictionaries around it, what its tensors' names begin with, its tensors
    under torchvision's names, how many of each other part lie beside it, how it pads, where that is known, and
    what is in its blocks that a ResNet has not."""

    wrapper: tuple[str, ...]
    prefix: str
    tensors: dict[str, Tensor]
    left_out: dict[str, int]
    padding: str | None = None
    odd: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """As `--net` takes it."""
        return "/".join([*self.wrapper, self.prefix]) or "top level"

    @property
    def words(self) -> set[str]:
        return set(re.findall(r"[a-z]+|\d+", f"{' '.join(self.wrapper)} {self.prefix}".lower()))


def levels(tree: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dictionary that holds tensors, with the keys around it; each object once."""
    waiting, seen = collections.deque([((), tree)]), set()
    while waiting and len(seen) < _MAX_LEVELS:
        path, node = waiting.popleft()
        if id(node) in seen or len(path) > _MAX_DEPTH:
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            tensors = {key: value for key, value in node.items() if isinstance(key, str) and isinstance(value, Tensor)}
            if tensors:
                yield path, tensors
            named = [(str(key), value) for key, value in node.items()]
        elif isinstance(node, list | tuple):
            named = [(str(k), value) for k, value in enumerate(node)]
        elif isinstance(node, Record):  # a named tuple has its values as arguments
            named = [(str(k), value) for k, value in enumerate(node.args)]
        else:
            continue
        waiting.extend(((*path, key), value) for key, value in named if isinstance(value, dict | list | tuple | Record))


def nets_of(tree: Any) -> list[Net]:
    """Every ResNet in a tree of dictionaries."""
    found = []
    for wrapper, tensors in levels(tree):
        for naming in NAMINGS:
            prefixes = [name.removesuffix(naming.first) for name in tensors if name.endswith(naming.first)]
            found += [_net(wrapper, p, tensors, naming) for p in prefixes if p == "" or p.endswith(".")]
    return found


def _net(wrapper: tuple[str, ...], prefix: str, tensors: dict[str, Tensor], naming: Naming) -> Net:
    parts, others, odd = {}, collections.Counter(), []
    for name, tensor in tensors.items():
        rest = name.removeprefix(prefix)
        part = naming.translate(rest) if name.startswith(prefix) else None
        if part is not None and _LEAF.fullmatch(part):
            parts[part] = tensor
        elif part is not None or (name.startswith(prefix) and re.match(naming.inside, rest)):
            odd.append(name)
        else:
            depth = prefix.count(".") + 1 if name.startswith(prefix) else 2
            others[".".join(name.split(".")[:depth])] += 1
    return Net(wrapper, prefix, parts, dict(others), odd=tuple(odd))


_TIMM_AVERAGES = "state_dict_ema"  # huggingface/pytorch-image-models, timm/utils/checkpoint_saver.py


def chosen(nets: list[Net], tree: Any, wanted: str) -> tuple[Net, list[Net]]:
    """The network that is meant, and those that hold the same numbers.

    Args:
        wanted: its label, or prefix, where nothing else decides; or nothing.

    Raises:
        UserError: there is none, or there are several that differ.
    """
    if wanted:
        fitting = [net for net in nets if wanted in (net.label, net.prefix, net.prefix.rstrip("."))]
        if len(fitting) != 1:
            raise UserError(f"--net={wanted} is {'several' if fitting else 'none'} of its networks: {_listed(nets)}")
        return fitting[0], []
    if not nets:
        raise UserError(_no_net(tree))
    leading = _leading(nets, tree)
    for net in leading:
        _check_size(net)
    same = [net for net in leading[1:] if _equal(net, leading[0])]
    if len(same) + 1 < len(leading):
        raise UserError(
            f"it holds several ResNets that differ: {_listed(leading)}. Take one by python -m cvsa_jax.weights import "
            "--from=FILE --net=ONE_OF_THESE --out=x.safetensors"
        )
    return leading[0], same


def _leading(nets: list[Net], tree: Any) -> list[Net]:
    """Those that were trained, not those that follow them. Of a student and a teacher the student, but in DINO, whose
    authors evaluate the teacher. Of timm's two, the moving averages, as timm takes them; what others call so may be the
    momentum encoder."""
    followers, words = set(_FOLLOWERS), set().union(*(net.words for net in nets))
    plain = [net for net in nets if not net.words & {*followers, "student"}]
    if "student" in words and (plain or ("teacher" in words and _is_dino(tree))):
        followers = followers - {"teacher"} | {"student"} if not plain else followers | {"student"}
    averages = [net for net in nets if _TIMM_AVERAGES in net.wrapper]
    behind = [net for net in nets if not net.words & (followers - ({"ema"} if net in averages else set()))]
    leading = behind or nets
    return [net for net in leading if net in averages] or leading


def _is_dino(tree: Any) -> bool:
    if isinstance(tree, dict) and "dino_loss" in tree:
        return True
    return any("last_layer" in name for _, tensors in levels(tree) for name in tensors)


def _equal(a: Net, b: Net) -> bool:
    if a.tensors.keys() != b.tensors.keys():
        return False
    return all(
        one.shape == b.tensors[name].shape and np.array_equal(one.read(), b.tensors[name].read(), equal_nan=True)
        for name, one in a.tensors.items()
    )


def refuse_other_functions(net: Net, metadata: dict[str, str]) -> None:
    """UserError where the names are a ResNet's, and the network computes something else, as far as its file tells; the
    `metadata` of our own files tell all."""
    if "conv1.weight" not in net.tensors:
        raise UserError(
            f"its network {net.label} has no conv1.weight: its stem is a deep one (ResNet-C or -D: resnet50d, "
            "deep_stem), which config.model.stem does not know"
        )
    if any({"conv16", "bn16"} & set(part.split(".")) for part in net.left_out):
        raise UserError("it is LCR's, whose ResNet has no max-pool: config.model.stem does not know it")
    small_stem = net.tensors["conv1.weight"].shape[2:] == (3, 3) and metadata.get("stem") != "small"
    if small_stem:
        raise UserError(
            f"its network {net.label} has a 3x3 stem, as networks for CIFAR's 32 px have (stride 1, no max-pool): "
            "config.model.stem does not know it"
        )
    if net.odd:
        raise UserError(
            f"its network {net.label} is no plain ResNet: it also has {some(list(net.odd), 3)}, and would compute "
            "something else without"
        )
    whole = [name for name, tensor in net.tensors.items() if "num_batches" not in name and tensor.dtype.kind in "iub"]
    if whole:
        raise UserError(f"its network {net.label} has weights that are whole numbers ({some(whole, 2)}): quantised?")
    _check_size(net)


def _check_size(net: Net) -> None:
    if sum(tensor.nbytes for tensor in net.tensors.values()) > MAX_BYTES:
        raise UserError(f"its network {net.label} is said to be larger than {MAX_BYTES / 2**30:.0f} GiB")


class Architecture(NamedTuple):
    """Of a ResNet: its depth by its blocks in each stage, the channels of its first stage, and its stem, as
    `config.model` has them; `stem` is None where it is another one."""

    depth: int
    sizes: tuple[int, ...]
    width: int
    kernel: int

    @property
    def stem(self) -> str | None:
        return {7: "imagenet", 3: "small"}.get(self.kernel)

    @property
    def in_words(self) -> str:
        blocks = ", ".join(map(str, self.sizes))
        return f"depth {self.depth} (blocks {blocks}), width {self.width}, a {self.kernel}x{self.kernel} stem"


def architecture(tensors: dict[str, np.ndarray]) -> Architecture:
    """What tensors under torchvision's names look like."""
    first = re.compile(r"layer\d\.\d+\.conv1\.weight")
    blocks = collections.Counter(name.split(".")[0] for name in tensors if first.fullmatch(name))
    sizes = tuple(blocks[f"layer{k}"] for k in range(1, len(blocks) + 1))
    convolutions = 3 if "layer1.0.conv3.weight" in tensors else 2
    width, _, kernel = (*np.shape(tensors.get("conv1.weight", ())), 0, 0, 0)[:3]
    return Architecture(convolutions * sum(sizes) + 2, sizes, width, kernel)


def _listed(nets: list[Net]) -> str:
    return ", ".join(net.label for net in nets[:8]) + (f" and {len(nets) - 8} more" if len(nets) > 8 else "")


def _no_net(tree: Any) -> str:
    if isinstance(tree, Record):
        return f"it holds a pickled object ({tree.name}), not tensors by name: save its state_dict()"
    names = {name: None for _, tensors in levels(tree) for name in tensors}
    objects = [value.name for value in tree.values() if isinstance(value, Record)] if isinstance(tree, dict) else []
    if not names and objects:
        return f"it holds pickled objects ({some(objects, 2)}) and no tensors by name: save the state_dict() alone"
    if {"names", "vectors"} <= names.keys():
        return "it holds features of images and no weights: features are for --runs of evaluate, or the linear probe"
    had = some(list(names)) if names else "no tensors by name"
    wanted = "no ResNet under torchvision's names (layer1.0.conv1.weight …), and no features (names, vectors)"
    return f"it holds {wanted}: it has {had}"
