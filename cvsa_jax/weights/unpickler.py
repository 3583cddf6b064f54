"""Pickles of others, read without running anything that they name.

A pickle is a small program that may call whatever Python can import. Here nothing is imported: the few names that
tensors are made of have readers of our own, every other class becomes a `Record` that does nothing, and a name that
only an attack would hold ends the reading.
"""

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

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
class Global:
    """A name in a pickle, `module.name`; nothing is imported."""

    name: str


class Record:
    """An object of a class that is not known here: its arguments, its state, and what was put into it."""

    def __init__(self, name: str, args: tuple = ()):
        self.name, self.args, self.state, self.items = name, args, None, []

    def append(self, item) -> None:
        self.items.append(item)

    add = append

    def extend(self, items) -> None:
        self.items.extend(items)

    update = extend

    def __setitem__(self, key, value) -> None:
        self.items.append((key, value))


class Namespace(dict):
    """`argparse.Namespace`, as the dictionary of its values."""


@dataclasses.dataclass
class _DType:
    code: str
    order: str = "="


@dataclasses.dataclass
class _Array:
    """An ndarray of NumPy on its way: `array` is there when its state has been read."""

    array: np.ndarray | None = None


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
# Modules of which a file of weights names nothing, and functions of others that run or fetch what they are given.
_DENIED_MODULES = {
    *("os", "posix", "nt", "posixpath", "ntpath", "sys", "subprocess", "shutil", "socket", "importlib", "runpy", "pty"),
    *("code", "codeop", "ctypes", "cffi", "operator", "_operator", "webbrowser", "pickle", "_pickle", "cloudpickle"),
    *("marshal", "types", "inspect", "io", "_io", "tempfile", "threading", "multiprocessing", "asyncio", "signal"),
    *("urllib", "http", "requests", "ftplib", "smtplib", "telnetlib", "pip", "setuptools", "timeit", "pdb", "bdb"),
    *("commands", "popen2", "platform", "glob", "fileinput", "zipfile", "tarfile", "site", "builtins", "__builtin__"),
    *("__builtins__", "numpy.testing", "torch.hub", "torch.utils.cpp_extension", "functools", "atexit"),
}
_DENIED = {
    *("dill._dill._create_function", "dill._dill._create_code", "dill._dill._import_module", "dill._dill._eval_repr"),
    *("dill._dill._getattribute", "dill._dill._get_attr", "torch.load", "torch.save", "torch.jit.load", "joblib.load"),
    *("torch.storage._load_from_bytes", "numpy.load", "numpy.save", "numpy.fromfile", "numpy.memmap"),
}
_DENIED_PARTS = {"os", "sys", "subprocess", "builtins", "__builtin__", "__import__", "eval", "exec", "system", "popen"}
_HARMLESS = {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("set", "frozenset", "list", "dict", "tuple", "int", "float", "bool", "str", "bytes", "bytearray")
} | {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("object", "complex", "slice", "range")}
_HARMLESS |= {"functools.partial", "types.SimpleNamespace", "io.BytesIO", "_io.BytesIO", "operator.attrgetter"}


class Unpickler(pickle._Unpickler):  # the one in Python: its every step can be replaced, and it trusts no size
    """Reads one pickle from `file`, which has `read` and `readline`.

    Args:
        storage: persistent id -> `Storage`, of what PyTorch keeps outside of the pickle.

    Raises:
        UserError: it names what no file of weights needs.
        Exception: it is broken.
    """

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any, storage: Callable[[Any], Storage] | None = None):
        super().__init__(file, encoding="latin1")
        self._storage_of = storage

    def find_class(self, module: str, name: str) -> Global:
        full = f"{module}.{name}"
        parents = {".".join(module.split(".")[: k + 1]) for k in range(module.count(".") + 1)}
        denied = parents & _DENIED_MODULES or full in _DENIED or _DENIED_PARTS & set(full.split("."))
        if denied and full not in _HARMLESS:
            raise UserError(f"it names {full}, which no file of weights needs, and may be an attack: nothing was run")
        return Global(full)

    def persistent_load(self, pid: Any) -> Storage:
        if self._storage_of is None:
            raise pickle.UnpicklingError("it refers to what is not in it")
        return self._storage_of(pid)

    def _instantiate(self, klass, args) -> None:
        self.append(_made(klass, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], tuple(args))

    def load_newobj(self) -> None:
        args, cls = self.stack.pop(), self.stack.pop()
        self.append(_made(cls, tuple(args)))

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # arguments by name
        self.load_newobj()

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Record):
            made.state = state
        elif isinstance(made, Namespace) and isinstance(state, dict):
            made.update(state)
        elif isinstance(made, _DType):
            made.order = state[1]
        elif isinstance(made, _Array):
            _, shape, dtype, fortran, data = state
            made.array = _from_bytes(data, dtype, shape, "F" if fortran else "C")

    for opcode, method in (("REDUCE", load_reduce), ("NEWOBJ", load_newobj), ("BUILD", load_build)):
        dispatch[getattr(pickle, opcode)[0]] = method
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex


def _made(function: Any, args: tuple) -> Any:
    """What a call in a pickle stands for."""
    if not isinstance(function, Global):
        return Record(function.name if isinstance(function, Record) else type(function).__name__, args)
    maker = _MAKERS.get(function.name)
    return Record(function.name, args) if maker is None else maker(*args)


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


def _from_bytes(data, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
    kind = np.dtype(dtype.code)
    if kind.hasobject:
        raise UserError("it holds an array of objects, which are not read")
    kind = kind.newbyteorder({"<": "<", ">": ">"}.get(dtype.order, "="))
    data = data.encode("latin1") if isinstance(data, str) else bytes(data)
    return np.frombuffer(data, kind).reshape(shape, order=order)


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in {encoding!r}")
    return text.encode("latin1")


def _filled(made: _Array, data, dtype, shape, order="C") -> _Array:
    made.array = _from_bytes(data, dtype, shape, order)
    return made


_MAKERS: dict[str, Callable] = {
    "collections.OrderedDict": lambda items=(): dict(items),
    "collections.defaultdict": lambda *_: {},
    "argparse.Namespace": lambda *_: Namespace(),
    "_codecs.encode": _encoded,
    "torch._utils._rebuild_tensor": tensor,
    "torch._utils._rebuild_tensor_v2": tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda function, _type, args, _state: _made(function, args),
    "torch.Size": lambda sizes=(): tuple(sizes),
    "numpy.dtype": lambda code, *_: _DType(code),
}
for _module in ("numpy.core", "numpy._core"):
    _MAKERS |= {
        f"{_module}.multiarray._reconstruct": lambda *_: _Array(),
        f"{_module}.multiarray.scalar": lambda dtype, data=b"": _from_bytes(data, dtype, (-1,), "C")[:1],
        f"{_module}.numeric._frombuffer": lambda data, dtype, shape, order: _filled(
            _Array(), data, dtype, shape, order
        ),
    }
for _name in ("builtins", "__builtin__"):
    _MAKERS |= {f"{_name}.set": lambda items=(): list(items), f"{_name}.frozenset": lambda items=(): list(items)}
