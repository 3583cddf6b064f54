"""Cross-View Saliency Alignment (arXiv 2106.15788) in JAX/Flax."""

import os

# Read by TensorFlow and XLA when they are first imported: only errors are printed, and the notice about oneDNN,
# which the input pipeline does not use, is not.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

__version__ = "0.1.0"
