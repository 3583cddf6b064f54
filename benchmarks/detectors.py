"""The detectors that the benchmarks name."""

from cvsa_jax.data.sources import Source
from cvsa_jax.saliency.detector import Detector
from cvsa_jax.saliency.registry import Options, build


def named_detector(entry: str, source: Source) -> Detector:
    """A detector of the package by its name, or IS-Net as `isnet=FILE`, the ONNX model."""
    name, equals, file = entry.partition("=")
    if name == "isnet":
        return build("onnx", source, Options(model=file, preset="isnet"))
    if equals:
        raise SystemExit(f"{entry}: only isnet takes a file")
    return build(name, source, Options())
