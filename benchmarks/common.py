"""What the benchmarks share."""

import subprocess

import numpy as np


def commit() -> str:
    """The commit that is measured, with `-dirty` where files differ from it."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def synthetic_batch(batch_size: int, size: int) -> dict[str, np.ndarray]:
    """Random views and masks in the shapes that the input pipeline gives."""
    rng = np.random.default_rng(0)
    shapes = dict.fromkeys(("view1", "view2"), (size, size, 3)) | dict.fromkeys(
        ("mask1", "mask2"), (size // 4, size // 4)
    )
    batch = {name: rng.integers(0, 256, (batch_size, *shape), dtype=np.uint8) for name, shape in shapes.items()}
    places = np.arange(batch_size, dtype=np.uint32)
    return batch | {"position": np.stack([np.zeros_like(places), places], 1)}
