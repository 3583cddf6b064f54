"""FGVC-Aircraft 2013b in its official layout."""

import numpy as np

from cvsa_jax.data.sources.archives import Official, located, say_counts
from cvsa_jax.data.sources.files import Annotations, from_files, listing
from cvsa_jax.data.sources.source import Source
from cvsa_jax.data.sources.tables import lines, pairs
from cvsa_jax.runtime.errors import UserError, some

LEVELS = {"variant": ("variants.txt", 100), "family": ("families.txt", 70), "manufacturer": ("manufacturers.txt", 30)}
BANNER = 20  # px at the bottom of every image with the photographer's name, which two views of an image would share
SPLITS = ("train", "val", "test")


def load(root: str, level: str = "variant") -> Source:
    """`data/` below `root` or `root/fgvc-aircraft-2013b`; `level` is one of LEVELS. The banner is cut off, and so the
    fingerprint is another than with it. Splits: train, val, their union trainval, on which papers train, and test.
    Boxes where `images_box.txt` lies. Classes in the order of the set's own list."""
    if level not in LEVELS:
        raise UserError(f"config.data.kind='aircraft:{level}': take one of {', '.join(LEVELS)}")
    table, classes = LEVELS[level]
    counts = {"train": 3334, "val": 3333, "test": 3333}
    page = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    archives = (("fgvc-aircraft-2013b.tar.gz", 2_750_000_000),)
    official = Official("FGVC-Aircraft 2013b", page, archives, "fgvc-aircraft-2013b", classes, counts)
    folder = located(root, official, f"data/{table}", "data/images") / "data"
    known = lines(folder / table, official.hint)
    rank = {name: k for k, name in enumerate(known)}
    ids, labels, splits = [], [], {}
    for split in SPLITS:
        # A label has spaces, and slashes: it is no name of a file.
        of = pairs(folder / f"images_{level}_{split}.txt", official.hint)
        if unknown := set(of.values()) - rank.keys():
            raise UserError(f"{official.title}: {folder / table} lacks {some(sorted(unknown))}")
        splits[split] = np.arange(len(ids), len(ids) + len(of))
        ids += of
        labels += [rank[name] for name in of.values()]
    splits["trainval"] = np.concatenate([splits["train"], splits["val"]])
    say_counts(official, len(known), {split: len(splits[split]) for split in SPLITS})
    boxes = None
    if (folder / "images_box.txt").is_file():
        rows = pairs(folder / "images_box.txt", official.hint)
        try:
            corners = {i: np.array(row.split(), float).reshape(4) for i, row in rows.items()}
        except ValueError as error:
            raise UserError(f"{official.title}: images_box.txt has a row that is not four numbers: {error}") from None
        if absent := [i for i in ids if i not in corners]:
            raise UserError(f"{official.title}: {folder / 'images_box.txt'} lacks {some(absent)}")
        # Counted from 1, with the last pixel inside.
        boxes = np.array([[x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1] for x0, y0, x1, y1 in (corners[i] for i in ids)])
    names, images = [f"{i}.jpg" for i in ids], folder / "images"
    described = (splits, np.array(labels, np.int32), known)
    return from_files("aircraft", images, names, listing(images), described, Annotations(boxes=boxes), cut=BANNER)
