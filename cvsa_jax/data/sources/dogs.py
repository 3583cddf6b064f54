"""Stanford Dogs in its official layout."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from cvsa_jax.data.sources.archives import Official, located, say_counts
from cvsa_jax.data.sources.files import Annotations, from_files, listing
from cvsa_jax.data.sources.source import Source
from cvsa_jax.data.sources.tables import mat
from cvsa_jax.runtime.errors import UserError

OFFICIAL = Official(
    "Stanford Dogs",
    "http://vision.stanford.edu/aditya86/ImageNetDogs/",
    (("images.tar", 793_579_520), ("annotation.tar", 21_852_160), ("lists.tar", 481_280)),
    "stanford_dogs",
    classes=120,
    counts={"train": 12_000, "test": 8580},
)


def load(root: str) -> Source:
    """`Images/`, and `train_list.mat` and `test_list.mat`, below `root`. An image's box, where `Annotation/` lies, is
    that around all its dogs."""
    folder = located(root, OFFICIAL, "Images", "train_list.mat")
    print(f"{OFFICIAL.title} is a part of ImageNet's train set, also its test split: weights from there know it")
    names, labels, splits = [], [], {}
    for split in ("train", "test"):
        table = mat(folder / f"{split}_list.mat", OFFICIAL.hint)
        files = [str(np.asarray(cell).item()) for cell in table["file_list"]]
        numbers = [int(number) for number in table["labels"]]
        splits[split] = np.arange(len(names), len(names) + len(files))
        names += files
        labels += [number - 1 for number in numbers]
    breed = dict(zip(labels, (name.split("/")[0].partition("-")[2] for name in names), strict=True))
    classes = [breed[k] for k in sorted(breed)]
    rank = {k: place for place, k in enumerate(sorted(breed))}
    say_counts(OFFICIAL, len(classes), {split: len(of) for split, of in splits.items()})
    boxes = None
    if (folder / "Annotation").is_dir():
        boxes = np.array([_box(folder / "Annotation" / name.rsplit(".", 1)[0]) for name in names])
    described = (splits, np.array([rank[k] for k in labels], np.int32), classes)
    images = folder / "Images"
    return from_files("dogs", images, names, listing(images), described, Annotations(boxes=boxes))


def _box(path: Path) -> list[float]:
    """Left, top, width and height of the box around all objects of a Pascal-VOC file, which has no ending."""
    try:
        found = [[int(box.find(side).text) for side in ("xmin", "ymin", "xmax", "ymax")] for box in _boxes(path)]
        (left, top), (right, bottom) = np.min(found, 0)[:2], np.max(found, 0)[2:]
    except (OSError, AttributeError, ValueError, ElementTree.ParseError) as error:
        raise UserError(f"{OFFICIAL.title}: cannot read a box in {path}: {error}") from None
    return [float(v) for v in (left, top, right - left, bottom - top)]


def _boxes(path: Path):
    return ElementTree.parse(path).getroot().iter("bndbox")
