"""Cross-View Saliency Alignment (arXiv 2106.15788) in JAX/Flax. From Python: the names of `__all__`, which `api.py`
documents."""

import os

# Read by TensorFlow, which writes for TensorBoard, and XLA when they are first imported: only errors are printed, and
# no notice about oneDNN.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

__all__ = [
    "Backbone",
    "Evaluator",
    "SaliencyStore",
    "UserError",
    "load_backbone",
    "load_config",
    "load_source",
    "train",
]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str):
    """The names of `api.py` are imported when first asked for: the commands answer a wrong flag without them."""
    if name not in __all__:
        raise AttributeError(f"module 'cvsa_jax' has no attribute {name!r}")
    import cvsa_jax.api as api

    return vars(api)[name]
