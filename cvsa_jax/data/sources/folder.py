"""A plain folder of images: flat = unlabelled, sub-folders = classes; optional `masks/` and `splits.csv`."""

import collections
import csv
from pathlib import Path

import numpy as np

from cvsa_jax.data.sources.source import Source, from_files, require_folder
from cvsa_jax.runtime.errors import UserError, some

READABLE = {".jpg", ".jpeg", ".png", ".bmp", ".gif"}
OTHER_IMAGES = {".webp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2"}
_HINT = "Give a folder of images: --config.data.root=my_images (README, section 'Your own images')"
SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "test", "validation": "test"}


def load(root: str) -> Source:
    """Reads the images below `root/images`, or below `root` where there is no `images` folder.

    Classes are the first-level sub-folders; a flat folder is unlabelled. `root/splits.csv` (columns `image`, `split`
    and optionally `label`, `image` relative to the image folder) names the splits; without it, sub-folders called
    `train` and `test` or `val` do; without these, every image is in `train`. `root/masks/` mirrors the image folder
    with PNG masks; `root/boxes.csv` (columns `image,x,y,width,height`, in pixels) gives each image a box.
    """
    folder = require_folder(root, "image folder", _HINT)
    images = folder / "images" if (folder / "images").is_dir() else folder
    files = sorted(p.relative_to(images) for p in images.rglob("*") if p.is_file())
    if images == folder:
        files = [p for p in files if p.parts[0] != "masks"]
    foreign = [str(p) for p in files if p.suffix.lower() in OTHER_IMAGES]
    if foreign:
        raise UserError(f"{len(foreign)} images in {images} must be converted to JPEG or PNG first: {some(foreign)}")
    names = [p.as_posix() for p in files if p.suffix.lower() in READABLE]
    if not names:
        raise UserError(f"no image ({', '.join(sorted(READABLE))}) in {images}. {_HINT}")
    if (folder / "splits.csv").is_file():
        names, splits, label_names = _read_splits(folder / "splits.csv", images, names)
    else:
        names, splits, label_names = _splits_from_folders(names)
    labels, classes = None, ()
    if label_names is not None:
        classes = sorted(set(label_names))
        rank = {c: k for k, c in enumerate(classes)}
        labels = np.array([rank[c] for c in label_names], np.int32)
    masks = folder / "masks"
    mask_path = (lambda name: (masks / name).with_suffix(".png")) if masks.is_dir() else None
    boxes = _read_boxes(folder / "boxes.csv", names) if (folder / "boxes.csv").is_file() else None
    return from_files(folder.resolve().name, images, names, labels, classes, splits, mask_path, boxes)


def _splits_from_folders(names: list[str]) -> tuple[list[str], dict, list[str] | None]:
    parts = [name.split("/") for name in names]
    tops = {p[0] for p in parts if len(p) > 1}
    by_folder = "train" in tops and tops <= SPLIT_FOLDERS.keys() and all(len(p) > 1 for p in parts)
    if by_folder:
        split_of = np.array([SPLIT_FOLDERS[p[0]] for p in parts])
        splits = {s: np.flatnonzero(split_of == s) for s in ("train", "test")}
        parts = [p[1:] for p in parts]
    else:
        splits = {"train": np.arange(len(names))}
    depths = {len(p) > 1 for p in parts}
    if len(depths) > 1:
        loose = [n for n, p in zip(names, parts, strict=True) if len(p) == 1]
        raise UserError(
            f"{len(loose)} images lie beside the class folders: {some(loose)}. Put every image into a class folder, "
            "or none, or list them in splits.csv"
        )
    return names, splits, [p[0] for p in parts] if depths == {True} else None


def _read_boxes(path: Path, names: list[str]) -> np.ndarray:
    """(N, 4) left, top, width, height in pixels, in the order of `names`."""
    columns = ("x", "y", "width", "height")
    rows = {row["image"]: row for row in _read_table(path, columns)}
    if absent := [name for name in names if name not in rows]:
        raise UserError(f"{path} has no box of {len(absent)} images: {some(absent)}")
    try:
        return np.array([[float(rows[name][c]) for c in columns] for name in names])
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has a box that is not four numbers: {error}") from None


def _read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV with the column `image`, once for each image, and `columns`."""
    with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes the mark
        rows = list(csv.DictReader(file))
    present = set(rows[0]) if rows else set()
    if not {"image", *columns} <= present:
        raise UserError(f"{path} must have the columns image,{','.join(columns)}; it has {sorted(present)}")
    counts = collections.Counter(row["image"] for row in rows)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise UserError(f"{path} lists images twice: {some(repeated)}")
    return rows


def _read_splits(path: Path, images: Path, present: list[str]) -> tuple[list[str], dict, list[str] | None]:
    rows = _read_table(path, ("split",))
    names = [row["image"] for row in rows]
    absent = sorted(set(names) - set(present))
    if absent:
        raise UserError(f"{path} lists {len(absent)} images that are not readable images in {images}: {some(absent)}")
    unlisted = sorted(set(present) - set(names))
    if unlisted:
        raise UserError(f"{len(unlisted)} images in {images} are not listed in {path}: {some(unlisted)}")
    split_of = np.array([row["split"] for row in rows])
    splits = {str(s): np.flatnonzero(split_of == s) for s in np.unique(split_of)}
    if "label" in rows[0]:
        return names, splits, [row["label"] for row in rows]
    nested = all("/" in n for n in names)
    return names, splits, [n.split("/")[0] for n in names] if nested else None
