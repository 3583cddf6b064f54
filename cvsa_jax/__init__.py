"""Cross-View Saliency Alignment (arXiv 2106.15788) in JAX/Flax. From Python: the names of `__all__`, which `api.py`
documents."""

import os
import platform
from importlib import metadata, util

# Read by TensorFlow, which makes the host's views and writes for TensorBoard, and by XLA when they are first imported:
# they print nothing that Python is told as well, and no notice about oneDNN.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# On a CPU, XLA of JAX 0.10 and 0.11 gives convolutions, matrix products and sums to YNNPACK, which is faster than its
# own code at the last two and slower at most of the first (measured on x86: benchmarks/RESULTS.md). Nobody else is
# asked: an XLA that does not know a flag ends the process, and a TPU's library has an XLA of its own. Flags that do
# not begin with a dash are the name of a file of them, which nothing can follow.
_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
_flags = os.environ.get("XLA_FLAGS", "").strip()
_measured = platform.machine() in ("x86_64", "AMD64") and metadata.version("jaxlib").startswith(("0.10.", "0.11."))
_open = _LIBRARY not in _flags and _flags[:1] in ("", "-")
if _measured and _open and util.find_spec("libtpu") is None:
    _kinds = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    os.environ["XLA_FLAGS"] = f"{_flags} --{_LIBRARY}={_kinds}".strip()

__all__ = [
    "Backbone",
    "Evaluator",
    "SaliencyStore",
    "UserError",
    "load_backbone",
    "load_config",
    "load_source",
    "train",
    "views",
]
__version__ = "1.0.0"


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str):
    """The names of `api.py` are imported when first asked for: the commands answer a wrong flag without them."""
    if name not in __all__:
        raise AttributeError(f"module 'cvsa_jax' has no attribute {name!r}")
    import cvsa_jax.api as api

    return vars(api)[name]
