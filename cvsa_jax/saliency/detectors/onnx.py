"""Salient-object detection by an ONNX file that the user supplies; nothing is downloaded.

Where the presets' numbers come from, repository and files:
    u2net, u2netp: xuebinqin/U-2-Net, README (320 px) and `ToTensorLab(flag=0)` of data_loader.py (the resized image is
        divided by its own maximum), model/u2net.py (all outputs are sigmoids, the fused one is the first).
    basnet: xuebinqin/BASNet, basnet_test.py, data_loader.py (as above) and model/BASNet.py (sigmoids, refined first).
    isnet: xuebinqin/DIS, IS-Net/Inference.py (divided by 255) and IS-Net/models/isnet.py (sigmoids, finest first).
    birefnet: ZhengPeng7/BiRefNet, dataset.py (`ToTensor`, so divided by 255) and inference.py (applies the sigmoid).
danielgatis/rembg, rembg/sessions, prepares the images of all of these alike but divides by the maximum throughout. The
projects stretch each map to its own range before they save it. Here it stays as it is, so that an image without a
salient object keeps a dark map.
"""

import dataclasses
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from scipy.special import expit

from cvsa_jax.runtime import checks
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detector import Detection, Detector, scaled, squeezed

# Best first. TensorRT is left out: it compiles the model for minutes at every start.
PROVIDERS = ("CUDA", "ROCM", "CoreML", "Dml", "CPU")
LARGEST_BATCH, SMALLEST_BATCH = 8, 2  # images that are given to the model together
BATCH_PIXELS = LARGEST_BATCH * 320**2  # of them, about
RANGE_TOLERANCE = 1e-3  # by which outputs may leave [0, 1] without being taken for logits: float16 rounds by 5e-4
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclasses.dataclass(frozen=True)
class Preset:
    """What a model takes and gives: `size` of the square input in px; `mean` and `std` of each channel (R, G, B) of
    images in [0, 1]; `divide_by`, which brings an image there, `255` or its own `max`; whether its output are logits;
    the page of its project, and what that says of the licence of code and weights; `stretched`: maps are scaled to
    their own range."""

    size: int
    divide_by: str
    sigmoid: bool
    page: str
    licence: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stretched: bool = False


_DUTS = "the training images (DUTS) have their own terms"
_U2NET = "https://github.com/xuebinqin/U-2-Net", f"Apache-2.0 for code and weights (the author in issue 208); {_DUTS}"
_DIS = "Apache-2.0 for the code; not stated for the weights, and the training images (DIS5K) have their own terms"
_BIREFNET = (
    "MIT for code and weights (the author in issue 316); some training images exclude commercial use (issue 306)"
)
_BASNET = f"MIT for the code; weights free to use (the author in issue 59); {_DUTS}"
PRESETS = {
    "u2net": Preset(320, "max", False, *_U2NET, **IMAGENET),
    "u2netp": Preset(320, "max", False, *_U2NET, **IMAGENET),
    "isnet": Preset(1024, "255", False, "https://github.com/xuebinqin/DIS", _DIS, (0.5,) * 3, (1.0,) * 3),
    "birefnet": Preset(1024, "255", True, "https://github.com/ZhengPeng7/BiRefNet", _BIREFNET, **IMAGENET),
    "basnet": Preset(256, "max", False, "https://github.com/xuebinqin/BASNet", _BASNET, **IMAGENET),
}


def choose_preset(name: str, custom: dict) -> Preset:
    """The preset `name`, or of `custom` the one that the flags `size`, `mean`, `std` and `sigmoid` describe (None where
    not given); images are then divided by 255. UserError where a flag is absent, of no use, or not for this preset."""
    if name != "custom":
        checks.choice("--preset", name, (*PRESETS, "custom"))
        if foreign := [flag for flag, value in custom.items() if value is not None]:
            raise UserError(f"--{foreign[0]} is for --preset=custom; {name} has its own")
        return PRESETS[name]
    if absent := [f"--{flag}" for flag, value in custom.items() if value is None]:
        raise UserError(f"--preset=custom needs {', '.join(absent)}; all flags, e.g. {_flags(PRESETS['u2net'])}")
    checks.at_least("--size", custom["size"], 1)
    mean, std = _three_numbers("mean", custom["mean"]), _three_numbers("std", custom["std"])
    if not all(0 <= value <= 1 for value in mean):
        raise UserError(f"--mean={_joined(mean)} is not that of images in [0, 1]: divide it, and --std, by 255")
    if not all(value > 0 for value in std):
        raise UserError(f"--std={_joined(std)}: give three numbers above 0, of images in [0, 1]")
    page, licence = "the one that the file comes from", "to be checked there"
    return Preset(custom["size"], "255", custom["sigmoid"], page, licence, mean, std)


def onnx(path: Path, kind: str, preset: Preset, *, name: str = "onnx", more: dict[str, str] | None = None) -> Detector:
    """The model in the ONNX file `path`, used as the preset `kind` says, on the best device of which onnxruntime knows
    (all cores where that is the CPU). Prints a line about it.

    Maps are the model's first output, (1, h, w) or (h, w) for each image, in [0, 1] as it is or after a sigmoid; the
    confidence is a map's maximum. A model with a fixed batch size is given batches of just that size. `name`, and
    `more` of its settings, are the detector's where the file is not simply the user's.

    Raises:
        UserError: onnxruntime is not installed, the file is absent or no ONNX model, or the model does not fit the
            preset; the detector's `detect` raises it where the output is not a map in [0, 1].
    """
    session, wanted = _session(path)
    used = session.get_providers()[0]
    failed = "" if used == wanted else f" ({wanted} could not be started)"
    batch = _fixed_batch(session, path, kind, preset)
    print(
        f"{name}: {path.name} (preset {kind}, {preset.size} px) on {used}{failed}; model page {preset.page}; licence: "
        f"{preset.licence}"
    )

    def detect(images: list[np.ndarray]) -> list[Detection]:
        step = batch or len(images)
        chunks = (np.stack(images[k : k + step]) for k in range(0, len(images), step))
        maps = (saliency for chunk in chunks for saliency in _maps(session, path, preset, chunk, batch))
        over = scaled if preset.stretched else lambda saliency: saliency
        return [Detection(over(saliency), float(saliency.max())) for saliency in maps]

    # Lists, since a store compares its settings with what it reads from JSON.
    settings = {"preset": kind, "size": preset.size, "mean": list(preset.mean), "std": list(preset.std)}
    settings |= {"divide_by": preset.divide_by, "sigmoid": preset.sigmoid, "sha256": _file_hash(path)}
    settings |= ({"stretched": True} if preset.stretched else {}) | (more or {})
    together = max(SMALLEST_BATCH, min(LARGEST_BATCH, BATCH_PIXELS // preset.size**2))
    together = max(batch, together // batch * batch) if batch else together
    return Detector(name, "supervised", settings, lambda i, image: squeezed(image, preset.size), detect, together)


def _maps(
    session: Any, path: Path, preset: Preset, images: UInt8[np.ndarray, "b s s 3"], batch: int | None
) -> Float32[np.ndarray, "b h w"]:
    """At most `batch` images -> their maps in [0, 1]."""
    lacking = (batch or len(images)) - len(images)
    padded = np.concatenate([images, np.repeat(images[-1:], lacking, axis=0)])
    inputs, outputs = session.get_inputs()[0], session.get_outputs()[0]
    try:
        (output,) = session.run([outputs.name], {inputs.name: _prepared(padded, preset).astype(FLOATS[inputs.type])})
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise UserError(
            f"onnxruntime could not run {path} on {len(padded)} images of {preset.size} px: {error}. Take the preset "
            "that belongs to the model, or a machine with more memory"
        ) from None
    maps = output[:, 0] if output.ndim == 4 and output.shape[1] == 1 else output
    if maps.ndim != 3 or len(maps) != len(padded) or not maps.size:
        raise UserError(
            f"{path} gives a first output of shape {output.shape} for {len(padded)} images, not one map each, (batch, "
            "1, height, width) or (batch, height, width): export it with the map as first output"
        )
    maps = maps[: len(images)].astype(np.float32)
    if not np.isfinite(maps).all():
        raise UserError(
            f"{path} gives values that are not finite: take the preset that belongs to the model, or its float32 file "
            "where this one is float16"
        )
    if preset.sigmoid:
        return expit(maps)
    low, high = maps.min(), maps.max()
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise UserError(
            f"{path} gives values from {low:.4g} to {high:.4g}, which look like logits: take its own preset, or "
            f"--preset=custom --sigmoid, in full {_flags(dataclasses.replace(preset, sigmoid=True))}"
        )
    return maps.clip(0, 1)


def _prepared(images: UInt8[np.ndarray, "b s s 3"], preset: Preset) -> Float32[np.ndarray, "b 3 s s"]:
    """What the model takes; a black image is divided by 1."""
    divisor = 255 if preset.divide_by == "255" else images.max(axis=(1, 2, 3), keepdims=True).clip(min=1)
    normalized = (images / np.float32(divisor) - np.float32(preset.mean)) / np.float32(preset.std)
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))


def _session(path: Path) -> tuple[Any, str]:
    """The file's session, on the best provider and, for what that cannot do, the CPU; and that provider."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"--detector=onnx needs onnxruntime ({error}): pip install onnxruntime") from None
    if not path.is_file():
        raise UserError(f"--model={path} is no file. Download or export the model first; nothing is downloaded here")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    # Those that this process may use: on its own onnxruntime would count all of a shared machine's.
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = [f"{provider}ExecutionProvider" for provider in PROVIDERS]
    best = next(name for name in names if name in onnxruntime.get_available_providers())
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(dict.fromkeys([best, names[-1]]))), best
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise UserError(
            f"--model={path} cannot be opened as an ONNX model: {error}. It may be incomplete (fetch or export it "
            f"again), lack its file of weights beside it, or need a newer onnxruntime than {onnxruntime.__version__}"
        ) from None


def _fixed_batch(session: Any, path: Path, name: str, preset: Preset) -> int | None:
    """How many images the model takes at a time, None for any number; UserError where it does not fit the preset."""
    inputs, output = session.get_inputs(), session.get_outputs()[0]
    shape = inputs[0].shape
    channels_first = len(shape) == 4 and _fits(shape[1], 3) and (shape[1] == 3 or shape[3] != 3)
    if len(inputs) != 1 or not channels_first or inputs[0].type not in FLOATS:
        kinds = "; ".join(f"{i.type} of shape ({', '.join(map(str, i.shape))})" for i in inputs)
        raise UserError(
            f"{path} takes {kinds}, not only images (batch, 3, height, width) of float32 or float16: export it with "
            "such an input, channels first"
        )
    if not all(_fits(side, preset.size) for side in shape[2:]):
        fitting = [other for other, p in PRESETS.items() if all(_fits(side, p.size) for side in shape[2:])]
        raise UserError(
            f"{path} takes {shape[2]}×{shape[3]} px, preset {name} gives {preset.size}: take a preset with that size "
            f"({', '.join(fitting) or 'there is none'}), or --preset=custom with the model's --size (square), --mean, "
            "--std and --sigmoid or --nosigmoid"
        )
    if output.type not in FLOATS:
        raise UserError(f"{path} gives {output.type} as first output: export it with a map of float32 or float16 there")
    return shape[0] if isinstance(shape[0], int) else None


def _fits(dimension: int | str | None, wanted: int) -> bool:
    """True of the wanted number, and of names and None, which stand for any size."""
    return not isinstance(dimension, int) or dimension == wanted


def _file_hash(path: Path) -> str:
    """16 hex digits that tell whether a model is the same."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _three_numbers(flag: str, values) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise UserError(f"--{flag}={_joined(values)}: give three numbers, as in --{flag}={_joined(IMAGENET[flag])}")
    return numbers


def _joined(values) -> str:
    return ",".join(map(str, values))


def _flags(preset: Preset) -> str:
    """The flags that give a preset."""
    sigmoid = "--sigmoid" if preset.sigmoid else "--nosigmoid"
    return f"--preset=custom --size={preset.size} --mean={_joined(preset.mean)} --std={_joined(preset.std)} {sigmoid}"
