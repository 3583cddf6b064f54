"""Files of ResNet weights under torchvision's names, without PyTorch."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

BLOCKS = {8: (1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def torch_weights(depth: int, width: int, *, stem: int = 7, prefix: str = "", seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a ResNet as torchvision's `state_dict()` names and lays them out, with its classifier."""
    rng = np.random.default_rng(seed)
    weights = {}

    def conv(name, out, inputs, size):
        spread = (2 / (inputs * size**2)) ** 0.5
        weights[f"{name}.weight"] = spread * rng.standard_normal((out, inputs, size, size))

    def norm(name, channels):
        weights[f"{name}.weight"] = rng.uniform(0.5, 1.2, channels)
        weights[f"{name}.bias"] = rng.normal(0, 0.3, channels)
        weights[f"{name}.running_mean"] = rng.normal(0, 0.3, channels)
        weights[f"{name}.running_var"] = rng.uniform(0.3, 1.5, channels)
        weights[f"{name}.num_batches_tracked"] = np.array(1234, np.int64)

    conv("conv1", width, 3, stem)
    norm("bn1", width)
    inputs = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        for block in range(blocks):
            name, channels = f"layer{stage + 1}.{block}", width * 2**stage
            # (name, kernel, output channels): a bottleneck from ResNet-50 on.
            parts = [("conv1", 3, channels), ("conv2", 3, channels)]
            if depth >= 50:
                parts = [("conv1", 1, channels), ("conv2", 3, channels), ("conv3", 1, 4 * channels)]
            size_in = inputs
            for part, size, out in parts:
                conv(f"{name}.{part}", out, size_in, size)
                norm(f"{name}.{part.replace('conv', 'bn')}", out)
                size_in = out
            if block == 0 and (stage > 0 or size_in != inputs):
                conv(f"{name}.downsample.0", size_in, inputs, 1)
                norm(f"{name}.downsample.1", size_in)
            inputs = size_in
    weights["fc.weight"], weights["fc.bias"] = rng.standard_normal((10, inputs)), rng.standard_normal(10)
    floats = {name: np.asarray(w, np.float32 if w.dtype == np.float64 else w.dtype) for name, w in weights.items()}
    return {prefix + name: array for name, array in floats.items()}


def write(path: Path, weights: dict[str, np.ndarray]) -> Path:
    save_file(weights, path) if path.suffix == ".safetensors" else np.savez(path, **weights)
    return path
