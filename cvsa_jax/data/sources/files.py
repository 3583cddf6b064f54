"""Image files below a folder: what lies there, what of it are images, and the source that they make."""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import features

from cvsa_jax.data import decode
from cvsa_jax.data.sources.contents import digests, identity
from cvsa_jax.data.sources.masks import READER, Mask, read_mask
from cvsa_jax.data.sources.source import CONTENTS, Source, fingerprint
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import as_text

READABLE = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
if features.check("avif"):
    READABLE |= {".avif"}
IGNORED = {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin"}  # besides what begins with a dot
# Names by which our own folders inside the user's are told: all of one of these sets.
_OURS = ({"config.json", "metrics.jsonl"}, {"config.json", "ckpt"}, {"identity.json", "names.txt"}, {"results.json"})


@dataclasses.dataclass
class Listing:
    """`sizes`: name of each image below a folder -> its bytes, in the order of the names; `left_out`: reason -> names
    of the other files."""

    sizes: dict[str, int]
    left_out: dict[str, list[str]]

    def without(self, names: Iterable[str], reason: str) -> "Listing":
        """This listing with some of its images left out."""
        gone = set(names)
        kept = {name: size for name, size in self.sizes.items() if name not in gone}
        return Listing(kept, self.left_out | ({reason: sorted(gone)} if gone else {}))


def listing(root: Path, *, skip: Iterable[str | None] = ()) -> Listing:
    """Everything below `root` but its entries `skip`. Links are followed; what the system or this project keeps there
    is nothing."""
    sizes, left_out = {}, {}

    def leave_out(name: str, reason: str) -> None:
        left_out.setdefault(reason, []).append(name)

    def walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        present = {entry.name for entry in found}
        if prefix and any(ours <= present for ours in _OURS):
            leave_out(prefix.rstrip("/"), "folders of runs, stores and reports")
            return
        for entry in found:
            name = prefix + entry.name
            if entry.name.startswith(".") or entry.name.lower() in IGNORED or name in skip:
                continue
            try:
                if entry.is_dir():
                    status = entry.stat()
                    identity = (status.st_dev, status.st_ino)
                    if identity in above:
                        leave_out(name, "links to a folder above them")
                    else:
                        walk(entry.path, f"{name}/", (*above, identity))
                elif os.path.splitext(name)[1].lower() in READABLE:
                    sizes[name] = entry.stat().st_size
                else:
                    leave_out(name, "files that are no images we read")
            except PermissionError:
                leave_out(name, "folders that may not be read")
            except OSError:
                leave_out(name, "links to nothing")

    status = os.stat(root)
    walk(str(root), "", ((status.st_dev, status.st_ino),))
    # By folders, as paths are sorted: `a/1` before `a-b/1`.
    return Listing({name: sizes[name] for name in sorted(sizes, key=lambda name: name.split("/"))}, left_out)


def sub_folder(folder: Path, *names: str) -> str | None:
    """The name of the sub-folder that has one of these names in any case, the first name first."""
    found = {entry.name.lower(): entry.name for entry in os.scandir(folder) if os.path.isdir(entry.path)}
    return next((found[name] for name in names if name in found), None)


def require_folder(root: str, what: str, hint: str) -> Path:
    """`root` as a path; UserError with a hint of what to do where it is not a folder."""
    path = Path(root).expanduser()
    if not root or not path.is_dir():
        shown = f"{root!r} is not a folder" if root else "config.data.root is not set"
        raise UserError(f"{what}: {shown}. {hint}")
    return path


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What a set of files has besides labels: `masks`, the path of each image's mask or None; `boxes` (N, 4) left, top,
    width, height in px of the upright image; `mask_of` reads a mask file."""

    masks: Sequence[Path | None] | None = None
    boxes: np.ndarray | None = None
    mask_of: Callable[[Path], Mask] = read_mask


def from_files(
    name: str,
    root: Path,
    names: Sequence[str],
    there: Listing,
    split_labels: tuple[dict[str, np.ndarray], np.ndarray | None, Sequence[str]],
    annotations: Annotations = Annotations(),
    cut: int = 0,
) -> Source:
    """A source of image files below `root`.

    Args:
        there: what lies below `root`; of the images that are in no list it is said.
        split_labels: splits, labels and classes.
        cut: see `Source`.

    Raises:
        UserError: listed images are not there, or listed twice.
    """
    if missing := [n for n in names if n not in there.sizes]:
        raise UserError(f"data set {name}: {len(missing)} listed images do not exist in {root}: {some(missing)}")
    if len(set(names)) < len(names):
        repeated = [n for n, count in collections.Counter(names).items() if count > 1]
        raise UserError(f"data set {name} lists {len(repeated)} images twice: {some(repeated)}")
    if len(there.sizes) > len(names):
        there = there.without(there.sizes.keys() - set(names), "images that are in no list")
    splits, labels, classes = split_labels
    files, masks = _Files(root, tuple(names), annotations, cut), annotations.masks
    known = None if masks is None else np.array([path is not None for path in masks])
    return Source(
        name=name,
        names=files.names,
        labels=labels,
        classes=tuple(map(as_text, classes)),
        splits=splits,
        read=files.read,
        path=files.path,
        mask=None if masks is None or not known.any() else files.mask,
        mask_kind=None if masks is None or not known.any() else files.mask_kind,
        box=None if annotations.boxes is None else files.box,
        annotation=files.annotation,
        identify=files.identify,
        hashes=lambda: files.digests,
        masked=None if known is None or known.all() else known,
        cut=cut,
        left_out=there.left_out,
    )


@dataclasses.dataclass(frozen=True)
class _Files:
    """Access to the files of a source, by index."""

    root: Path
    names: tuple[str, ...]
    annotations: Annotations
    cut: int

    def path(self, i: int) -> str:
        return f"{self.root}/{self.names[i]}"

    def read(self, i: int) -> bytes:
        return (self.root / self.names[i]).read_bytes()

    def mask(self, i: int) -> np.ndarray:
        return self._mask(i).values

    def mask_kind(self, i: int) -> str:
        return self._mask(i).kind

    def _mask(self, i: int) -> Mask:
        path = self.annotations.masks[i]
        if path is None:
            raise UserError(f"no mask of {self.names[i]}: every image needs one where masks are asked for")
        mask = self.annotations.mask_of(path)
        _check_aspect(path, mask.values.shape, self._header(i))
        return mask

    def box(self, i: int) -> np.ndarray:
        width, height = self._header(i).size
        left, top, w, h = self.annotations.boxes[i]
        if self.cut:  # the object may reach into what is cut off
            h = min(h, height - top)
        corners = np.array([top / height, left / width, (top + h) / height, (left + w) / width])
        if not (w > 0 and h > 0 and corners.min() >= -0.01 and corners.max() <= 1.01):  # NaN neither
            place = f"left {left:g}, top {top:g}, {w:g}×{h:g} px"
            raise UserError(f"the box of {self.root / self.names[i]} ({place}) does not lie in it")
        return np.clip(corners, 0, 1)

    @functools.cached_property
    def digests(self) -> list[str]:
        root = Path(os.path.abspath(self.root))
        return digests([os.path.join(root, name) for name in self.names], root)

    def identify(self, kind: str) -> str:
        told = self.digests if kind == CONTENTS else None
        note = f"without the lowest {self.cut} rows" if self.cut else ""
        return identity(kind, self.root, self.names, told, note)

    def annotation(self) -> str:
        boxes, masks = self.annotations.boxes, self.annotations.masks
        parts = [] if boxes is None else [(f"box {b}", 0) for b in np.asarray(boxes).tolist()]
        if masks is not None:
            there = [path for path in masks if path is not None]
            hashes = dict(zip(there, digests(there), strict=True))
            parts += [(n, hashes.get(path, "")) for n, path in zip(self.names, masks, strict=True)]
            parts.append(("reader", READER))
        return fingerprint(*zip(*parts, strict=True)) if parts else ""

    def _header(self, i: int) -> decode.Encoded:
        try:
            return decode.opened(self.read(i), self.cut)
        except (OSError, decode.Unreadable) as error:
            raise UserError(f"cannot read {self.root / self.names[i]}: {error}") from None


def _check_aspect(path: Path, shape: tuple[int, ...], image: decode.Encoded) -> None:
    """UserError where a mask (height, width) has another aspect than its image, but for rounding."""
    (height, width), (image_width, image_height) = shape, image.size
    if abs(np.log(width / height * image_height / image_width)) <= 0.02 + 1 / min(height, width):
        return
    note = " Its EXIF data say how to turn it: the mask must be of the image as it stands upright."
    sizes = f"{width}×{height} px and its image {image_width}×{image_height}"
    raise UserError(f"mask {path} is {sizes}: they must have one aspect.{note if image.turn is not None else ''}")


def if_there(path: Path) -> Path | None:
    """The path where it is a file's."""
    return path if path.is_file() else None
