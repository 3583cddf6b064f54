"""Reads a file of ResNet weights, whatever wrote it: the kind of file by its content, the network by `nets`."""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cvsa_jax.models.resnet import PADDINGS
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import AnyPath, on_disk
from cvsa_jax.weights import haiku, nets, torch_file
from cvsa_jax.weights.tensors import Tensor, array
from cvsa_jax.weights.unpickler import _Array, nodes

ABOUT = "cvsa_jax.json"  # name of the array in an npz of ours that says what the others are


class Weights(NamedTuple):
    """A backbone: tensors under torchvision's names; in words, which network of the file it is and what was left out;
    and, or None where nothing says it, how its network pads, `symmetric` or `same`, and at which `size` and `resize`,
    in px, it is evaluated; and `metadata`, what a file of ours says of itself."""

    tensors: dict[str, np.ndarray]
    about: str
    padding: str | None
    size: int | None
    resize: int | None
    metadata: dict[str, str]


def read(path: AnyPath, wanted: str = "") -> Weights:
    """The backbone in a file of weights. No code of the file is run.

    Args:
        wanted: of several networks the one of this label or prefix.

    Raises:
        UserError: it cannot be read, or holds no ResNet, or several between which nothing decides.
    """
    try:
        there = on_disk(path)
        tree = _tree(there)
        net, same = haiku.net_of(tree), []
        if net is None:
            net, same = nets.chosen(nets.nets_of(tree), tree, wanted)
        metadata = _metadata(there)
        nets.refuse_other_functions(net, metadata)
        # In C's order, since safetensors writes an array's memory as it lies.
        tensors = {name: np.asarray(tensor.read(), order="C") for name, tensor in net.tensors.items()}
        if wrong := [name for name, tensor in tensors.items() if not np.isfinite(tensor.astype(np.float32)).all()]:
            raise UserError(f"its network {net.label} has NaN or Inf in {some(wrong, 3)}")
        if (padding := metadata.get("padding", net.padding)) not in (None, *PADDINGS):
            raise UserError(f"it names a padding {padding!r} that is not known here: {', '.join(PADDINGS)}")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a broken file raises whatever its reader stumbles over
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"cannot read the weights in {path}: {reason}") from None
    sizes = (int(metadata[key]) if metadata.get(key, "").isdecimal() else None for key in ("size", "resize"))
    return Weights(tensors, _about(net, same), padding, *sizes, metadata)


def _about(net: nets.Net, same: list[nets.Net]) -> str:
    equal = f" (the same numbers as {', '.join(other.label for other in same)})" if same else ""
    parts = ", ".join(f"{count} of {name}" for name, count in list(net.left_out.items())[:6])
    more = f" and {len(net.left_out) - 6} parts more" if len(net.left_out) > 6 else ""
    return f"network {net.label}{equal}" + (f"; left out: {parts}{more}" if parts else "")


def _tree(path: Path) -> Any:
    """Dictionaries, lists and tensors, as the file nests them."""
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith(".npy") for name in archive.namelist()):
                return _npz(path)
        return _arrays(torch_file.load_zip(path))
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _safetensors(path)
    if head[:1] == b"\x80":
        return _arrays(torch_file.load_pickle(path))
    known = {b"\x89HDF": "HDF5", b"": "empty", b"vers": "a pointer of Git LFS: fetch the file itself"}
    kind = next((what for magic, what in known.items() if head[:4] == magic), "of a kind that is not known")
    raise UserError(
        f"it is {kind}; weights are read from safetensors, npz, what torch.save wrote (.pth, .pt, .tar, .ckpt, .torch, "
        ".bin) and DeepMind's pickles"
    )


def _arrays(tree: Any) -> Any:
    """The tree with arrays of NumPy as tensors, in place."""
    for node in nodes(tree):
        if isinstance(node, dict):
            for key, value in node.items():
                if isinstance(value, _Array) and value.array is not None:
                    node[key] = array(value.array)
    return tree


def _npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a file of `np.savez`, read one by one; those of objects are refused."""
    tensors = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name == f"{ABOUT}.npy":
                continue
            shape, dtype = _npz_header(archive, name)
            tensors[name.removesuffix(".npy")] = Tensor(shape, dtype, lambda name=name: _npy(path, name))
    return tensors


def _npz_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(name) as file:
        major, _ = np.lib.format.read_magic(file)
        shape, _, dtype = getattr(np.lib.format, f"read_array_header_{min(major, 2)}_0")(file)
    return shape, dtype


def _npy(path: Path, name: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)  # no more than its header says


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    def reader(name: str):
        def read() -> np.ndarray:
            with safe_open(path, "numpy") as file:
                return file.get_tensor(name)

        return read

    with safe_open(path, "numpy") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no dictionary
        shapes = {name: (tuple(part.get_shape()), np.dtype(_SAFE[part.get_dtype()])) for name, part in parts.items()}
    return {name: Tensor(shape, dtype, reader(name)) for name, (shape, dtype) in shapes.items()}


_SAFE = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "V2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1"}
_SAFE |= {"U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?"}


def _metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself, or an npz of ours."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        from safetensors import safe_open

        with safe_open(path, "numpy") as file:
            return file.metadata() or {}
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            if f"{ABOUT}.npy" in archive.namelist() and _npz_header(archive, f"{ABOUT}.npy")[1].itemsize < 2**20:
                return {key: str(value) for key, value in json.loads(str(_npy(path, f"{ABOUT}.npy"))).items()}
    return {}
