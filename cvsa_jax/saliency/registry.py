"""The detectors by name, each with the flags that it takes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from cvsa_jax.data.sources import Source
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detector import SUPERVISIONS, Detector
from cvsa_jax.saliency.detectors import annotation, rbd
from cvsa_jax.saliency.detectors.network import ENCODER_MAP, encoder, unet
from cvsa_jax.saliency.detectors.onnx import PRESETS, custom_preset, onnx


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of the command; None where not given. Which detector takes which is said in DETECTORS."""

    maps: str | None = None
    supervision: str | None = None
    run: str | None = None
    encoder_map: str | None = None
    model: str | None = None
    preset: str | None = None
    size: int | None = None
    mean: list[str] | None = None
    std: list[str] | None = None
    sigmoid: bool | None = None


def build(name: str, source: Source, options: Options) -> Detector:
    """The detector `name`, ready for the images of `source`.

    Raises:
        UserError: it lacks a flag, does not take one that is given, or cannot be had.
    """
    if name not in DETECTORS:
        raise UserError(f"--detector={name} is unknown; take one of {', '.join(DETECTORS)}")
    make, needed, optional = DETECTORS[name]
    given = {field: value for field, value in dataclasses.asdict(options).items() if value is not None}
    if foreign := given.keys() - {*needed, *optional}:
        raise UserError(f"--detector={name} does not take {', '.join(f'--{flag}' for flag in sorted(foreign))}")
    if absent := [flag for flag in needed if flag not in given]:
        examples = ", ".join(f"--{flag}={EXAMPLES[flag]}" for flag in absent)
        raise UserError(f"--detector={name} needs {examples}")
    return make(source, options)


def _folder(source: Source, options: Options) -> Detector:
    if options.supervision not in SUPERVISIONS:
        raise UserError(f"--supervision={options.supervision} is unknown; take one of {', '.join(SUPERVISIONS)}")
    return annotation.folder(source, Path(options.maps).expanduser(), options.supervision)


def _onnx(source: Source, options: Options) -> Detector:
    del source
    custom = {"size": options.size, "mean": options.mean, "std": options.std, "sigmoid": options.sigmoid}
    if options.preset == "custom":
        preset = custom_preset(**custom)
    elif options.preset not in PRESETS:
        raise UserError(f"--preset={options.preset} is unknown; take one of {', '.join(PRESETS)}, custom")
    elif given := [flag for flag, value in custom.items() if value is not None]:
        raise UserError(f"--{given[0]} is for --preset=custom; {options.preset} has its own")
    else:
        preset = PRESETS[options.preset]
    return onnx(Path(options.model).expanduser(), options.preset, preset)


def _encoder(source: Source, options: Options) -> Detector:
    del source
    return encoder(Path(options.run), options.encoder_map or ENCODER_MAP)


# name -> (builder, the flags it needs, the flags it may have)
DETECTORS: dict[str, tuple[Callable[[Source, Options], Detector], tuple[str, ...], tuple[str, ...]]] = {
    "masks": (lambda source, options: annotation.masks(source), (), ()),
    "boxes": (lambda source, options: annotation.boxes(source), (), ()),
    "folder": (_folder, ("maps", "supervision"), ()),
    "unet": (lambda source, options: unet(Path(options.run)), ("run",), ()),
    "onnx": (_onnx, ("model", "preset"), ("size", "mean", "std", "sigmoid")),
    "encoder": (_encoder, ("run",), ("encoder_map",)),
    "rbd": (lambda source, options: rbd.detector(), (), ()),
    "center": (lambda source, options: annotation.center(source), (), ()),
}
EXAMPLES = {
    "maps": "my_maps",
    "supervision": "human",
    "run": "runs/unet",
    "model": "u2net.onnx",
    "preset": "u2net",
}
