"""Pickles of others, read without running anything that they name.

A pickle is a small program that may call whatever Python can import. Here nothing is imported: the few names that
tensors are made of have readers of our own, every other class becomes a `Record` that does nothing, and a name that
only an attack would hold ends the reading.
"""

import dataclasses
import pickle
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.weights.tensors import Storage, tensor


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


# Modules of which a file of weights names nothing, and functions of others that run or fetch what they are given.
_DENIED_MODULES = {
    *("os", "posix", "nt", "posixpath", "ntpath", "sys", "subprocess", "shutil", "socket", "importlib", "runpy", "pty"),
    *("ctypes", "cffi", "operator", "_operator", "webbrowser", "pickle", "_pickle", "cloudpickle"),
    *("marshal", "types", "inspect", "io", "_io", "tempfile", "threading", "multiprocessing", "asyncio", "signal"),
    *("urllib", "http", "requests", "ftplib", "smtplib", "telnetlib", "pip", "setuptools", "timeit", "pdb", "bdb"),
    *("commands", "popen2", "fileinput", "zipfile", "tarfile", "builtins", "__builtin__"),
    *("__builtins__", "numpy.testing", "torch.hub", "torch.utils.cpp_extension", "functools", "atexit"),
}
_DENIED = {
    *("dill._dill._create_function", "dill._dill._create_code", "dill._dill._import_module", "dill._dill._eval_repr"),
    *("dill._dill._getattribute", "dill._dill._get_attr", "torch.load", "torch.save", "torch.jit.load", "joblib.load"),
    *("torch.storage._load_from_bytes", "numpy.load", "numpy.save", "numpy.fromfile", "numpy.memmap"),
}
_DENIED_PARTS = {"os", "sys", "subprocess", "builtins", "__builtin__", "__import__", "eval", "exec"}
_GETATTR = {"builtins.getattr", "__builtin__.getattr"}  # how Python pickles what is in an enumeration
_SPARE = 2**26  # bytes that may be made of a pickle of any size, beside a few times its own
_HARMLESS = {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("set", "frozenset", "list", "dict", "tuple", "int", "float", "bool", "str", "bytes", "bytearray")
} | {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("object", "complex", "slice", "range")}
_HARMLESS |= {"functools.partial", "types.SimpleNamespace", "io.BytesIO", "_io.BytesIO", "operator.attrgetter"}


class Unpickler(pickle._Unpickler):  # the one in Python: its every step can be replaced, and it trusts no size
    """Reads one pickle from `file`, which has `read` and `readline`.

    Args:
        size: bytes of the file, of which a few times as many may be made.
        storage: persistent id -> `Storage`, of what PyTorch keeps outside of the pickle.

    Raises:
        UserError: it names what no file of weights needs.
        Exception: it is broken.
    """

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any, size: int, storage: Callable[[Any], Storage] | None = None):
        super().__init__(file, encoding="latin1")
        self._storage_of = storage
        self._left = _SPARE + 4 * size  # what calls may still make, in bytes or entries

    def find_class(self, module: str, name: str) -> Global:
        full = f"{module}.{name}"
        parents = {".".join(module.split(".")[: k + 1]) for k in range(module.count(".") + 1)}
        denied = parents & _DENIED_MODULES or full in _DENIED or _DENIED_PARTS & set(full.split("."))
        if denied and full not in _HARMLESS | _GETATTR:
            raise _attack(full)
        return Global(full)

    def persistent_load(self, pid: Any) -> Storage:
        if self._storage_of is None:
            raise pickle.UnpicklingError("it refers to what is not in it")
        return self._storage_of(pid)

    def _instantiate(self, klass, args) -> None:
        self.append(self._made(klass, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._made(self.stack[-1], tuple(args))

    def load_newobj(self) -> None:
        args, cls = self.stack.pop(), self.stack.pop()
        self.append(self._made(cls, tuple(args)))

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

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))  # as much as there is

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_key(key)] = value

    def load_setitems(self) -> None:
        items, into = self.pop_mark(), self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            into[_key(key)] = value

    def load_list_of_mark(self) -> None:
        self.append(self.pop_mark())

    def load_additems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].extend(items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def _made(self, function: Any, args: tuple) -> Any:
        """What a call in a pickle stands for."""
        if not isinstance(function, Global):
            return Record(function.name if isinstance(function, Record) else type(function).__name__, args)
        if function.name in _GETATTR and not (len(args) == 2 and isinstance(args[0], Global)):
            raise _attack(function.name)
        if function.name == "torch._tensor._rebuild_from_type_v2":
            return self._made(args[0], tuple(args[2]))
        self._left -= sum(len(part) for part in args if isinstance(part, str | bytes | bytearray | list | dict))
        if self._left < 0:
            raise UserError("it makes more of itself than a file of weights does")
        maker = _MAKERS.get(function.name)
        return Record(function.name, args) if maker is None else maker(*args)

    for opcode, method in (("REDUCE", load_reduce), ("NEWOBJ", load_newobj), ("BUILD", load_build)):
        dispatch[getattr(pickle, opcode)[0]] = method
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch |= {pickle.BYTEARRAY8[0]: load_bytearray8, pickle.SETITEM[0]: load_setitem}
    dispatch |= {pickle.SETITEMS[0]: load_setitems, pickle.DICT[0]: load_dict}
    # Sets are lists: what lies in them would be hashed, which takes for ever where it is nested in itself.
    dispatch |= {pickle.EMPTY_SET[0]: pickle._Unpickler.load_empty_list, pickle.ADDITEMS[0]: load_additems}
    dispatch[pickle.FROZENSET[0]] = load_list_of_mark


def nodes(tree: Any) -> Iterator[Any]:
    """Everything in a tree that was read, each object once, and what comes first in it first."""
    waiting, seen = [tree], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, dict):
            waiting += reversed(list(node.values()))
        elif isinstance(node, list | tuple):
            waiting += reversed(node)
        elif isinstance(node, Record):
            waiting += reversed([*node.args, node.state, *node.items])


def _attack(name: str) -> UserError:
    return UserError(f"it names {name}, which no file of weights needs, and may be an attack: nothing was run")


def _key(key: Any) -> Any:
    """A key of a dictionary. What holds others is not hashed, which takes for ever where it is nested in itself."""
    return key if isinstance(key, str | bytes | int | float | None) else f"<{type(key).__name__}>"


def _from_bytes(data, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
    kind = np.dtype(dtype.code)
    if kind.hasobject:
        raise UserError("it holds an array of objects, which are not read")
    kind = kind.newbyteorder({"<": "<", ">": ">"}.get(dtype.order, "="))
    if not isinstance(data, str | bytes | bytearray):
        raise pickle.UnpicklingError("an array without its bytes")
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, kind).reshape(shape, order=order)


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in {encoding!r}")
    return text.encode("latin1")


def _filled(made: _Array, data, dtype, shape, order="C") -> _Array:
    made.array = _from_bytes(data, dtype, shape, order)
    return made


_MAKERS: dict[str, Callable] = {
    "collections.OrderedDict": lambda items=(): {_key(key): value for key, value in items},
    "collections.defaultdict": lambda *_: {},
    "argparse.Namespace": lambda *_: Namespace(),
    "_codecs.encode": _encoded,
    "torch._utils._rebuild_tensor": tensor,
    "torch._utils._rebuild_tensor_v2": tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
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
    _MAKERS |= {f"{_name}.set": lambda items=(): items, f"{_name}.frozenset": lambda items=(): items}
