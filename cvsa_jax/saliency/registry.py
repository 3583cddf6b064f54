"""The detectors by name, each with the flags that it takes.

What a detector needs is imported when it is built, so that `--help` and a wrong flag are answered at once.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cvsa_jax.data.sources import Source
from cvsa_jax.runtime import checks
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detector import SUPERVISIONS, Detector


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
    checks.choice("--detector", name, DETECTORS)
    entry = DETECTORS[name]
    flags = {flag for flag, value in dataclasses.asdict(options).items() if value is not None}
    if foreign := flags - {*entry.needed, *entry.optional}:
        raise UserError(f"--detector={name} does not take {', '.join(f'--{flag}' for flag in sorted(foreign))}")
    if absent := [flag for flag in entry.needed if flag not in flags]:
        examples = ", ".join(f"--{flag}={EXAMPLES.get(f'{name} {flag}', EXAMPLES.get(flag))}" for flag in absent)
        raise UserError(f"--detector={name} needs {examples}")
    return entry.make(source, options)


def _masks(source: Source, options: Options) -> Detector:
    from cvsa_jax.saliency.detectors.annotation import masks

    return masks(source)


def _boxes(source: Source, options: Options) -> Detector:
    from cvsa_jax.saliency.detectors.annotation import boxes

    return boxes(source)


def _center(source: Source, options: Options) -> Detector:
    from cvsa_jax.saliency.detectors.annotation import center

    return center(source)


def _folder(source: Source, options: Options) -> Detector:
    from cvsa_jax.saliency.detectors.annotation import folder

    checks.choice("--supervision", options.supervision, SUPERVISIONS)
    return folder(source, Path(options.maps).expanduser(), options.supervision)


def _unet(source: Source, options: Options) -> Detector:
    from cvsa_jax.saliency.detectors.unet import unet

    return unet(Path(options.run).expanduser())


def _encoder(source: Source, options: Options) -> Detector:
    from cvsa_jax.saliency.detectors.encoder import ENCODER_MAP, encoder

    return encoder(Path(options.run).expanduser(), options.encoder_map or ENCODER_MAP)


def _rbd(source: Source, options: Options) -> Detector:
    from cvsa_jax.saliency.detectors.rbd import detector

    return detector()


def _onnx(source: Source, options: Options) -> Detector:
    from cvsa_jax.saliency.detectors.onnx import choose_preset, onnx

    custom = {"size": options.size, "mean": options.mean, "std": options.std, "sigmoid": options.sigmoid}
    return onnx(Path(options.model).expanduser(), options.preset, choose_preset(options.preset, custom))


def _rembg(source: Source, options: Options) -> Detector:
    from cvsa_jax.saliency.detectors.packaged import rembg

    return rembg(options.model)


def _focus(source: Source, options: Options) -> Detector:
    from cvsa_jax.saliency.detectors.packaged import focus

    return focus()


class Entry(NamedTuple):
    """How a detector is made, the flags it needs, and those it may have."""

    make: Callable[[Source, Options], Detector]
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


DETECTORS = {
    "masks": Entry(_masks),
    "boxes": Entry(_boxes),
    "folder": Entry(_folder, ("maps", "supervision")),
    "unet": Entry(_unet, ("run",)),
    "onnx": Entry(_onnx, ("model", "preset"), ("size", "mean", "std", "sigmoid")),
    "rembg": Entry(_rembg, ("model",)),
    "focus": Entry(_focus),
    "encoder": Entry(_encoder, ("run",), ("encoder_map",)),
    "rbd": Entry(_rbd),
    "center": Entry(_center),
}
EXAMPLES = {
    "rembg model": "isnet-general-use",
    "maps": "my_maps",
    "supervision": "human",
    "run": "runs/unet",
    "model": "u2net.onnx",
    "preset": "u2net",
}
