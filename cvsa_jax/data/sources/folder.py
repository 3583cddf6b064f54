"""A plain folder of images: flat = unlabelled, sub-folders = classes; optional masks, boxes and lists of splits."""

import collections
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from cvsa_jax.data.sources.files import READABLE, Annotations, Listing, from_files, listing, require_folder, sub_folder
from cvsa_jax.data.sources.masks import LABELS, SOFT, TRIMAP, TWO, read_mask
from cvsa_jax.data.sources.source import Source
from cvsa_jax.data.sources.tables import canonical, read_csv
from cvsa_jax.runtime.errors import UserError, some

_HINT = "Give a folder of images: --config.data.root=my_images, of embed --data=my_images (docs/tutorials/first_run.md)"
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
TABLES = ("splits.csv", "boxes.csv")
_MASK_OF = re.compile(r"(?i)[_.-](mask|seg|segmentation|gt)$")
NO_IMAGE = "masks that belong to no image"


def load(root: str) -> Source:
    """Reads the images below `root/images`, or below `root` where there is no `images` folder.

    Classes are the first-level sub-folders; a flat folder is unlabelled. `root/splits.csv` (columns `image`, `split`
    and optionally `label`, `image` relative to the image folder) names the splits; without it, sub-folders called
    `train`, `val` and `test`, or as they are usually called, do; without these, every image is in `train`.
    `root/masks/` mirrors the image folder with mask images of any ending, or `x_mask.png` lies beside `x.jpg`;
    `root/boxes.csv` (columns `image,x,y,width,height`, in pixels) gives each image a box.
    """
    folder = require_folder(root, "image folder", _HINT)
    inner = sub_folder(folder, "images")
    masks = sub_folder(folder, "masks", *(["mask"] if inner else []))  # without `images`, mask may be a class
    images = folder / inner if inner else folder
    there = listing(images, skip=TABLES if inner else (*TABLES, masks))  # below `images`, masks is a class
    if inner and (outside := listing(folder, skip=(*TABLES, inner, masks)).sizes):
        there.left_out["images that lie beside the folder of images"] = list(outside)
    _refuse_masks_among(there, images)
    beside = {}
    if not masks:
        there, beside = _without_masks_beside(there, images)
    if not there.sizes:
        found = some(f"{len(names)} {reason}" for reason, names in there.left_out.items())
        raise UserError(f"no image ({', '.join(sorted(READABLE))}) in {images}{found and ', but ' + found}. {_HINT}")
    names = list(there.sizes)
    if table := _table(folder, "splits.csv"):
        names, splits, label_names = _read_splits(table, images, names)
    else:
        splits, label_names = _splits_from_folders(names)
    labels, classes = None, ()
    if label_names is not None:
        classes, labels = np.unique(np.array(label_names, object), return_inverse=True)
        classes, labels = classes.tolist(), labels.astype(np.int32)
        _say_alike(classes)
    paths = _masks_of(names, folder / masks, there) if masks else None
    if beside:
        paths = [images / beside[name] if name in beside else None for name in names]
    boxes = _read_boxes(table, names) if (table := _table(folder, "boxes.csv")) else None
    name = folder.resolve().name
    return from_files(name, images, names, there, (splits, labels, classes), Annotations(paths, boxes))


def _table(folder: Path, name: str) -> Path | None:
    return next((Path(e.path) for e in os.scandir(folder) if e.name.lower() == name and os.path.isfile(e.path)), None)


# Splits and labels.


def _splits_from_folders(names: list[str]) -> tuple[dict[str, np.ndarray], list[str] | None]:
    parts = [name.split("/") for name in names]
    tops = collections.Counter(p[0] for p in parts if len(p) > 1)
    split_of = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    # A class may be called train, which is a vehicle: then it is alone among other classes, and holds images itself.
    nested = any(len(p) > 2 for p in parts if p[0] in split_of)
    if "train" in split_of.values() and (len(set(split_of.values())) > 1 or nested or len(tops) == 1):
        if stray := [name for name, p in zip(names, parts, strict=True) if len(p) == 1 or p[0] not in split_of]:
            raise UserError(
                f"{len(stray)} images lie beside the folders of the splits, {', '.join(split_of)}: {some(stray)}. Move "
                "them into one of these, or out, or list all in splits.csv"
            )
        of = np.array([split_of[p[0]] for p in parts])
        splits = {split: np.flatnonzero(of == split) for split in ("train", "val", "test") if split in of}
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
    return splits, [p[0] for p in parts] if depths == {True} else None


def _read_splits(path: Path, images: Path, present: list[str]) -> tuple[list[str], dict, list[str] | None]:
    rows = read_csv(path, ("split",))
    spelled = _spelling(present)
    absent = [row["image"] for row in rows if row["image"] not in spelled]
    if absent:
        raise UserError(f"{path} lists {len(absent)} images that are not readable images in {images}: {some(absent)}")
    names = [spelled[row["image"]] for row in rows]
    if unlisted := sorted(set(present) - set(names)):
        raise UserError(f"{len(unlisted)} images in {images} are not listed in {path}: {some(unlisted)}")
    split_of = np.array([SPLIT_NAMES.get(row["split"].lower(), row["split"]) for row in rows])
    splits = {str(s): np.flatnonzero(split_of == s) for s in np.unique(split_of)}
    if unused := {s: len(rows) for s, rows in splits.items() if s not in SPLIT_NAMES.values()}:
        print(f"{path} has splits that nothing uses unless config.data.train_split or test_split names them: {unused}")
    if "label" in rows[0]:
        if bare := [row["row"] for row in rows if not row["label"]]:
            raise UserError(f"{path}, row {some(bare)}: no label. Fill the cell, or leave the column out")
        return names, splits, [row["label"] for row in rows]
    parts = [n.split("/") for n in names]
    if all(p[0].lower() in SPLIT_NAMES for p in parts) and len({p[0] for p in parts}) > 1:
        parts = [p[1:] for p in parts]  # folders of splits are no classes
    return names, splits, [p[0] for p in parts] if all(len(p) > 1 for p in parts) else None


def _spelling(names: list[str]) -> dict[str, str]:
    """How a name is compared -> how the disk spells it."""
    return {canonical(name): name for name in names}


def _say_alike(classes: list[str]) -> None:
    alike = collections.defaultdict(list)
    for name in classes:
        alike[canonical(" ".join(name.split())).casefold()].append(name)
    for names in alike.values():
        if len(names) > 1:
            print(f"classes that differ in case, blanks or accents alone: {', '.join(map(repr, names))}. Are they one?")


# Masks and boxes.


def _masks_of(names: list[str], folder: Path, there: Listing) -> list[Path | None]:
    """Each image's mask below `folder`: named as the image, with another ending, or `_mask` before it."""
    files = listing(folder)
    by_name: dict[str, list[str]] = collections.defaultdict(list)
    by_base: dict[str, list[str]] = collections.defaultdict(list)  # with `_mask` and the like taken off
    for mask in files.sizes:
        by_name[_stem(mask)].append(mask)
        by_base[_MASK_OF.sub("", _stem(mask))].append(mask)
    stems = collections.Counter(_stem(name) for name in names)
    paths, used = [], set()
    for name in names:
        # Of two images of one stem, each must say which mask is its own: a.jpg.png.
        keys = [canonical(name)] + ([_stem(name)] if stems[_stem(name)] == 1 else [])
        found = next((by[key] for by in (by_name, by_base) for key in keys if key in by), [])
        if len(found) > 1:
            raise UserError(f"{folder} has several masks of {name}: {some(found)}. Keep one")
        used.update(found)
        paths.append(folder / found[0] if found else None)
    if files.sizes and not used and not all(map(_is_mask, (folder / mask for mask in list(files.sizes)[:20]))):
        raise UserError(
            f"{folder} holds no mask of any image: if it is a class, put the folders of the classes below images/, "
            "else name the masks as their images"
        )
    unused = [mask for mask in files.sizes if mask not in used]
    unused += [mask for names in files.left_out.values() for mask in names]
    if unused:
        there.left_out[NO_IMAGE] = [f"{folder.name}/{mask}" for mask in unused]
    return paths


def _refuse_masks_among(there: Listing, folder: Path) -> None:
    """UserError where a folder of masks lies deeper than it is looked for, so that its files would be images."""
    files = {name: [part.lower() for part in name.split("/")] for name in there.sizes}
    inside = [name for name, parts in files.items() if {"masks", "mask"} & set(parts[:-1])]
    others = {parts[-1].rpartition(".")[0] for name, parts in files.items() if name not in set(inside)}
    named = [name for name in inside if _MASK_OF.sub("", files[name][-1].rpartition(".")[0]) in others]
    if 2 * len(named) > len(inside) and all(_is_mask(folder / name) for name in named[:20]):
        raise UserError(
            f"{len(inside)} files below {folder} lie in folders called masks, are named as images and look like masks "
            f"({some(inside, 2)}). Put the images below images/ and the masks below masks/, in folders that mirror them"
        )


def _without_masks_beside(there: Listing, folder: Path) -> tuple[Listing, dict[str, str]]:
    """The images, and image -> mask of those that have one beside them, `x_mask.png` of `x.jpg`, where at least half of
    the images have one and these are masks; else all are images. Either is said."""
    by_stem = {_stem(name): name for name in there.sizes}
    pairs = {}
    for stem, name in by_stem.items():
        base = _MASK_OF.sub("", stem)
        if base != stem and base in by_stem:
            pairs[by_stem[base]] = name
    if not pairs:
        return there, {}
    masks = some(sorted(pairs.values()), 2)
    if 2 * len(pairs) < len(there.sizes) - len(pairs) or not all(map(_is_mask, (folder / m for m in pairs.values()))):
        print(f"{len(pairs)} files are named as masks of images beside them, but read as images ({masks})")
        return there, {}
    print(f"{len(pairs)} images have a mask beside them ({masks})")
    kept = {name: size for name, size in there.sizes.items() if name not in pairs.values()}
    return Listing(kept, there.left_out), pairs


def _is_mask(path: Path) -> bool:
    try:
        return read_mask(path).kind in (TWO, SOFT, TRIMAP, LABELS)  # photographs may look like the other kinds
    except UserError:
        return False


def _read_boxes(path: Path, names: list[str]) -> np.ndarray:
    """(N, 4) left, top, width, height in pixels, in the order of `names`."""
    columns = ("x", "y", "width", "height")
    rows = {row["image"]: row for row in read_csv(path, columns)}
    spelled = _spelling(names)
    if unknown := rows.keys() - spelled.keys():
        print(f"{path} has boxes of {len(unknown)} images that are not there: {some(sorted(unknown))}")
    if absent := [name for name in names if canonical(name) not in rows]:
        raise UserError(f"{path} has no box of {len(absent)} images: {some(absent)}")
    number: Callable[[str], float] = lambda cell: float(cell.replace(",", "."))  # noqa: E731
    try:
        boxes = np.array([[number(rows[canonical(name)][c]) for c in columns] for name in names])
    except ValueError as error:
        raise UserError(f"{path} has a box that is not four numbers: {error}") from None
    if (boxes <= 1).all() and (boxes >= 0).all():
        raise UserError(
            f"{path}: all boxes lie within [0, 1], as fractions do; they must be in px of the upright image"
        )
    return boxes


def _stem(name: str) -> str:
    return canonical(str(PurePosixPath(name).with_suffix("")))
