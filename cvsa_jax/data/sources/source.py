"""What a data set is to the rest of the code: names, labels, splits, and random access to encoded images."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cvsa_jax.errors import UserError, some


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set of N images.

    Attributes:
        name: short name, used in paths and pages.
        names: N stable names, unique, in canonical order.
        labels: (N,) int32 class of each image, or None where the set is unlabelled.
        classes: the class names, empty where unlabelled.
        splits: split name -> sorted indices into `names`.
        read: index -> encoded bytes (JPEG, PNG, BMP or GIF).
        mask: index -> (H, W) uint8 ground-truth mask, 255 on the object; None where the source has no masks.
        fingerprint: hash of the names and contents' sizes; it changes when images are added, removed or replaced.
    """

    name: str
    names: tuple[str, ...]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    splits: dict[str, np.ndarray]
    read: Callable[[int], bytes]
    mask: Callable[[int], np.ndarray] | None
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    def split(self, name: str) -> np.ndarray:
        """Indices of one split (`all`: every image); UserError where there is no such split or it is empty."""
        if name == "all":
            return np.arange(len(self))
        if name not in self.splits or not len(self.splits[name]):
            filled = {k: len(v) for k, v in self.splits.items() if len(v)}
            raise UserError(f"data set {self.name} has no images in split {name!r}; it has {filled or 'no splits'}")
        return self.splits[name]


def fingerprint(names, sizes) -> str:
    """Order-sensitive hash of image names and byte counts."""
    digest = hashlib.sha256()
    for name, size in zip(names, sizes, strict=True):
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()[:16]


def read_mask(path: Path) -> np.ndarray:
    """A mask image of any mode as (H, W) uint8, 255 where it is above half of its range; UserError if unreadable."""
    try:
        with Image.open(path) as image:
            return np.where(np.asarray(image.convert("L")) > 127, 255, 0).astype(np.uint8)
    except FileNotFoundError:
        raise UserError(f"no mask {path}: every image needs one where masks are asked for") from None
    except OSError as error:
        raise UserError(f"cannot read mask {path}: {error}") from None


def require_folder(root: str, what: str, hint: str) -> Path:
    """`root` as a path; UserError with a hint of what to do where it is not a folder."""
    path = Path(root).expanduser()
    if not root or not path.is_dir():
        shown = f"{root!r} is not a folder" if root else "config.data.root is not set"
        raise UserError(f"{what}: {shown}. {hint}")
    return path


def from_files(
    name: str, root: Path, names: list[str], labels, classes, splits: dict[str, np.ndarray], mask_path
) -> Source:
    """A source of image files below `root`; `mask_path` maps a name to its mask's path, or is None."""
    paths = [root / n for n in names]
    missing = [str(p) for p in paths if not p.is_file()]
    if missing:
        raise UserError(f"data set {name}: {len(missing)} listed images do not exist: {some(missing)}")
    mask = None if mask_path is None else lambda i: read_mask(mask_path(names[i]))
    return Source(
        name=name,
        names=tuple(names),
        labels=labels,
        classes=tuple(classes),
        splits=splits,
        read=lambda i: paths[i].read_bytes(),
        mask=mask,
        fingerprint=fingerprint(names, (p.stat().st_size for p in paths)),
    )
