"""Files of ResNet weights under torchvision's names, and files as `torch.save` writes them, without PyTorch."""

import collections
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

BLOCKS = {8: (1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def torch_weights(depth: int, width: int, *, stem: int = 7, prefix: str = "", seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a ResNet as torchvision's `state_dict()` names and lays them out, with its classifier."""
    rng = np.random.default_rng(seed)
    weights = {}

    def conv(name, out, inputs, size):
        spread = (2 / (inputs * size**2)) ** 0.5
        weights[f"{name}.weight"] = spread * rng.standard_normal((out, inputs, size, size))

    def norm(name, channels):
        weights[f"{name}.weight"] = rng.uniform(0.5, 1.2, channels)
        weights[f"{name}.bias"] = rng.normal(0, 0.3, channels)
        weights[f"{name}.running_mean"] = rng.normal(0, 0.3, channels)
        weights[f"{name}.running_var"] = rng.uniform(0.3, 1.5, channels)
        weights[f"{name}.num_batches_tracked"] = np.array(1234, np.int64)

    conv("conv1", width, 3, stem)
    norm("bn1", width)
    inputs = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        for block in range(blocks):
            name, channels = f"layer{stage + 1}.{block}", width * 2**stage
            # (name, kernel, output channels): a bottleneck from ResNet-50 on.
            parts = [("conv1", 3, channels), ("conv2", 3, channels)]
            if depth >= 50:
                parts = [("conv1", 1, channels), ("conv2", 3, channels), ("conv3", 1, 4 * channels)]
            size_in = inputs
            for part, size, out in parts:
                conv(f"{name}.{part}", out, size_in, size)
                norm(f"{name}.{part.replace('conv', 'bn')}", out)
                size_in = out
            if block == 0 and (stage > 0 or size_in != inputs):
                conv(f"{name}.downsample.0", size_in, inputs, 1)
                norm(f"{name}.downsample.1", size_in)
            inputs = size_in
    weights["fc.weight"], weights["fc.bias"] = rng.standard_normal((10, inputs)), rng.standard_normal(10)
    floats = {name: np.asarray(w, np.float32 if w.dtype == np.float64 else w.dtype) for name, w in weights.items()}
    return {prefix + name: array for name, array in floats.items()}


def write(path: Path, weights: dict[str, np.ndarray]) -> Path:
    """As we export them: of a small stem the file says that it is ours."""
    small = {"stem": "small"} if np.shape(weights.get("conv1.weight"))[2:] == (3, 3) else {}
    if path.suffix == ".safetensors":
        save_file(weights, path, small)
    else:
        np.savez(path, **weights, **({"cvsa_jax.json": np.array(json.dumps(small))} if small else {}))
    return path


class Named:
    """A name in a pickle, which need not be there to be imported."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError("nothing is called")


class Instance:
    """An object of a class by its name, with its state, as `pickle` writes any object."""

    def __init__(self, named: Named, state, args: tuple = ()):
        self.named, self.state, self.args = named, state, args


class _Stored:
    def __init__(self, key: str, array: np.ndarray):
        self.key, self.array = key, array


_KINDS = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "i4": "Int", "u1": "Byte", "b1": "Bool"}


class Pickler(pickle._Pickler):
    """Pickles arrays as tensors; their numbers go to `stored`."""

    def __init__(self, file, legacy: bool = False, protocol: int = 2):
        super().__init__(file, protocol)
        self.legacy, self.stored = legacy, []

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Instance):
            self.save_reduce(obj.named, obj.args, obj.state)
        elif isinstance(obj, np.ndarray):
            array = np.ascontiguousarray(obj)
            stride = tuple(step // array.itemsize for step in array.strides)
            self.stored.append(_Stored(str(len(self.stored)), array))
            rebuild = Named("torch._utils", "_rebuild_tensor_v2")
            empty = collections.OrderedDict()
            self.save_reduce(rebuild, (self.stored[-1], 0, array.shape, stride, False, empty), obj=obj)
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj):
        if not isinstance(obj, _Stored):
            return None
        kind = Named("torch", f"{_KINDS[obj.array.dtype.str[1:]]}Storage")
        told = ("storage", kind, obj.key, "cpu", obj.array.size)
        return (*told, None) if self.legacy else told


def torch_save(path: Path, tree, legacy: bool = False) -> Path:
    """Writes a tree with arrays as `torch.save` does: a zip archive, or as before 2020."""
    content = io.BytesIO()
    pickler = Pickler(content, legacy)
    pickler.dump(tree)
    if not legacy:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", content.getvalue())
            archive.writestr("archive/byteorder", "little")
            for stored in pickler.stored:
                archive.writestr(f"archive/data/{stored.key}", stored.array.tobytes())
            archive.writestr("archive/version", "3\n")
        return path
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            pickle.dump(part, file, 2)
        file.write(content.getvalue())
        pickle.dump([stored.key for stored in pickler.stored], file, 2)
        for stored in pickler.stored:
            file.write(stored.array.size.to_bytes(8, "little") + stored.array.tobytes())
    return path


def namespace(**values) -> Instance:
    """`argparse.Namespace`, as training scripts keep their flags."""
    return Instance(Named("argparse", "Namespace"), values)
