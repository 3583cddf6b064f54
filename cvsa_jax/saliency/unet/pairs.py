"""Decoded images and masks of one size as arrays on disk, from which the U-Net is trained: they can be made on one
machine and used on another."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cvsa_jax.data.sources import Source
from cvsa_jax.data.stored import write_squares
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import read_json, write_json_atomically
from cvsa_jax.saliency.detector import squeezed

Pairs = tuple[np.ndarray, np.ndarray]  # (N, S, S, 3) images and (N, S, S) masks, both uint8 and mapped from disk


def make_pairs(parts: list[tuple[Source, np.ndarray]], size: int, folder: Path) -> Pairs:
    """The images at the indices of each source, squeezed to size × size, and their masks (soft at the border).

    What `folder` already holds of the same images is used again.

    Raises:
        UserError: a source has no masks, or an image cannot be read.
    """
    sources = [[source.fingerprint, source.annotation(), indices.tolist()] for source, indices in parts]
    identity = {"size": size, "parts": sources}
    claim, files = folder / "identity.json", [folder / "images.npy", folder / "masks.npy"]
    if not claim.is_file() or read_json(claim) != identity:
        claim.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        _write(parts, size, files)
        write_json_atomically(claim, identity)
    images, masks = (np.load(path, mmap_mode="r") for path in files)
    return images, masks


def pair_batches(pairs: Pairs, batch_size: int, steps: range, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """`image` and `mask` of the batches, a pure function of (seed, step); every epoch sees each pair once."""
    n = len(pairs[0])
    order = functools.lru_cache(maxsize=2)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(n))
    for step in steps:
        rows = np.array([order(p // n)[p % n] for p in range(step * batch_size, (step + 1) * batch_size)])
        yield {"image": pairs[0][rows], "mask": pairs[1][rows]}


def _write(parts: list[tuple[Source, np.ndarray]], size: int, files: list[Path]) -> None:
    total = sum(len(indices) for _, indices in parts)
    images = np.lib.format.open_memmap(files[0], "w+", np.uint8, (total, size, size, 3))
    masks = np.lib.format.open_memmap(files[1], "w+", np.uint8, (total, size, size))
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
