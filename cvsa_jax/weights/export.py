"""A trained backbone as files that other programs read."""

import io
import json
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from cvsa_jax.evaluation.encode import pooled_by_head
from cvsa_jax.evaluation.look import LookHead
from cvsa_jax.evaluation.protocol import EvalSpec
from cvsa_jax.models.siamese import TARGET_PARTS
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath, write_atomically, write_json_atomically
from cvsa_jax.training import photometric
from cvsa_jax.weights import look_file, torchvision
from cvsa_jax.weights.files import ABOUT
from cvsa_jax.weights.frozen import Frozen

FORMATS = ("safetensors", "npz", "stablehlo", "onnx")
# The converter asks for an older Orbax than training does, but does not use it; pip would exchange it.
CONVERTER = "pip install onnx onnx-ir && pip install --no-deps jax2onnx==0.17.1"
OPSET = 18  # of ONNX: that of PyTorch's own export
PLATFORMS = ("cpu", "cuda", "tpu")
PREPROCESS = "preprocess.json"
_BACKBONE = TARGET_PARTS[0]


class Exported(NamedTuple):
    """The files that were written, and the tensors in them."""

    files: list[str]
    tensors: dict[str, np.ndarray]


def tensors_of(network: Frozen, head: LookHead | None = None) -> dict[str, np.ndarray]:
    """Backbone, and of a fine-tuned run the classifier, under torchvision's names; the look head under `look.…`."""
    params, stats = network.network.params, network.network.batch_stats
    tensors = torchvision.from_backbone(params[_BACKBONE], stats[_BACKBONE])
    if "head" in params:
        tensors["fc.weight"] = np.asarray(params["head"]["kernel"]).T.copy()
        tensors["fc.bias"] = np.asarray(params["head"]["bias"])
    return tensors if head is None else tensors | look_file.tensors_of(head)


def check(formats: tuple[str, ...]) -> None:
    """UserError at a format that is not known, or whose converter is not installed."""
    if not formats or set(formats) - set(FORMATS):
        raise UserError(f"--formats={','.join(formats)}: known are {', '.join(FORMATS)}")
    if "onnx" in formats:
        _converter()


def write(
    network: Frozen,
    spec: EvalSpec,
    out: AnyPath,
    formats: tuple[str, ...],
    head: LookHead | None = None,
    about_head: dict[str, str] | None = None,
) -> Exported:
    """Writes `out/model.<format>` of each format, and `out/preprocess.json`; features are averaged, or pooled by
    `head`, of which its file says `about_head`."""
    model, tensors, files = network.model, tensors_of(network, head), []
    about = {"format": "pt", "stem": model.stem, "padding": model.padding, "depth": str(model.depth)}
    about |= {"size": str(spec.size), "resize": str(spec.resize), "about": network.about}
    about |= {name: told for name, told in (about_head or {}).items() if name.startswith("look.")}
    out.mkdir(parents=True, exist_ok=True)
    for kind in formats:
        files.append(f"model.{kind}")
        content = _encoded(kind, network, spec, tensors, about, head)
        write_atomically(out / files[-1], lambda file, content=content: file.write(content))
    write_json_atomically(out / PREPROCESS, preprocess(spec))
    return Exported([*files, PREPROCESS], tensors)


def preprocess(spec: EvalSpec) -> dict:
    """How an image becomes the network's input."""
    return {
        "resize": spec.resize,
        "resize_what": "the shorter side, in px",
        "crop": spec.size,
        "crop_where": "centre",
        "interpolation": "bilinear, antialiased",
        "channels": "RGB",
        "range": [0, 1],
        "mean": list(photometric.MEAN),
        "std": list(photometric.STD),
    }


def _encoded(
    kind: str, network: Frozen, spec: EvalSpec, tensors: dict, about: dict[str, str], head: LookHead | None
) -> bytes:
    if kind == "safetensors":
        from safetensors.numpy import save

        return save(tensors, about)
    if kind == "npz":
        content = io.BytesIO()
        np.savez(content, **tensors, **{ABOUT: np.array(json.dumps(about))})
        return content.getvalue()
    return onnx(network, spec, head) if kind == "onnx" else stablehlo(network, spec, head)


def stablehlo(network: Frozen, spec: EvalSpec, head: LookHead | None = None) -> bytes:
    """The function from images (b, size, size, 3) uint8, for any b, to features (b, C) float32, with its weights in
    it, as `jax.export.deserialize` reads it, for CPU, GPU and TPU."""
    batch = jax_export.symbolic_shape("b")
    exported = jax_export.export(jax.jit(_features(network, head)), platforms=PLATFORMS)
    return bytes(exported(_images(batch, spec)).serialize())


def onnx(network: Frozen, spec: EvalSpec, head: LookHead | None = None) -> bytes:
    """The same function as an ONNX model of opset OPSET, from `images` to `features`, in float32."""
    to_onnx = _converter()
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)  # it warns of what it could convert besides
    model = to_onnx(
        # ONNX Runtime has no bfloat16 convolution on a CPU.
        _features(network._replace(model=network.model.clone(dtype=jnp.float32)), head),
        inputs=[_images(("b",), spec)],
        model_name="cvsa_jax",
        input_names=["images"],
        output_names=["features"],
        return_mode="proto",
        opset=OPSET,
    )
    return model.SerializeToString()


def _converter() -> Callable:
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError(f"--formats=onnx needs the converter jax2onnx ({error}): {CONVERTER}") from None
    return to_onnx


def _features(network: Frozen, head: LookHead | None) -> Callable[[jax.Array], jax.Array]:
    variables = jax.tree.map(np.asarray, network.network.variables)

    def features(images: jax.Array) -> jax.Array:
        views = photometric.normalize(photometric.to_float(images))
        cells, averaged = network.model.apply(variables, views, method="features")
        return averaged if head is None else pooled_by_head(cells.astype(jnp.float32), jnp.asarray(head.vector))

    return features


def _images(batch: tuple, spec: EvalSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*batch, spec.size, spec.size, 3), jnp.uint8)
