"""Tensors in a file, read when they are asked for."""

import dataclasses
from collections.abc import Callable

import ml_dtypes
import numpy as np

from cvsa_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array that is read when it is asked for, so that a file costs no more memory than what is taken of it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Storage:
    """What tensors lie in: `numel` elements as the pickle says; `read` gives the bytes that are there."""

    dtype: np.dtype | None  # None: of a kind that is not read
    numel: int
    read: Callable[[], bytes]


STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "UntypedStorage": "u1",
}


def tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_unused) -> Tensor:
    """A view of a storage, as PyTorch describes it; that it lies inside is checked when it is read."""
    size, stride = tuple(map(int, size)), tuple(map(int, stride))

    def read() -> np.ndarray:
        if storage.dtype is None:
            raise UserError("a tensor of a kind that is not read (quantised, complex or sparse)")
        there = np.frombuffer(storage.read(), storage.dtype)
        count = int(np.prod(size, dtype=object))
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset
        if min((offset, *size, *stride)) < 0 or last >= max(len(there), 1) or not 0 <= count <= len(there):
            raise UserError("a tensor lies outside of what the file holds")
        steps = [step * there.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(there[offset:], size, steps).copy()

    return Tensor(size, storage.dtype or np.dtype("V1"), read)


def array(value: np.ndarray) -> Tensor:
    """A tensor that is there already."""
    return Tensor(value.shape, value.dtype, lambda: value)
