"""Oxford-IIIT Pet in its official layout."""

import numpy as np

from cvsa_jax.data.sources.archives import Official, located, say_counts
from cvsa_jax.data.sources.files import Annotations, from_files, if_there, listing
from cvsa_jax.data.sources.masks import read_trimap
from cvsa_jax.data.sources.source import Source
from cvsa_jax.data.sources.tables import lines
from cvsa_jax.runtime.errors import UserError

OFFICIAL = Official(
    "Oxford-IIIT Pet",
    "https://www.robots.ox.ac.uk/~vgg/data/pets/",
    (("images.tar.gz", 791_918_971), ("annotations.tar.gz", 19_173_078)),
    "oxford-iiit-pet",
    classes=37,
    counts={"train": 3680, "test": 3669},
)


def load(root: str) -> Source:
    """`images/` and `annotations/` below `root`; the images are those of `trainval.txt` (the split train) and
    `test.txt`. Masks from `annotations/trimaps/`, of which the border counts as the animal's. The boxes, of heads
    alone and not of all, are not read."""
    folder = located(root, OFFICIAL, "annotations/trainval.txt", "images")
    names, numbers, splits = [], [], {}
    for split, table in (("train", "trainval.txt"), ("test", "test.txt")):
        path = folder / "annotations" / table
        rows = [line.split() for line in lines(path, OFFICIAL.hint) if not line.startswith("#")]
        if wrong := [" ".join(row) for row in rows if len(row) < 2 or not row[1].isdigit()]:
            raise UserError(f"{path} has rows that are not a name and numbers: {wrong[0]!r}")
        splits[split] = np.arange(len(names), len(names) + len(rows))
        names += [f"{row[0]}.jpg" for row in rows]
        numbers += [int(row[1]) for row in rows]
    breed = dict(zip(numbers, (name.rpartition("_")[0] for name in names), strict=True))
    rank = {number: k for k, number in enumerate(sorted(breed))}
    classes = [breed[number] for number in rank]
    say_counts(OFFICIAL, len(classes), {split: len(of) for split, of in splits.items()})
    trimaps = folder / "annotations" / "trimaps"
    paths = [if_there((trimaps / name).with_suffix(".png")) for name in names] if trimaps.is_dir() else None
    described = (splits, np.array([rank[number] for number in numbers], np.int32), classes)
    annotations = Annotations(paths, mask_of=read_trimap)
    return from_files("pets", folder / "images", names, listing(folder / "images"), described, annotations)
