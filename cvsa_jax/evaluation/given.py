"""Features that another program made, under the same protocol as those of our networks."""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.evaluator import labels_of
from cvsa_jax.evaluation.localizer import Localizer
from cvsa_jax.evaluation.protocol import Knn, Probe
from cvsa_jax.evaluation.recognition import Labelled, Recognition, recognized
from cvsa_jax.models.activation import READOUTS
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import AnyPath, as_text, on_disk

PLACED = {"maps": "(n, h, w)", "patches": "(n, h, w, C)"}  # what may say where a model looks
CHUNK = 256  # images whose patches are converted at a time


def is_features(path: AnyPath) -> bool:
    """Whether a file is one of features: an npz of `names` and `vectors`."""
    if path.suffix != ".npz" or not path.is_file():
        return False
    with contextlib.suppress(Exception), np.load(on_disk(path)) as arrays:
        return {"names", "vectors"} <= set(arrays.files)
    return False


class GivenFeatures(Localizer):
    """In the place of an `Evaluator`: features (n, C) of a source's images from an npz of `names` (n,), as the source
    names its images or with folders before that, and `vectors` (n, C).

    There is no network. Where it looks can be told by `maps` (n, h, w), which are measured as an attention is, and by
    `patches` (n, h, w, C), features of the cells, of which the mean and the first component are taken as of a
    backbone's; both of whole images, squeezed to squares.

    Raises:
        UserError: it cannot be read, or one of the `images` of the source (None: of all) has no vector, or has two.
    """

    def __init__(self, path: AnyPath, source: Source, size: int, images: np.ndarray | None = None):
        super().__init__(source, size)
        path = on_disk(path)
        try:
            with np.load(path) as arrays:
                names, vectors = arrays["names"], np.asarray(arrays["vectors"], np.float32)
                self.placed = {name: _header(path, name) for name in PLACED if name in arrays}
        except Exception as error:  # a broken file raises whatever its reader stumbles over
            raise UserError(f"cannot read the features in {path}: {str(error).splitlines()[0][:160]}") from None
        if vectors.ndim != 2 or not vectors.shape[1] or len(vectors) != len(names) or not np.isfinite(vectors).all():
            raise UserError(f"{path}: `vectors` must be (n, C) finite numbers, one row for each of the n `names`")
        for name, (shape, numeric) in self.placed.items():
            if not numeric or len(shape) != len(PLACED[name].split(",")) or shape[0] != len(names) or 0 in shape:
                raise _misfit(path, name)
        images = np.arange(len(source)) if images is None else images
        self.path, self.rows = path, np.full(len(source), -1)
        self.rows[images] = _rows(path, [str(name) for name in names], tuple(source.names[i] for i in images))
        self.vectors = vectors[self.rows]

    def recognition(
        self, network: None, train: np.ndarray, test: np.ndarray, *, knn: Knn, probe: Probe | None = None
    ) -> Recognition:
        """As `Evaluator.recognition`; UserError where the probe is to be fitted on crops, of which there are none."""
        if probe is not None and probe.crop_area is not None:
            raise UserError(f"{self.path} holds features of whole images: config.probe.augmented needs a network")
        labels = labels_of(self.source)
        halves = (Labelled(self.vectors[rows], labels[rows]) for rows in (train, test))
        return recognized(*halves, len(self.source.classes), knn=knn, probe=probe, timed=self.timed)

    def maps(self, network: None, indices: np.ndarray) -> dict[str, np.ndarray]:
        """As `Evaluator.maps`, of what the file holds."""
        maps = {}
        if "maps" in self.placed:
            maps["attention"] = np.concatenate(list(self._chunks("maps", indices)))
        if "patches" in self.placed:
            read = [[of(jnp.asarray(part))[0] for of in READOUTS.values()] for part in self._chunks("patches", indices)]
            maps |= {name: np.concatenate(parts) for name, parts in zip(READOUTS, zip(*read, strict=True), strict=True)}
        return maps

    def _chunks(self, name: str, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Rows of an array of the file, float32, few at a time: patches may be larger than all else."""
        with np.load(self.path) as arrays:
            values = arrays[name]
        for part in np.array_split(self.rows[indices], -(-len(indices) // CHUNK)):
            chunk = np.asarray(values[part], np.float32)
            if not np.isfinite(chunk).all():
                raise _misfit(self.path, name)
            yield chunk

    shown = "attention"  # where the file has maps
    class_maps = background = lambda self, *_: {}


def _header(path: Path, name: str) -> tuple[tuple[int, ...], bool]:
    """Shape of an array in an npz, and whether it is of numbers, without reading it."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype.kind in "fiub"


def _misfit(path: Path, name: str) -> UserError:
    return UserError(f"{path}: `{name}` must be {PLACED[name]} finite numbers, a row for each of the `names`")


def _rows(path: Path, names: list[str], wanted: tuple[str, ...]) -> np.ndarray:
    """The row of each wanted name: names are equal, or one ends with the other behind a slash."""
    rows: dict[str, list[int]] = {}
    wanted = tuple(map(as_text, wanted))
    known = set(wanted)
    for row, name in enumerate(names):
        splits = (name.split("/"), name.replace("\\", "/").split("/"))
        ends = ["/".join(parts[k:]) for parts in splits for k in range(len(parts))]
        rows.setdefault(next((end for end in ends if end in known), name), []).append(row)
    if missing := [name for name in wanted if name not in rows]:
        raise UserError(
            f"{path} has no vector for {len(missing)} of {len(wanted)} images: {some(missing)}; its names are like "
            f"{some(names, 2)}. Names are those of the files below the images' folder"
        )
    if double := [name for name in wanted if len(rows[name]) > 1]:
        raise UserError(f"{path} has several vectors for {len(double)} images: {some(double)}")
    return np.array([rows[name][0] for name in wanted])
