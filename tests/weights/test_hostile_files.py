"""Files that were made to do harm, and files of any content: nothing of them is run, and memory stays bounded."""

import contextlib
import io
import os
import pickle
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.torch_files import Instance, Named, Pickler, namespace, torch_save, torch_weights

from cvsa_jax.runtime.errors import UserError
from cvsa_jax.weights import files

WEIGHTS = torch_weights(18, 8)


class Call:
    """What an attack is made of: unpickled by `pickle`, it calls a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def refused_attack(path: Path) -> str:
    """The message by which a file with an attack is refused; nothing is written."""
    before = set(path.parent.iterdir())
    with pytest.raises(UserError, match=r"weights\.pth: it names [\w.]+, which no file of weights needs") as refused:
        files.read(path)
    assert set(path.parent.iterdir()) == before
    return str(refused.value)


# One of each rule by which a name is denied: a module, a module within a package, a function, a part of a name, and a
# `getattr` of anything but a class.
ATTACKS = {
    "posix.system": Call(os.system, "true"),
    "__builtin__.eval": Call(eval, "1"),
    "__builtin__.getattr": Call(getattr, "text", "format"),
    "numpy.testing._private.utils.runstring": Instance(Named("numpy.testing._private.utils", "runstring"), None),
    "torch.load": Instance(Named("torch", "load"), None, ("x",)),
    "torch.serialization.os.system": Instance(Named("torch.serialization", "os.system"), None, ("true",)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_pickle_with_an_attack_is_refused_by_name(tmp_path, name):
    path = tmp_path / "weights.pth"
    path.write_bytes(_pickled(ATTACKS[name]))
    assert f"it names {name}, " in refused_attack(path)


@pytest.mark.parametrize("where", ["zip", "legacy", "nested", "state", "wrapper"])
def test_attack_is_found_in_every_container(tmp_path, where):
    path = tmp_path / "weights.pth"
    evil = Call(os.system, "true")
    trees = {
        "zip": WEIGHTS | {"x": evil},
        "legacy": WEIGHTS | {"x": evil},
        "nested": [{"a": ({"b": evil},)}],
        "state": Instance(Named("my", "Net"), evil),
        "wrapper": {"state_dict": {f"module.{n}": a for n, a in WEIGHTS.items()}, "args": namespace(x=evil)},
    }
    torch_save(path, trees[where], legacy=where == "legacy")
    assert "it names posix.system, " in refused_attack(path)


def test_attack_that_pickle_would_run_does_nothing(tmp_path):
    path, target = tmp_path / "weights.pth", tmp_path / "written"
    path.write_bytes(_pickled(Call(os.system, f"touch {target}")))
    refused_attack(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()


def _pickled(tree) -> bytes:
    content = io.BytesIO()
    Pickler(content).dump(tree)
    return content.getvalue()


def test_unknown_classes_are_skipped(tmp_path):
    odd = Instance(Named("os_like.package", "Thing"), {"x": 1}, (1, 2))
    tree = {"state_dict": WEIGHTS, "config": odd, "set": {1, 2}, "more": [odd, {"deep": odd}]}
    np.testing.assert_array_equal(
        files.read(torch_save(tmp_path / "w.ckpt", tree)).tensors["bn1.bias"], WEIGHTS["bn1.bias"]
    )


@contextlib.contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """The peak memory of this process grows by less than `limit` KiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < limit


def view(offset, size, stride, numel=4, key="0") -> Instance:
    """A tensor over a storage of four numbers, as the pickle of an attacker describes it."""
    return Instance(
        Named("torch._utils", "_rebuild_tensor_v2"), None, (Storage(key, numel), offset, size, stride, False, {})
    )


class Storage:
    def __init__(self, key, numel):
        self.key, self.numel = key, numel


class ViewPickler(Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return ("storage", Named("torch", "FloatStorage"), obj.key, "cpu", obj.numel)
        return super().persistent_id(obj)


def with_view(path: Path, tensor: Instance) -> Path:
    """A file whose `bn1.bias` is this tensor."""
    content = io.BytesIO()
    ViewPickler(content, False).dump({name: view(0, (2,), (1,)) for name in WEIGHTS} | {"bn1.bias": tensor})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", content.getvalue())
        archive.writestr("a/data/0", np.arange(4, dtype=np.float32).tobytes())
    return path


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(view(3, (2,), (1,)), id="beyond the storage"),
        pytest.param(view(0, (10**6, 10**6), (0, 0)), id="one number a million million times"),
        pytest.param(view(-4, (2,), (1,)), id="negative offset"),
        pytest.param(view(2, (2,), (-1,)), id="negative stride"),
        pytest.param(view(0, (-1,), (1,)), id="negative size"),
        pytest.param(view(0, (2**62, 4), (1, 1)), id="overflow"),
        pytest.param(view(0, (8, 3, 7, 7), (147, 49, 7, 1), numel=2**60), id="storage shorter than its number"),
        pytest.param(view(0, (2,), (1,), key="../../etc/passwd"), id="no such storage"),
    ],
)
def test_tensor_outside_its_storage_is_refused(tmp_path, tensor):
    path = with_view(tmp_path / "w.pth", tensor)
    with memory_below(200_000), pytest.raises(UserError, match=r"w\.pth"):
        files.read(path)


def test_tensor_inside_a_storage_of_a_wrong_size_is_read(tmp_path):
    path = with_view(tmp_path / "w.pth", view(0, (2,), (1,), numel=2**60))
    with memory_below(200_000):
        assert files.read(path).tensors["bn1.bias"].tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["pth", "npz"])
def test_compressed_bomb_is_refused(tmp_path, kind):
    path = tmp_path / f"bomb.{kind}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if kind == "pth":
            archive.writestr("a/data.pkl", _pickled(WEIGHTS))
            archive.writestr("a/data/0", bytes(50_000_000))
        else:  # the first block of a ResNet, of 100 GB
            with archive.open("layer1.0.conv1.weight.npy", "w") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 25_000)}
                np.lib.format.write_array_header_1_0(file, header)
            with archive.open("conv1.weight.npy", "w") as file:
                np.lib.format.write_array(file, np.zeros((8, 3, 7, 7), np.float32))
    reason = "compressed, which torch.save never does" if kind == "pth" else "said to be larger than 4 GiB"
    with pytest.raises(UserError, match=reason):
        files.read(path)


def test_npz_is_read_only_as_far_as_its_header_counts(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in WEIGHTS.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
                file.write(bytes(30_000_000 if name == "bn1.bias" else 0))
        with archive.open("cvsa_jax.json.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<U90000000", "fortran_order": False, "shape": ()})
            file.write(bytes(30_000_000))
    with memory_below(20_000):
        np.testing.assert_array_equal(files.read(path).tensors["bn1.bias"], WEIGHTS["bn1.bias"])


def test_harmless_names_like_those_of_attacks_are_read(tmp_path):
    member = Instance(Named("builtins", "getattr"), None, (Named("project.system", "Kind"), "FIRST"))
    tree = WEIGHTS | {"config": Instance(Named("code.config", "Args"), {"a": 1}), "kind": member}
    np.testing.assert_array_equal(
        files.read(torch_save(tmp_path / "w.pth", tree)).tensors["bn1.bias"], WEIGHTS["bn1.bias"]
    )


def nested(start: bytes, depth: int) -> bytes:
    """A tuple of a tuple twice, and so on, as a key."""
    return start + b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(depth))


# Lists in lists that share each other: 2⁶⁴ of them.
LAUGHS = b"".join(
    (b"\x80\x02]q\x00", *(b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1]) for k in range(64)), b".")
)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x05\x96" + (3 * 2**30).to_bytes(8, "little") + b".",  # a bytearray that is not there
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x3f" + b"x.",  # a string of 2⁶² bytes
        b"\x80\x02Nr\xff\xff\xff\xff.",  # a place in the memo at 2³²
        LAUGHS,
        b"\x80\x02}" + nested(b")", 60) + b"K\x01s.",  # 2⁶⁰ hashes
        b"\x80\x04\x8f(" + nested(b")", 60) + b"\x90.",  # the same in a set
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        _pickled([Instance(Named("_codecs", "encode"), None, ("x" * 10**6, "latin1"))] * 300),
        _pickled(
            Instance(Named("numpy.core.numeric", "_frombuffer"), None, (2**32, Named("numpy", "dtype"), (1,), "C"))
        ),
    ],
    ids=["bytearray", "string", "memo", "shared lists", "keys", "set", "lists", "encode", "integer"],
)
def test_small_pickle_makes_little_memory_and_ends(tmp_path, content):
    # Where it went wrong, the sets and the keys would take hours.
    path = tmp_path / "w.pkl"
    path.write_bytes(content)
    with memory_below(300_000), pytest.raises(UserError, match=r"w\.pkl"):
        files.read(path)


def test_array_of_objects_is_refused(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, **WEIGHTS | {"conv1.weight": np.array([Call(os.system, f"touch {tmp_path}/x")], object)})
    with pytest.raises(UserError, match=r"w\.npz: Object arrays cannot be loaded"):
        files.read(path)
    assert not (tmp_path / "x").exists()


# Any content.

NAMES = st.sampled_from(sorted(WEIGHTS)).flatmap(
    lambda name: st.sampled_from(["", "module.", "backbone.", "encoder_k.", "student.", "4.0.", "\x00", "ü."]).map(
        lambda prefix: prefix + name
    )
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(0, 3), max_size=4).map(lambda shape: np.zeros(shape, np.float32)),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(NAMES | st.text(max_size=8), inner, max_size=6), st.lists(inner, max_size=3)
    ),
)


def never_a_traceback(path: Path) -> None:
    try:
        read = files.read(path)
    except UserError as error:
        assert str(path) in str(error)
    else:  # what is taken is what a ResNet has
        assert "conv1.weight" in read.tensors


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(tree=TREES, legacy=st.booleans())
def test_any_tree_is_read_or_refused(tmp_path, tree, legacy):
    never_a_traceback(torch_save(tmp_path / "w.pth", tree, legacy))


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x08" + bytes(7) + b"{"]),
    rest=st.binary(max_size=200),
)
def test_any_bytes_are_read_or_refused(tmp_path, start, rest):
    path = tmp_path / "w.bin"
    path.write_bytes(start + rest)
    never_a_traceback(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    folder, small = tmp_path_factory.mktemp("whole"), {n: np.ravel(a)[:1] for n, a in list(WEIGHTS.items())[:12]}
    kinds = {"zip": False, "legacy": True}
    return {name: torch_save(folder / name, small, legacy).read_bytes() for name, legacy in kinds.items()}


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(["zip", "legacy"]), data=st.data())
def test_any_change_of_bytes_is_read_or_refused(tmp_path, whole, kind, data):
    content = bytearray(whole[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    never_a_traceback(path)
