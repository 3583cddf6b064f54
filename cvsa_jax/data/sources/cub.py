"""Caltech-UCSD Birds-200-2011 in its official layout (also any subset of its classes in the same layout)."""

from pathlib import Path

import numpy as np

from cvsa_jax.data.sources.source import Source, from_files, require_folder
from cvsa_jax.errors import UserError

_HINT = (
    "Get CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/ (the masks are the separate "
    "archive segmentations.tgz), unpack it, and give the folder: --config.data.root=data/CUB_200_2011"
)


def load(root: str) -> Source:
    """Reads `images.txt`, `image_class_labels.txt`, `train_test_split.txt` and `classes.txt` below `root` or below
    `root/CUB_200_2011`. Masks are offered where `segmentations/` lies beside `images/`."""
    folder = require_folder(root, "CUB-200-2011", _HINT)
    if (folder / "CUB_200_2011").is_dir():
        folder = folder / "CUB_200_2011"
    names = _column(folder, "images.txt")
    if not names:
        raise UserError(f"CUB-200-2011: {folder / 'images.txt'} lists no image. {_HINT}")
    classes = _column(folder, "classes.txt")
    class_of = _column(folder, "image_class_labels.txt")
    is_train = _column(folder, "train_test_split.txt")
    ids = list(names)
    for table, rows in (("image_class_labels.txt", class_of), ("train_test_split.txt", is_train)):
        if rows.keys() != names.keys():
            raise UserError(f"CUB-200-2011: {folder / table} does not list the same image ids as images.txt")
    rank = {class_id: k for k, class_id in enumerate(classes)}
    train = np.array([is_train[i] == "1" for i in ids])
    segmentations = folder / "segmentations"
    mask_path = (lambda name: (segmentations / name).with_suffix(".png")) if segmentations.is_dir() else None
    return from_files(
        "cub",
        folder / "images",
        [names[i] for i in ids],
        np.array([rank[class_of[i]] for i in ids], np.int32),
        classes.values(),
        {"train": np.flatnonzero(train), "test": np.flatnonzero(~train)},
        mask_path,
    )


def _column(folder: Path, table: str) -> dict[str, str]:
    """The `<id> <value>` rows of one table."""
    try:
        lines = (folder / table).read_text().splitlines()
    except FileNotFoundError:
        raise UserError(f"CUB-200-2011: {folder / table} does not exist. {_HINT}") from None
    return dict(line.split(maxsplit=1) for line in lines if line.strip())
