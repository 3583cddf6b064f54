"""Stanford Cars in both layouts in which its copies circulate."""

from pathlib import Path

import numpy as np

from cvsa_jax.data.sources.archives import Official, located, say_counts
from cvsa_jax.data.sources.files import Annotations, Listing, from_files, listing
from cvsa_jax.data.sources.source import Source
from cvsa_jax.data.sources.tables import mat
from cvsa_jax.runtime.errors import UserError

OFFICIAL = Official(
    "Stanford Cars",
    "https://ai.stanford.edu/~jkrause/cars/car_dataset.html, which is gone; copies of its files circulate",
    (
        ("cars_train.tgz", 979_269_282),
        ("cars_test.tgz", 977_350_468),
        ("car_devkit.tgz", 330_960),
        ("cars_test_annos_withlabels.mat", 185_758),
    ),
    "stanford_cars",
    classes=196,
    counts={"train": 8144, "test": 8041},
)
_LABELLED = ("cars_test_annos_withlabels.mat", "cars_test_annoswithlabels.mat")
_BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def load(root: str) -> Source:
    """`cars_train/`, `cars_test/` and `devkit/`, or `car_ims/` and `cars_annos.mat`, below `root`.

    Raises:
        UserError: the labels of the test images are missing, which the devkit does not hold.
    """
    try:
        folder = located(root, OFFICIAL, "cars_annos.mat", "car_ims")
    except UserError:
        return _two_folders(located(root, OFFICIAL, "devkit/cars_train_annos.mat", "cars_train"))
    there, table = listing(folder / "car_ims"), mat(folder / "cars_annos.mat", OFFICIAL.hint)
    rows = table["annotations"]
    names = [_text(row, "relative_im_path").removeprefix("car_ims/") for row in rows]
    test = np.array([_int(row, "test") == 1 for row in rows])
    return _source(folder / "car_ims", names, there, rows, test, table["class_names"])


def _two_folders(folder: Path) -> Source:
    names, rows, test, there = [], [], [], Listing({}, {})
    places = [folder / name for name in _LABELLED] + [folder / "devkit" / name for name in _LABELLED]
    labelled = next((place for place in places if place.is_file()), None)
    if labelled is None:
        raise UserError(
            f"{OFFICIAL.title}: {folder / 'devkit'} has no labels of the test images; they are a file of their own, "
            f"{_LABELLED[0]}, which belongs into {folder}. {OFFICIAL.hint}"
        )
    classes = mat(folder / "devkit" / "cars_meta.mat", OFFICIAL.hint)["class_names"]
    for part, table in (("cars_train", folder / "devkit" / "cars_train_annos.mat"), ("cars_test", labelled)):
        found = mat(table, OFFICIAL.hint)["annotations"]
        # The same names in both folders: an image's name has its folder.
        names += [f"{part}/{_text(row, 'fname')}" for row in found]
        rows += list(found)
        test += [part == "cars_test"] * len(found)
        files = listing(folder / part)
        there.sizes |= {f"{part}/{name}": size for name, size in files.sizes.items()}
        there.left_out |= {f"{reason} in {part}": of for reason, of in files.left_out.items()}
    return _source(folder, names, there, rows, np.array(test), classes)


def _source(folder: Path, names: list[str], there: Listing, rows, test: np.ndarray, classes) -> Source:
    # Python's integers, as those of the files are of 8 and 16 bits and would overflow.
    labels = np.array([_int(row, "class") - 1 for row in rows], np.int32)
    corners = [[_int(row, key) for key in _BOX] for row in rows]
    boxes = np.array([[x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1] for x0, y0, x1, y1 in corners])
    splits = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(f"{OFFICIAL.title}: classes from {labels.min() + 1} to {labels.max() + 1} of {len(classes)}")
    say_counts(OFFICIAL, len(classes), {split: len(of) for split, of in splits.items()})
    described = (splits, labels, tuple(str(name.item()) for name in classes))
    return from_files("cars", folder, names, there, described, Annotations(boxes=boxes))


def _int(row: np.void, field: str) -> int:
    return int(np.asarray(row[field]).item())


def _text(row: np.void, field: str) -> str:
    return str(np.asarray(row[field]).item())
