"""Caltech-UCSD Birds-200-2011 in its official layout (also any subset of its classes in the same layout)."""

from pathlib import Path

import numpy as np

from cvsa_jax.data.sources.source import Source, from_files, require_folder
from cvsa_jax.runtime.errors import UserError, some

_HINT = (
    "Get CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/ (the masks are the separate "
    "archive segmentations.tgz), unpack it, and give the folder: --config.data.root=data/CUB_200_2011"
)


def load(root: str) -> Source:
    """Reads `images.txt`, `image_class_labels.txt`, `train_test_split.txt` and `classes.txt` below `root` or below
    `root/CUB_200_2011`. Masks are offered where `segmentations/` lies beside `images/`, boxes where
    `bounding_boxes.txt` does."""
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
    tables = {"image_class_labels.txt": class_of, "train_test_split.txt": is_train}
    if has_boxes := (folder / "bounding_boxes.txt").is_file():
        tables["bounding_boxes.txt"] = _column(folder, "bounding_boxes.txt")
    for table, rows in tables.items():
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
        _boxes(folder, [tables["bounding_boxes.txt"][i] for i in ids]) if has_boxes else None,
    )


def _column(folder: Path, table: str) -> dict[str, str]:
    """The `<id> <value>` rows of one table."""
    try:
        lines = (folder / table).read_text().splitlines()
    except FileNotFoundError:
        raise UserError(f"CUB-200-2011: {folder / table} does not exist. {_HINT}") from None
    rows = [line.split(maxsplit=1) for line in lines if line.strip()]
    if short := [" ".join(row) for row in rows if len(row) < 2]:
        raise UserError(f"CUB-200-2011: {folder / table} has rows without a value: {some(short)}")
    return dict(rows)


def _boxes(folder: Path, rows: list[str]) -> np.ndarray:
    """(N, 4) left, top, width, height in pixels."""
    try:
        return np.array([row.split() for row in rows], float).reshape(len(rows), 4)
    except ValueError as error:
        raise UserError(
            f"CUB-200-2011: {folder / 'bounding_boxes.txt'} has a row that is not an id and four numbers: {error}"
        ) from None
