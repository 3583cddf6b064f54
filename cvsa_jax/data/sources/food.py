"""Food-101 in its official layout."""

import numpy as np

from cvsa_jax.data.sources.archives import Official, located, say_counts
from cvsa_jax.data.sources.files import from_files, listing
from cvsa_jax.data.sources.source import Source
from cvsa_jax.data.sources.tables import lines
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import read_json

OFFICIAL = Official(
    "Food-101",
    "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    (("food-101.tar.gz", 4_996_278_331),),
    "food-101",
    classes=101,
    counts={"train": 75_750, "test": 25_250},
)


def load(root: str) -> Source:
    """`images/` and `meta/` below `root` or `root/food-101`; the lists are `meta/train.txt` and `meta/test.txt`, or
    the JSON files of the same names. Train labels are noisy on purpose."""
    folder = located(root, OFFICIAL, "meta", "images")
    names, splits = [], {}
    for split in ("train", "test"):
        text, table = folder / "meta" / f"{split}.txt", folder / "meta" / f"{split}.json"
        if not text.is_file() and table.is_file():
            listed = [name for of in read_json(table).values() for name in of]
        else:
            listed = lines(text, OFFICIAL.hint)
        splits[split] = np.arange(len(names), len(names) + len(listed))
        names += [f"{name}.jpg" for name in listed]
    if flat := [name for name in names if "/" not in name]:
        raise UserError(f"{OFFICIAL.title}: {folder / 'meta'} lists {some(flat)}, which are not <class>/<id>")
    classes, labels = np.unique([name.split("/")[0] for name in names], return_inverse=True)
    say_counts(OFFICIAL, len(classes), {split: len(of) for split, of in splits.items()})
    described = (splits, labels.astype(np.int32), classes.tolist())
    return from_files("food", folder / "images", names, listing(folder / "images"), described)
