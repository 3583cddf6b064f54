"""Decoded images and masks of one size as arrays on disk, from which the U-Net is trained: they can be made on one
machine and used on another."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cvsa_jax.data.decode import DECODER
from cvsa_jax.data.sources import Source
from cvsa_jax.data.stored import reserved_array, write_squares
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import check_room, output_folder, read_json, whole_folder, write_json_atomically
from cvsa_jax.saliency.detector import squeezed

_FILES = ("images.npy", "masks.npy")
Pairs = tuple[np.ndarray, np.ndarray]  # (N, S, S, 3) images and (N, S, S) masks, both uint8 and mapped from disk


def make_pairs(parts: list[tuple[Source, np.ndarray]], size: int, folder: Path) -> Pairs:
    """The images at the indices of each source, squeezed to size × size, and their masks (soft at the border).

    What `folder` already holds of the same images is used again.

    Raises:
        UserError: a source has no masks, or an image cannot be read.
    """
    sources = [[source.fingerprint, source.annotation(), indices.tolist()] for source, indices in parts]
    identity = {"size": size, "parts": sources, "decoder": DECODER}
    claim = folder / "identity.json"
    if not claim.is_file() or read_json(claim) != identity:
        output_folder("--workdir", folder.parent)
        total = sum(len(indices) for _, indices in parts)
        check_room(folder.parent, total * 4 * size**2, "the decoded images and masks", "make room there")
        with whole_folder(folder) as half:
            _write(parts, size, half)
            write_json_atomically(half / "identity.json", identity)
    images, masks = (np.load(folder / name, mmap_mode="r") for name in _FILES)
    return images, masks


def pair_batches(pairs: Pairs, batch_size: int, steps: range, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """`image` and `mask` of the batches, a pure function of (seed, step); every epoch sees each pair once."""
    n = len(pairs[0])
    order = functools.lru_cache(maxsize=2)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(n))
    for step in steps:
        rows = np.array([order(p // n)[p % n] for p in range(step * batch_size, (step + 1) * batch_size)])
        yield {"image": pairs[0][rows], "mask": pairs[1][rows]}


def _write(parts: list[tuple[Source, np.ndarray]], size: int, folder: Path) -> None:
    total = sum(len(indices) for _, indices in parts)
    images = reserved_array(folder / _FILES[0], (total, size, size, 3))
    masks = reserved_array(folder / _FILES[1], (total, size, size))
    k = 0
    for source, indices in parts:
        if source.mask is None:
            raise UserError(f"data set {source.name} has no masks, from which the detector is trained")
        write_squares(source, indices, images[k : k + len(indices)])
        for i in indices:
            masks[k] = squeezed(source.mask(int(i)), size)
            k += 1
    images.flush()
    masks.flush()
