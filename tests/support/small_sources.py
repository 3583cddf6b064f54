"""Folders and CUB-200-2011 in small, written by the tests, and the specs of views of few pixels."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cvsa_jax.data import decode
from cvsa_jax.data.sources import Source
from cvsa_jax.data.view_spec import ViewSpec

GROUP = 3  # the smallest
CROP = ViewSpec(
    kind="random_resized_crop",
    size=16,
    group=GROUP,
    swap_prob=1.0,
    swapped_views=2,
    source_area=(0.1, 0.6),
    paste_area=(0.2, 0.6),
    hole="size",
    cover=0.95,
    paste="stretch",
    background="different",
    canvas_min=1.0,
    crop_area=(0.2, 1.0),
    where="host",
    stored=None,
    threshold=0.5,
)
SWAP = dataclasses.replace(CROP, kind="saliency_swap")


def memory_source(encoded: Sequence[bytes], labels: np.ndarray | None = None) -> Source:
    """A source of images in memory, with the one split `train`."""
    return Source(
        name="memory",
        names=tuple(f"image{i}.png" for i in range(len(encoded))),
        labels=labels,
        classes=() if labels is None else tuple(map(str, range(labels.max() + 1))),
        splits={"train": np.arange(len(encoded))},
        read=lambda i: encoded[i],
        mask=None,
        identify=lambda kind: hashlib.sha256(b"|".join(encoded)).hexdigest()[:16],
    )


def decoded(encoded: bytes) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(decode.opened(encoded).pixels())


def write_image(path: Path, width: int = 6, height: int = 5, level: int = 100, mode: str = "RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), level if mode == "L" else (level, 30, 60)).save(path)


def write_all(root: Path, *names: str) -> Path:
    for k, name in enumerate(names):
        write_image(root / name, level=10 * k)
    return root


def write_splits(root: Path, columns: str, *rows: str):
    (root / "splits.csv").write_text("\n".join((columns, *rows)) + "\n")


def split_names(source) -> dict[str, list[str]]:
    return {split: [source.names[i] for i in indices] for split, indices in source.splits.items()}


CUB_NAMES = {"1": "001.Owl/a.jpg", "2": "001.Owl/b.jpg", "3": "002.Wren/c.jpg", "4": "002.Wren/d.jpg"}
CUB_TABLES = {
    "images.txt": CUB_NAMES,
    "image_class_labels.txt": {"1": "1", "2": "1", "3": "2", "4": "2"},
    "train_test_split.txt": {"1": "1", "2": "0", "3": "0", "4": "1"},
    "classes.txt": {"1": "001.Owl", "2": "002.Wren"},
}


def write_cub(root: Path, *, segmentations: bool = False) -> Path:
    write_all(root / "images", *CUB_NAMES.values())
    for table, rows in CUB_TABLES.items():
        (root / table).write_text("".join(f"{k} {v}\n" for k, v in rows.items()))
    if segmentations:
        for name in CUB_NAMES.values():
            write_image((root / "segmentations" / name).with_suffix(".png"), level=204, mode="L")
    return root
