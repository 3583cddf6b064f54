"""A data set of ten images in memory, with masks, and the store of its maps in files of four."""

import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image

from cvsa_jax.data.sources import Source
from cvsa_jax.data.sources.source import fingerprint
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors.annotation import masks
from cvsa_jax.saliency.store import GRID

N, SHARD = 10, 4


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def rectangle(i: int) -> np.ndarray:
    """Image i's mask, two pixels to the cell: a rectangle that moves with i; image 3's is empty, image 4's full."""
    mask = np.zeros((2 * GRID, 2 * GRID), np.uint8)
    mask[2 * i : 2 * i + 40, 4 * i : 4 * i + 20] = 255
    return np.full_like(mask, 255 if i == 4 else 0) if i in (3, 4) else mask


def source_of(n: int = N, *, bad: tuple[int, ...] = (), name: str = "memory") -> Source:
    encoded = [b"no image" if i in bad else png(i) for i in range(n)]
    names = tuple(f"image{i}.png" for i in range(n))
    return Source(
        name=name,
        names=names,
        labels=None,
        classes=(),
        splits={"train": np.arange(n)},
        read=lambda i: encoded[i],
        mask=rectangle,
        identify=lambda kind: fingerprint(names, [len(e) for e in encoded]),
    )


def make(source: Source, folder: Path, detector=None, on_bad_image: str = "stop", threshold: float = 0.5) -> dict:
    return compute(source, detector or masks(source), folder, threshold=threshold, on_bad_image=on_bad_image)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


def watched(source: Source, *, dies_at: int | None = None, error: BaseException | None = None):
    """The mask detector, with the list of images it was asked for; it dies at one of them."""
    seen = []
    detector = masks(source)

    def prepare(i: int, image: np.ndarray) -> np.ndarray:
        seen.append(i)
        if i == dies_at:
            raise error or KeyboardInterrupt
        return detector.prepare(i, image)

    return dataclasses.replace(detector, prepare=prepare), seen


def detected(detector, i: int = 0) -> np.ndarray:
    """The map of one image, whose pixels do not matter."""
    (detection,) = detector.detect([detector.prepare(i, np.zeros((6, 8, 3), np.uint8))])
    return detection.saliency
