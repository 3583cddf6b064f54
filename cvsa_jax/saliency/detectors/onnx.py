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
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8
from scipy.special import expit

from cvsa_jax.runtime import checks
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detector import Detection, Detector, squeezed

# Best first. TensorRT is left out: it compiles the model for minutes at every start.
PROVIDERS = (
    "CUDAExecutionProvider",
    "ROCMExecutionProvider",
    "CoreMLExecutionProvider",
    "DmlExecutionProvider",
    "CPUExecutionProvider",
)
LARGEST_BATCH, SMALLEST_BATCH = 8, 2  # images that are given to the model together
BATCH_PIXELS = LARGEST_BATCH * 320**2  # of them, about
RANGE_TOLERANCE = 1e-3  # by which outputs may leave [0, 1] without being taken for logits: float16 rounds by 5e-4
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
IMAGENET: dict[str, tuple[float, float, float]] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclasses.dataclass(frozen=True)
class Preset:
    """What a model takes and gives.

    Attributes:
        size: side of the square input, px.
        mean, std: of each channel (R, G, B), of images in [0, 1].
        divide_by: what brings an image from [0, 255] to [0, 1]: 255, or the image's own maximum.
        sigmoid: the model's output are logits.
        page: where the model's project is described.
        licence: what the project says of the licence of code and weights.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    divide_by: Literal["255", "max"]
    sigmoid: bool
    page: str
    licence: str


_U2NET = Preset(
    size=320,
    **IMAGENET,
    divide_by="max",
    sigmoid=False,
    page="https://github.com/xuebinqin/U-2-Net",
    licence="Apache-2.0 for code and weights (the author in issue 208); the training images (DUTS) have their own"
    " terms",
)
PRESETS: dict[str, Preset] = {
    "u2net": _U2NET,
    "u2netp": _U2NET,
    "isnet": Preset(
        size=1024,
        mean=(0.5, 0.5, 0.5),
        std=(1.0, 1.0, 1.0),
        divide_by="255",
        sigmoid=False,
        page="https://github.com/xuebinqin/DIS",
        licence="Apache-2.0 for the code; not stated for the weights, and the training images (DIS5K) have their own "
        "terms: check on the page",
    ),
    "birefnet": Preset(
        size=1024,
        **IMAGENET,
        divide_by="255",
        sigmoid=True,
        page="https://github.com/ZhengPeng7/BiRefNet",
        licence="MIT for code and weights (the author in issue 316); some training images exclude commercial use "
        "(issue 306)",
    ),
    "basnet": Preset(
        size=256,
        **IMAGENET,
        divide_by="max",
        sigmoid=False,
        page="https://github.com/xuebinqin/BASNet",
        licence="MIT for the code; weights free to use (the author in issue 59); the training images (DUTS) have their "
        "own terms",
    ),
}


def choose_preset(name: str, custom: dict) -> Preset:
    """The preset `name`, or of `custom` the one that the flags `size`, `mean`, `std` and `sigmoid` describe (None where
    not given); images are then divided by 255.

    Raises:
        UserError: there is no such preset, or a flag is absent, of no use, or not for this preset; names it.
    """
    if name != "custom":
        checks.choice("--preset", name, (*PRESETS, "custom"))
        if given := [flag for flag, value in custom.items() if value is not None]:
            raise UserError(f"--{given[0]} is for --preset=custom; {name} has its own")
        return PRESETS[name]
    if absent := [f"--{flag}" for flag, value in custom.items() if value is None]:
        raise UserError(f"--preset=custom needs {', '.join(absent)}; all flags, for example: {_flags(_U2NET)}")
    size, mean, std = custom["size"], _three_numbers("mean", custom["mean"]), _three_numbers("std", custom["std"])
    checks.at_least("--size", size, 1)
    if not all(0 <= value <= 1 for value in mean):
        raise UserError(f"--mean={_joined(mean)} is not that of images in [0, 1]: divide it, and --std, by 255")
    if not all(value > 0 for value in std):
        raise UserError(f"--std={_joined(std)}: give three numbers above 0, of images in [0, 1]")
    return Preset(size, mean, std, "255", custom["sigmoid"], "the one that the file comes from", "to be checked there")


def onnx(path: Path, name: str, preset: Preset) -> Detector:
    """The model in the ONNX file `path`, used as `preset` says, on the best device of which onnxruntime knows (all
    cores where that is the CPU). Prints a line about it.

    Maps are the model's first output, (1, h, w) or (h, w) for each image, in [0, 1] as it is or after a sigmoid; the
    confidence is a map's maximum. A model with a fixed batch size is given batches of just that size.

    Args:
        name: the preset's, as in `--preset`.

    Raises:
        UserError: onnxruntime is not installed, the file is absent or no ONNX model, or the model does not fit the
            preset; the detector's `detect` raises it where the output is not a map in [0, 1].
    """
    runtime = _runtime()
    if not path.is_file():
        raise UserError(f"--model={path} is no file. Download or export the model first; nothing is downloaded here")
    provider = next(p for p in PROVIDERS if p in runtime.get_available_providers())
    session = _session(runtime, path, provider)
    model = _Model(session, path, preset, _fixed_batch(session, path, name, preset))
    used = session.get_providers()[0]
    failed = "" if used == provider else f" ({provider} could not be started)"
    print(
        f"onnx: {path.name} (preset {name}, {preset.size} px) on {used}{failed}; model page {preset.page}; "
        f"licence: {preset.licence}"
    )
    return Detector(
        name="onnx",
        supervision="supervised",
        settings={
            "preset": name,
            "size": preset.size,
            # Lists, since a store compares its settings with what it reads from JSON.
            "mean": list(preset.mean),
            "std": list(preset.std),
            "divide_by": preset.divide_by,
            "sigmoid": preset.sigmoid,
            "sha256": _file_hash(path),
        },
        prepare=lambda i, image: squeezed(image, preset.size),
        detect=model.detect,
        batch_size=_batch_size(preset.size, model.batch),
    )


@dataclasses.dataclass(frozen=True)
class _Model:
    """A session with what is known of its model; `batch`: how many images it takes at a time, None for any number."""

    session: Any
    path: Path
    preset: Preset
    batch: int | None

    def detect(self, images: list[np.ndarray]) -> list[Detection]:
        """Squeezed images -> their detections, in order."""
        step = self.batch or len(images)
        chunks = (np.stack(images[k : k + step]) for k in range(0, len(images), step))
        return [Detection(saliency, float(saliency.max())) for chunk in chunks for saliency in self._maps(chunk)]

    def _maps(self, images: UInt8[np.ndarray, "b s s 3"]) -> Float32[np.ndarray, "b h w"]:
        """At most `batch` images -> their maps in [0, 1]."""
        lacking = (self.batch or len(images)) - len(images)
        padded = np.concatenate([images, np.repeat(images[-1:], lacking, axis=0)])
        output = self._run(preprocessed(padded, self.preset))
        maps = output[:, 0] if output.ndim == 4 and output.shape[1] == 1 else output
        if maps.ndim != 3 or len(maps) != len(padded) or not maps.size:
            raise UserError(
                f"{self.path} gives a first output of shape {output.shape} for {len(padded)} images, not one map "
                "each, (batch, 1, height, width) or (batch, height, width): export it with the map as first output"
            )
        return self._probabilities(maps[: len(images)])

    def _run(self, images: Float32[np.ndarray, "b 3 s s"]) -> np.ndarray:
        """The first output, as float32, of whatever shape."""
        (taken,), (given, *_) = self.session.get_inputs(), self.session.get_outputs()
        try:
            (output,) = self.session.run([given.name], {taken.name: images.astype(FLOATS[taken.type])})
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise UserError(
                f"onnxruntime could not run {self.path} on {len(images)} images of {self.preset.size} px: {error}. "
                "Take the preset that belongs to the model, or a machine with more memory"
            ) from None
        return output.astype(np.float32)

    def _probabilities(self, output: Float32[np.ndarray, "b h w"]) -> Float32[np.ndarray, "b h w"]:
        """What the model gives for some images -> values in [0, 1]."""
        if not np.isfinite(output).all():
            raise UserError(
                f"{self.path} gives values that are not finite: take the preset that belongs to the model, or its "
                "float32 file where this one is float16"
            )
        if self.preset.sigmoid:
            return expit(output)
        low, high = output.min(), output.max()
        if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
            raise UserError(
                f"{self.path} gives values from {low:.4g} to {high:.4g}, which look like logits: take its own preset, "
                f"or --preset=custom --sigmoid, in full {_flags(self.preset, sigmoid=True)}"
            )
        return output.clip(0, 1)


def preprocessed(images: UInt8[np.ndarray, "b s s 3"], preset: Preset) -> Float32[np.ndarray, "b 3 s s"]:
    """What the model takes."""
    # A black image is divided by 1.
    divisor = 255 if preset.divide_by == "255" else images.max(axis=(1, 2, 3), keepdims=True).clip(min=1)
    mean, std = np.float32(preset.mean), np.float32(preset.std)
    normalized = (images / np.float32(divisor) - mean) / std
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))


def _runtime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"--detector=onnx needs onnxruntime ({error}): pip install onnxruntime") from None
    return onnxruntime


def _session(runtime: ModuleType, path: Path, provider: str) -> Any:
    """The file's session, on `provider` and, for what that cannot do, the CPU; UserError where there is no model."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = _cores()
    providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
    try:
        return runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise UserError(
            f"--model={path} cannot be opened as an ONNX model: {error}. It may be incomplete (fetch or export it "
            f"again), lack its file of weights beside it, or need a newer onnxruntime than {runtime.__version__}"
        ) from None


def _cores() -> int:
    """Those that this process may use: on its own onnxruntime would count all of a shared machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def _batch_size(size: int, fixed: int | None) -> int:
    """Images of `size` px for `detect` at a time: a multiple of the model's own batch size."""
    some = max(SMALLEST_BATCH, min(LARGEST_BATCH, BATCH_PIXELS // size**2))
    return max(fixed, some // fixed * fixed) if fixed else some


def _file_hash(path: Path) -> str:
    """16 hex digits that tell whether a model is the same."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _three_numbers(flag: str, values: Sequence[str | float]) -> tuple[float, float, float]:
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise UserError(f"--{flag}={_joined(values)}: give three numbers, as in --{flag}={_joined(IMAGENET[flag])}")
    return tuple(numbers)


def _joined(values: Sequence[str | float]) -> str:
    return ",".join(map(str, values))


def _flags(preset: Preset, **changed: Any) -> str:
    """The flags that give a preset, with some of its attributes changed."""
    preset = dataclasses.replace(preset, **changed)
    sigmoid = "--sigmoid" if preset.sigmoid else "--nosigmoid"
    return f"--preset=custom --size={preset.size} --mean={_joined(preset.mean)} --std={_joined(preset.std)} {sigmoid}"
