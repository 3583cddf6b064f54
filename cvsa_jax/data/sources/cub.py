"""Caltech-UCSD Birds-200-2011 and NABirds in their official layout, which is nearly one (also any subset of the classes
in the same layout)."""

from pathlib import Path

import numpy as np

from cvsa_jax.data.sources.archives import Official, located, product, say_counts
from cvsa_jax.data.sources.files import Annotations, from_files, if_there, listing
from cvsa_jax.data.sources.masks import read_grey
from cvsa_jax.data.sources.source import Source
from cvsa_jax.data.sources.tables import pairs
from cvsa_jax.runtime.errors import UserError, some

CUB = Official(
    "CUB-200-2011",
    "https://www.vision.caltech.edu/datasets/cub_200_2011/",
    (("CUB_200_2011.tgz", 1_150_585_339), ("segmentations.tgz", 39_272_883)),
    "CUB_200_2011",
    classes=200,
    counts={"train": 5994, "test": 5794},
)
NABIRDS = Official(
    "NABirds",
    "https://dl.allaboutbirds.org/nabirds",
    (("nabirds.tar.gz", None),),
    "nabirds",
    classes=555,
    counts={"train": 23_929, "test": 24_633},
)


def load(root: str) -> Source:
    """CUB: `images.txt`, `image_class_labels.txt`, `train_test_split.txt` and `classes.txt` below `root` or below
    `root/CUB_200_2011`. Masks are offered where `segmentations/` lies beside `images/` or the tables' folder, boxes
    where `bounding_boxes.txt` does; the parts are not read."""
    folder = located(root, CUB, "images.txt", "images")
    segmentations = product(folder, "segmentations", "segmentations.tgz")
    classes = pairs(folder / "classes.txt", CUB.hint)
    return _birds("cub", folder, CUB, classes, segmentations)


def nabirds(root: str) -> Source:
    """NABirds: the same tables below `root` or `root/nabirds`. Of the tree in `classes.txt` the classes are the ids
    that images have, in the order of their numbers."""
    folder = located(root, NABIRDS, "images.txt", "images")
    used = set(pairs(folder / "image_class_labels.txt", NABIRDS.hint).values())
    every = pairs(folder / "classes.txt", NABIRDS.hint)
    try:
        classes = {c: every[c] for c in sorted(every, key=int) if c in used}
    except ValueError:
        raise UserError(f"NABirds: {folder / 'classes.txt'} has a class id that is no number. {NABIRDS.hint}") from None
    return _birds("nabirds", folder, NABIRDS, classes, None)


def _birds(name: str, folder: Path, official: Official, classes: dict[str, str], segmentations: Path | None) -> Source:
    names = pairs(folder / "images.txt", official.hint)
    if not names:
        raise UserError(f"{official.title}: {folder / 'images.txt'} lists no image. {official.hint}")
    tables = ["image_class_labels.txt", "train_test_split.txt"]
    if has_boxes := (folder / "bounding_boxes.txt").is_file():
        tables.append("bounding_boxes.txt")
    rows = {table: pairs(folder / table, official.hint) for table in tables}
    for table, of in rows.items():
        if of.keys() != names.keys():
            raise UserError(f"{official.title}: {folder / table} does not list the same image ids as images.txt")
    class_of, is_train = (rows[table] for table in tables[:2])
    if unknown := sorted(set(class_of.values()) - classes.keys()):
        raise UserError(f"{official.title}: {folder / 'classes.txt'} lacks the class ids {some(unknown)}")
    if wrong := sorted(set(is_train.values()) - {"0", "1"}):
        raise UserError(
            f"{official.title}: {folder / 'train_test_split.txt'} has {some(wrong)} for 1 (train) or 0 (test)"
        )
    rank = {class_id: k for k, class_id in enumerate(classes)}
    train = np.array([is_train[i] == "1" for i in names])
    splits = {"train": np.flatnonzero(train), "test": np.flatnonzero(~train)}
    there, masks = listing(folder / "images"), None
    if segmentations is not None:
        masks = [if_there((segmentations / image).with_suffix(".png")) for image in names.values()]
    boxes = _boxes(folder, official, [rows["bounding_boxes.txt"][i] for i in names]) if has_boxes else None
    labels = np.array([rank[class_of[i]] for i in names], np.int32)
    say_counts(official, len(classes), {split: len(of) for split, of in splits.items()})
    # Five annotators drew the masks, whose levels are their share; more than half of them is the object.
    annotations = Annotations(masks, boxes, read_grey)
    described = (splits, labels, tuple(classes.values()))
    return from_files(name, folder / "images", list(names.values()), there, described, annotations)


def _boxes(folder: Path, official: Official, rows: list[str]) -> np.ndarray:
    """(N, 4) left, top, width, height in pixels."""
    try:
        return np.array([row.split() for row in rows], float).reshape(len(rows), 4)
    except ValueError as error:
        raise UserError(
            f"{official.title}: {folder / 'bounding_boxes.txt'} has a row that is not an id and four numbers: {error}"
        ) from None
