"""What `torch.save` writes, in its two formats, and plain pickles, read without PyTorch: tensors are `Tensor`s."""

import io
import mmap
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.weights.tensors import STORAGES, Storage
from cvsa_jax.weights.unpickler import Global, Unpickler

# Of the format before 2020 (torch/serialization.py of pytorch/pytorch): what its file begins with, one pickle each.
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001


def load_zip(path: Path) -> Any:
    """The object in a zip archive of `torch.save`."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        pickles = sorted(name for name in names if name.rpartition("/")[2] == "data.pkl")
        if len(pickles) != 1:
            raise UserError("it is a zip archive, but none of torch.save: there is no data.pkl")
        # PyTorch compresses nothing; what is compressed could be of any size.
        if packed := [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]:
            raise UserError(f"its part {packed[0]} is compressed, which torch.save never does")
        base = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{base}byteorder") if f"{base}byteorder" in names else b"little"
        content = archive.read(pickles[0])

    def storage(pid: Any) -> Storage:
        _, kind, key, _, numel = pid[:5]

        def read() -> bytes:
            with zipfile.ZipFile(path) as archive:
                return archive.read(f"{base}data/{key}")

        return Storage(_dtype(kind, order == b"big"), int(numel), read)

    return Unpickler(io.BytesIO(content), len(content), storage).load()


def load_pickle(path: Path) -> Any:
    """The object in a file that begins with a pickle: of `torch.save` before 2020, or a plain one."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        size = content.size()
        first = Unpickler(content, size).load()
        if first != _LEGACY_MAGIC:
            return first
        if (version := Unpickler(content, size).load()) != _LEGACY_VERSION:
            raise UserError(f"it is a file of torch.save of a version {version!r} that is not known")
        Unpickler(content, size).load()  # of the machine that wrote it
        places: dict[str, tuple[int, int]] = {}
        kinds: dict[str, np.dtype | None] = {}

        def storage(pid: Any) -> Storage:
            _, kind, key, _, numel, view = pid
            kinds[str(key)] = dtype = _dtype(kind, False)
            start, count = (int(view[1]), int(view[2])) if view is not None else (0, int(numel))

            def read() -> bytes:
                place, size = places[str(key)]
                width = dtype.itemsize
                with path.open("rb") as file:
                    file.seek(place + start * width)
                    return file.read(max(min(count, size - start), 0) * width)

            return Storage(dtype, count, read)

        tree = Unpickler(content, size, storage).load()
        for key in Unpickler(content, size).load():
            numel = int.from_bytes(content.read(8), "little", signed=True)
            width = 1 if kinds.get(str(key)) is None else kinds[str(key)].itemsize
            left = content.size() - content.tell()
            if not 0 <= numel * width <= left:
                raise UserError("it ends before its last tensor")
            places[str(key)] = content.tell(), numel
            content.seek(numel * width, io.SEEK_CUR)
        return tree


def _dtype(kind: Any, big: bool) -> np.dtype | None:
    if not isinstance(kind, Global):
        raise pickle.UnpicklingError("a storage without a kind")
    code = STORAGES.get(kind.name.rpartition(".")[2])
    if code is None:
        return None
    dtype = np.dtype(code)
    return dtype.newbyteorder(">") if big and code is not ml_dtypes.bfloat16 else dtype
