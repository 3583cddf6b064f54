"""Oxford Flowers-102 in its official layout."""

from pathlib import Path

import numpy as np
from PIL import Image

from cvsa_jax.data.sources.archives import Official, located, product, say_counts
from cvsa_jax.data.sources.files import Annotations, from_files, if_there, listing
from cvsa_jax.data.sources.masks import TWO, Mask
from cvsa_jax.data.sources.source import Source
from cvsa_jax.data.sources.tables import mat
from cvsa_jax.runtime.errors import UserError

OFFICIAL = Official(
    "Oxford Flowers-102",
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    (("102flowers.tgz", 344_862_509), ("imagelabels.mat", 502), ("setid.mat", 14_989), ("102segmentations.tgz", None)),
    "flowers-102",
    classes=102,
    counts={"train": 1020, "val": 1020, "test": 6149},
)
SETS = {"train": "trnid", "val": "valid", "test": "tstid"}
_BLUE = np.array([0, 0, 254])  # of the background in the segmentations, which are JPEGs
_TOLERANCE = 60  # sum of the differences over the channels


def load(root: str) -> Source:
    """`jpg/`, `imagelabels.mat` and `setid.mat` below `root`. Splits train and val (1,020 each), their union trainval,
    and test; several public loaders train on test by mistake, which gives far higher figures. Masks where `segmim/`
    lies. The classes have numbers, from 1 on, and no names."""
    folder = located(root, OFFICIAL, "imagelabels.mat", "setid.mat", "jpg")
    labels, sets = (mat(folder / name, OFFICIAL.hint) for name in ("imagelabels.mat", "setid.mat"))
    try:
        labels = labels["labels"].astype(int)
        # Numbers of images from 1 on, in any order.
        splits = {split: np.sort(sets[key].astype(int)) - 1 for split, key in SETS.items()}
    except KeyError as error:
        raise UserError(f"{OFFICIAL.title}: {folder}: the files lack {error}. {OFFICIAL.hint}") from None
    if len(splits["train"]) > len(splits["test"]):
        print(f"{OFFICIAL.title}: train has more images than test: this copy has exchanged them")
    splits["trainval"] = np.sort(np.concatenate([splits["train"], splits["val"]]))
    say_counts(OFFICIAL, len(set(labels.tolist())), {split: len(splits[split]) for split in SETS})
    numbers = range(1, len(labels) + 1)
    segmented = product(folder, "segmim", "102segmentations.tgz")
    masks = [if_there(segmented / f"segmim_{k:05d}.jpg") for k in numbers] if segmented else None
    used = np.unique(labels)
    described = (splits, np.searchsorted(used, labels).astype(np.int32), [str(k) for k in used])
    names = [f"image_{k:05d}.jpg" for k in numbers]
    return from_files(
        "flowers", folder / "jpg", names, listing(folder / "jpg"), described, Annotations(masks, mask_of=_mask)
    )


def _mask(path: Path) -> Mask:
    """255 where a segmentation is not painted blue."""
    try:
        with Image.open(path) as image:
            distance = np.abs(np.asarray(image.convert("RGB")).astype(int) - _BLUE).sum(2)
    except OSError as error:
        raise UserError(f"cannot read mask {path}: {error}") from None
    return Mask(np.where(distance > _TOLERANCE, 255, 0).astype(np.uint8), TWO)
