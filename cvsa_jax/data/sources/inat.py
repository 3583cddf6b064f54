"""iNaturalist 2018 and 2021 (and the other years of the same tables) from their JSON files."""

import json
import re
from pathlib import Path

import numpy as np

from cvsa_jax.data.sources.archives import Official, located, say_counts, unpack
from cvsa_jax.data.sources.files import from_files, listing
from cvsa_jax.data.sources.source import Source
from cvsa_jax.runtime.errors import UserError, some

_PAGE = "https://github.com/visipedia/inat_comp/tree/master/"


def _published(title: str, year: str, classes: int, train: int, val: int, archives: dict[str, int | None]) -> Official:
    counts = {"train": train, "val": val}
    named = tuple((f"{name}.tar.gz", size) for name, size in archives.items())
    return Official(title, f"{_PAGE}{year}", named, f"inat{year}", classes, counts)


_ARCHIVES_2018 = {"train_val2018": 120 * 10**9, "train2018.json": None, "val2018.json": None}
_VAL_2021 = {"val": 8_400_000_000, "val.json": None}
_ARCHIVES_2021 = {"train": 224 * 10**9, "train.json": None} | _VAL_2021
_ARCHIVES_MINI = {"train_mini": 42 * 10**9, "train_mini.json": None} | _VAL_2021
# Year -> what is published, with sizes in bytes where they are; split -> its JSON file.
SETS = {
    "2018": (
        _published("iNaturalist 2018", "2018", 8142, 437_513, 24_426, _ARCHIVES_2018),
        {"train": "train2018.json", "val": "val2018.json"},
    ),
    "2021": (
        _published("iNaturalist 2021", "2021", 10_000, 2_686_843, 100_000, _ARCHIVES_2021),
        {"train": "train.json", "val": "val.json"},
    ),
    "mini": (
        _published("iNaturalist 2021 mini", "2021", 10_000, 500_000, 100_000, _ARCHIVES_MINI),
        {"train": "train_mini.json", "val": "val.json"},
    ),
}
# Folders as torchvision renames them.
_RENAMED = {"train": "2021_train", "train_mini": "2021_train_mini", "val": "2021_valid"}


def load(root: str, year: str = "2018") -> Source:
    """The JSON files of `year`, one of SETS, below `root`, with the folders of images that they name. Splits train and
    val, which is the labelled test set of the literature; classes are the numbers of the categories, in their order."""
    if year not in SETS:
        raise UserError(f"config.data.kind='inat:{year}': take one of {', '.join(SETS)}")
    official, tables = SETS[year]
    folder = located(root, official, *tables.values())
    names, numbers, splits, titles = [], [], {}, {}
    for split, table in tables.items():
        content = _read(folder / table)
        category_of = {row["image_id"]: row["category_id"] for row in content["annotations"]}
        files = {row["id"]: row["file_name"] for row in content["images"]}
        if bare := [files[i] for i in files if i not in category_of]:
            raise UserError(f"{official.title}: {folder / table} has no class of {len(bare)} images: {some(bare)}")
        titles |= {row["id"]: row.get("image_dir_name", row["name"]) for row in content["categories"]}
        splits[split] = np.arange(len(names), len(names) + len(files))
        names += files.values()
        numbers += [category_of[i] for i in files]
    tops = {name.split("/")[0] for name in names}
    for top in tops:  # the JSON files may have been unpacked, and the images not
        if not any((folder / name).is_dir() for name in (top, _RENAMED.get(top, top))):
            for archive in (folder / f"{top}.tar.gz", folder.parent / f"{top}.tar.gz"):
                if archive.is_file():
                    unpack(archive, folder)
                    break
    renamed = {top: _RENAMED[top] for top in tops if not (folder / top).is_dir() and top in _RENAMED}
    renamed = {top: new for top, new in renamed.items() if (folder / new).is_dir()}
    if renamed:
        names = [re.sub(r"^[^/]+", lambda m: renamed.get(m[0], m[0]), name) for name in names]
    there = listing(folder, skip={e.name for e in folder.iterdir()} - {renamed.get(top, top) for top in tops})
    # Numbers, as text would put 10 before 2.
    used = sorted(set(numbers))
    rank = {number: k for k, number in enumerate(used)}
    say_counts(official, len(used), {split: len(of) for split, of in splits.items()})
    labels = np.array([rank[number] for number in numbers], np.int32)
    classes = [str(titles.get(number, number)) for number in used]
    return from_files(f"inat{year}", folder, names, there, (splits, labels, classes))


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no JSON, or cut off: {error}") from None
    if absent := {"images", "annotations", "categories"} - content.keys():
        raise UserError(f"{path} has no {', '.join(sorted(absent))}")
    return content
