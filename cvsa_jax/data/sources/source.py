"""What a data set is to the rest of the code: names, labels, splits, and random access to encoded images."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cvsa_jax.runtime.errors import UserError

CONTENTS, TIMES = "contents", "times"  # what a fingerprint looks at


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set of N images.

    Attributes:
        name: short name, used in paths and pages.
        names: N stable names, unique, in canonical order.
        labels: (N,) int32 class of each image, or None where the set is unlabelled.
        classes: the class names, empty where unlabelled.
        splits: split name -> sorted indices into `names`.
        read: index -> encoded bytes of an image that Pillow reads.
        path: index -> the image's file; None where images are no files of their own.
        mask: index -> (H, W) uint8 ground-truth mask of the upright image, 255 on the object; masks of degrees have
            values in between, of which those above 127 count as object; None where the source has no masks.
        mask_kind: index -> what kind of file the mask is, in words; None where masks are no files.
        identify: kind, CONTENTS or TIMES, -> hash of the names and of what the images hold, or of when they were last
            changed; another where images are added, removed, exchanged or edited.
        hashes: gives the hash of what each image holds; None where images are no files of their own.
        looks_at: the kind of this source's `fingerprint`.
        box: index -> (4,) ground-truth box (y0, x0, y1, x1) in fractions of the upright image; None where it has no
            boxes.
        annotation: gives the hash of masks and boxes, so that maps made from them can be told to be outdated.
        masked: (N,) bool, which images have a mask, or None where all have.
        cut: rows at the bottom of each image that are no part of it.
        left_out: reason -> names of files that lie where images are read and are none of them.
    """

    name: str
    names: Sequence[str]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    splits: dict[str, np.ndarray]
    read: Callable[[int], bytes]
    mask: Callable[[int], np.ndarray] | None
    identify: Callable[[str], str]
    hashes: Callable[[], Sequence[str]] | None = None
    looks_at: str = CONTENTS
    path: Callable[[int], str] | None = None
    box: Callable[[int], np.ndarray] | None = None
    mask_kind: Callable[[int], str] | None = None
    annotation: Callable[[], str] = str
    masked: np.ndarray | None = None
    cut: int = 0
    left_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hash by which stores, caches and runs recognise the images. The first time, all of them are read."""
        return self.identify(self.looks_at)

    def split(self, name: str) -> np.ndarray:
        """Indices of one split (`all`: every image); UserError where there is no such split or it is empty."""
        if name == "all":
            return np.arange(len(self))
        if name not in self.splits or not len(self.splits[name]):
            filled = {k: len(v) for k, v in self.splits.items() if len(v)}
            raise UserError(
                f"data set {self.name} has no images in split {name!r}; it has {filled or 'no splits'}: make "
                "one (folders train/ and test/, or a splits.csv), or set config.data.train_split or "
                "config.data.test_split to another, or to 'all'"
            )
        return self.splits[name]

    def described(self) -> dict:
        """The entry in a run's `data.json`."""
        counts = {"images": len(self), "classes": len(self.classes)}
        splits = {split: len(rows) for split, rows in self.splits.items()}
        left_out = {reason: list(names) for reason, names in self.left_out.items()}
        told = {"name": self.name, "fingerprint": self.fingerprint} | counts | {"splits": splits, "left_out": left_out}
        return told | {"class_names": list(self.classes)}

    def selection(self, indices: np.ndarray) -> str:
        """Hash of the images at the indices with their labels: another split, or other labels, give another."""
        labels = np.zeros(len(indices), int) if self.labels is None else self.labels[indices]
        return fingerprint([*self.classes, *(self.names[i] for i in indices)], [*(0 for _ in self.classes), *labels])

    def has_mask(self, indices: np.ndarray) -> np.ndarray:
        """(k,) bool, which of the images at the indices have a mask."""
        if self.mask is None:
            return np.zeros(len(indices), bool)
        return np.ones(len(indices), bool) if self.masked is None else self.masked[indices]


def difference(stored: str, now: str) -> str:
    """Why two fingerprints of the same names are not equal, in words."""
    kinds = [text.rpartition("-")[0] for text in (stored, now)]
    if kinds[0] == kinds[1]:
        return "some images have changed"
    return f"its fingerprint is of {kinds[0]} and this config's of {kinds[1]}: set config.data.fingerprint={kinds[0]}"


def fingerprint(names, values) -> str:
    """Order-sensitive hash of names and of a value of each."""
    digest = hashlib.sha256()
    for name, value in zip(names, values, strict=True):
        digest.update(f"{name}\0{value}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
