"""What a data set is to the rest of the code: names, labels, splits, and random access to encoded images."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cvsa_jax.runtime.errors import UserError, some


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
        box: index -> (4,) ground-truth box (y0, x0, y1, x1) in fractions of the image; None where it has no boxes.
        annotation: hash of the masks' sizes and of the boxes, so that maps made from them can be told to be outdated.
    """

    name: str
    names: Sequence[str]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    splits: dict[str, np.ndarray]
    read: Callable[[int], bytes]
    mask: Callable[[int], np.ndarray] | None
    fingerprint: str
    box: Callable[[int], np.ndarray] | None = None
    annotation: str = ""

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
            return binary_mask(np.asarray(image.convert("L")))
    except FileNotFoundError:
        raise UserError(f"no mask {path}: every image needs one where masks are asked for") from None
    except OSError as error:
        raise UserError(f"cannot read mask {path}: {error}") from None


def binary_mask(values: np.ndarray) -> np.ndarray:
    """uint8 values -> 255 where they are above half of their range, else 0."""
    return np.where(values > 127, 255, 0).astype(np.uint8)


def require_folder(root: str, what: str, hint: str) -> Path:
    """`root` as a path; UserError with a hint of what to do where it is not a folder."""
    path = Path(root).expanduser()
    if not root or not path.is_dir():
        shown = f"{root!r} is not a folder" if root else "config.data.root is not set"
        raise UserError(f"{what}: {shown}. {hint}")
    return path


def from_files(
    name: str, root: Path, names: list[str], labels, classes, splits: dict[str, np.ndarray], mask_path, boxes=None
) -> Source:
    """A source of image files below `root`; `mask_path` maps a name to its mask's path, or is None.

    Args:
        boxes: (N, 4) left, top, width, height in pixels, as CUB-200-2011 has them, or None.
    """
    paths = [root / n for n in names]
    missing = [str(p) for p in paths if not p.is_file()]
    if missing:
        raise UserError(f"data set {name}: {len(missing)} listed images do not exist: {some(missing)}")
    mask = None if mask_path is None else lambda i: read_mask(mask_path(names[i]))

    def box(i: int) -> np.ndarray:
        with Image.open(paths[i]) as image:
            width, height = image.size
        left, top, w, h = boxes[i]
        corners = np.array([top / height, left / width, (top + h) / height, (left + w) / width])
        if not (w > 0 and h > 0 and corners.min() >= -0.01 and corners.max() <= 1.01):  # NaN neither
            raise UserError(f"the box of {paths[i]} (left {left:g}, top {top:g}, {w:g}×{h:g} px) does not lie in it")
        return np.clip(corners, 0, 1)

    annotated = [] if boxes is None else [(f"box {b}", 0) for b in np.asarray(boxes).tolist()]
    if mask_path is not None:
        # A mask that is not there is an error when it is asked for, and not before.
        sizes = ((str(n), path.stat().st_size if (path := mask_path(n)).is_file() else 0) for n in names)
        annotated += sizes
    return Source(
        name=name,
        names=tuple(names),
        labels=labels,
        classes=tuple(classes),
        splits=splits,
        read=lambda i: paths[i].read_bytes(),
        mask=mask,
        box=None if boxes is None else box,
        annotation=fingerprint(*zip(*annotated, strict=True)) if annotated else "",
        fingerprint=fingerprint(names, (p.stat().st_size for p in paths)),
    )
