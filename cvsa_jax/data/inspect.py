"""What a look at every image of a source finds: unreadable files, equal and nearly equal images, odd annotations."""

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from cvsa_jax.data import decode
from cvsa_jax.data.reading import open_image
from cvsa_jax.data.sources import Source
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.progress import Progress
from cvsa_jax.runtime.workers import in_threads

NEAR = 3  # bits of 64 in which the hashes of nearly equal images may differ
FAINT = 16  # levels of 256
_GLANCES = 16  # images that a training looks at before it begins
_SIDE = 8  # cells of the hash, which compares each with its neighbour


@dataclasses.dataclass(frozen=True)
class Seen:
    """One image: why it cannot be read, or its (height, width), its lowest and highest level in any channel, the hash
    of its bytes and of its look, and whether it had to be turned; what is wrong with its mask, the mask's share of the
    image and its kind, and what is wrong with its box."""

    unreadable: str = ""
    size: tuple[int, int] = (0, 0)
    levels: tuple[int, int] = (0, 255)
    content: str = ""
    look: int = 0
    turned: bool = False
    mask_error: str = ""
    mask_share: float | None = None
    mask_kind: str = ""
    box_error: str = ""

    @property
    def is_sound(self) -> bool:
        """Nothing of it is unreadable or wrong."""
        return not (self.unreadable or self.mask_error or self.box_error)


def inspect(source: Source, indices: np.ndarray) -> list[Seen]:
    """Reads the images at the indices, with their masks and boxes."""
    masked = source.has_mask(indices)
    seen, progress = [], Progress("check", len(indices))
    items = ((int(i), bool(has)) for i, has in zip(indices, masked, strict=True))
    for one in in_threads(lambda item: _see(source, *item), items, ahead=64):
        seen.append(one)
        progress.update(len(seen))
    return seen


def equal_groups(keys: Iterable) -> list[list[int]]:
    """Rows of equal keys, each group with at least two; empty keys are none."""
    rows = collections.defaultdict(list)
    for row, key in enumerate(keys):
        if key:
            rows[key].append(row)
    return [group for group in rows.values() if len(group) > 1]


def near_pairs(looks: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows whose (n,) uint64 hashes differ in 1 to NEAR bits, or in none. Of NEAR + 1 parts of such hashes one
    is equal, so that only rows with an equal part are compared. Of rows with one hash, each is paired with the first
    alone, which stands for all of them in pairs with others: as many pairs as there are chains of such rows."""
    values, first, group_of = np.unique(looks, return_index=True, return_inverse=True)
    equal = [(int(first[group]), row) for row, group in enumerate(group_of.tolist()) if first[group] != row]
    bits, pairs = 64 // (NEAR + 1), set()
    for part in range(NEAR + 1):
        keys = (values >> np.uint64(part * bits)) & np.uint64(2**bits - 1)
        order = np.argsort(keys, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            for k, row in enumerate(group[:-1]):
                distance = np.bitwise_count(values[group[k + 1 :]] ^ values[row])
                near = group[k + 1 :][distance <= NEAR]
                pairs |= {tuple(sorted((int(first[row]), int(first[other])))) for other in near}
    return sorted([*equal, *pairs])


def _see(source: Source, i: int, has_mask: bool) -> Seen:
    try:
        content = hashlib.sha256(source.read(i)).hexdigest()
        encoded = open_image(source, i)
        image = encoded.pixels()
    except (decode.Unreadable, OSError) as error:
        return Seen(unreadable=str(error))
    mask_error, share, kind, box_error = "", None, "", ""
    if has_mask:
        try:
            share = float((source.mask(i) > 127).mean())
            kind = source.mask_kind(i) if source.mask_kind else ""
        except UserError as error:
            mask_error = str(error)
    if source.box is not None:
        try:
            source.box(i)
        except UserError as error:
            box_error = str(error)
    size = (image.height, image.width)
    levels = levels_of(np.asarray(image))
    turned = encoded.turn is not None
    return Seen("", size, levels, content, look_of(image), turned, mask_error, share, kind, box_error)


def check_annotations(source: Source, indices: np.ndarray) -> None:
    """UserError where boxes of these images do not lie in them or masks are wrong, before figures that need them are
    computed. Prints how masks of degrees are taken."""
    masked, wrong, degrees = source.has_mask(indices), [], 0
    for i, has_mask in zip(indices.tolist(), masked.tolist(), strict=True):
        try:
            if source.box is not None:
                source.box(i)
            if has_mask:
                mask = source.mask(i)
                degrees += bool(((mask > 0) & (mask < 255)).any())
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""))
    if degrees:
        print(
            f"{degrees} of {masked.sum()} masks are of degrees: figures count levels above 127 of 255 as "
            "object, and --detector=masks takes them as they are"
        )


def levels_of(image: np.ndarray) -> tuple[int, int]:
    """The lowest and the highest level of an image in any channel."""
    return int(image.min()), int(image.max())


def faint_levels(levels: Iterable[tuple[int, int]]) -> list[int]:
    """Rows of images that use less than a sixteenth of their range of levels, as pixels of 12 bits that were saved in
    16, or of a few levels that were meant to be 0 to 1; a constant image is one, too."""
    return [row for row, (low, high) in enumerate(levels) if high - low < FAINT]


def warn_of_faint(source: Source, pool: np.ndarray) -> None:
    """Looks at a few images of the pool, evenly spaced, and prints a warning where most of them are faint."""
    looked = pool[np.unique(np.linspace(0, len(pool) - 1, _GLANCES).astype(int))]
    levels = []
    for i in looked:
        with contextlib.suppress(decode.Unreadable):  # which whoever reads it says
            levels.append(levels_of(np.asarray(open_image(source, int(i)).pixels(np.full(2, 256.0)))))
    faint = faint_levels(levels)
    if 2 * len(faint) > len(levels):
        print(
            f"warning: {len(faint)} of {len(levels)} images of {source.name} that were looked at use less than a "
            "sixteenth of their range of levels, so they are nearly black, or constant: python -m cvsa_jax.data check "
            "shows them"
        )


def look_of(image: Image.Image) -> int:
    """The difference hash: 64 bits, whether each cell of a coarse grey image is darker than the one right of it."""
    grey = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(grey[:, :-1] < grey[:, 1:]).tobytes(), "big")
