"""Features that another program made, under the same protocol as those of our networks."""

import contextlib
import dataclasses
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from cvsa_jax.data.saliency_maps import Mapped
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.encode import pooled_by_component, pooled_by_head, pooled_by_maps
from cvsa_jax.evaluation.evaluator import labels_of
from cvsa_jax.evaluation.localizer import Localizer
from cvsa_jax.evaluation.look import NO_GUIDE, Guide, LookHead, fit, informative
from cvsa_jax.evaluation.protocol import EvalSpec, Knn, Probe
from cvsa_jax.evaluation.recognition import Labelled, Recognition, recognized
from cvsa_jax.models.activation import READOUTS, looked
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


class ExternalFeatures(Localizer):
    """In the place of an `Evaluator`: features (n, C) of a source's images from an npz of `names` (n,), as the source
    names its images or with folders before that, and `vectors` (n, C).

    There is no network. Where it looks can be told by `maps` (n, h, w), which are measured as an attention is, and by
    `patches` (n, h, w, C), features of the cells, of which the mean and the first component are taken as of a
    backbone's; both of whole images, squeezed to squares. Pooling other than the average is of the patches.

    Raises:
        UserError: it cannot be read, one of the `images` of the source (None: of all) has no vector, or has two, or
            there are no patches to pool.
    """

    def __init__(
        self,
        path: AnyPath,
        source: Source,
        spec: EvalSpec,
        images: np.ndarray | None = None,
        guide: Guide = NO_GUIDE,
    ):
        super().__init__(source, spec.size)
        self.spec, self.guide = spec, guide
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
        if spec.pooling == "attention" and "patches" not in self.placed:
            print(f"{path}: its features are taken as they are, since it has no `patches` that could be pooled")
            self.spec = dataclasses.replace(spec, pooling="average")
        elif spec.pooling == "attention":
            print(f"{path}: its `patches` are pooled by their first principal component, in the place of its vectors")
        elif spec.pooling != "average" and "patches" not in self.placed:
            raise UserError(
                f"{path} has no `patches` to be pooled by {spec.pooling}: add them, or take {path.name}@average"
            )
        images = np.arange(len(source)) if images is None else images
        self.path, self.rows = path, np.full(len(source), -1)
        self.rows[images] = _rows(path, [str(name) for name in names], tuple(source.names[i] for i in images))
        self.vectors = vectors[self.rows]

    @property
    def channels(self) -> int:
        """Of the patches."""
        return self.placed["patches"][0][-1]

    def key(self, network: None, images: np.ndarray) -> np.ndarray | None:
        """As `Evaluator.key`; by attention the first component is read, which needs none."""
        if self.spec.pooling == "head":
            return (self.guide.head or self.fit_head(network, images)).vector
        return None

    def fit_head(self, network: None, images: np.ndarray) -> LookHead:
        """As `Evaluator.fit_head`."""
        images = informative(self.guide.maps, images)
        with self.timed("look_head"):
            return fit(self._chunks("patches", images), self.guide.maps, images)

    def features(self, images: np.ndarray, key: np.ndarray | None = None) -> np.ndarray:
        """Vectors (k, C), or pooled patches, with the `key` of the train images."""
        if self.spec.pooling == "average":
            return self.vectors[images]
        pooled = []
        for places, chunk in self._chunks("patches", images):
            patches = jnp.asarray(chunk)
            if self.spec.pooling == "head":
                pooled.append(pooled_by_head(patches, jnp.asarray(key)))
            elif self.spec.pooling == "saliency":
                whole = np.tile(np.float32([0, 0, 1, 1]), (len(chunk), 1))
                maps = Mapped(np.zeros(0), self.guide.maps[images[places]], whole)
                pooled.append(pooled_by_maps(patches, maps, jnp.float32(self.guide.power)))
            else:
                pooled.append(pooled_by_component(patches))
        return np.concatenate(pooled)

    def recognition(
        self,
        network: None,
        train: np.ndarray,
        test: np.ndarray,
        *,
        knn: Knn,
        probe: Probe | None = None,
        key: np.ndarray | None = None,
    ) -> Recognition:
        """As `Evaluator.recognition`; UserError where the probe is to be fitted on crops, of which there are none."""
        if probe is not None and probe.crop_area is not None:
            raise UserError(f"{self.path} holds features of whole images: config.probe.augmented needs a network")
        labels = labels_of(self.source)
        key = self.key(network, train) if key is None else key
        halves = (Labelled(self.features(rows, key), labels[rows]) for rows in (train, test))
        return recognized(*halves, len(self.source.classes), knn=knn, probe=probe, timed=self.timed)

    def maps(self, network: None, indices: np.ndarray, key: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """As `Evaluator.maps`, of what the file holds."""
        maps = {}
        if "maps" in self.placed:
            maps["attention"] = np.concatenate([part for _, part in self._chunks("maps", indices)])
        if "patches" in self.placed:
            reads = {name: lambda cells, of=of: of(cells)[0] for name, of in READOUTS.items()}
            if self.spec.pooling == "head" and key is not None:
                reads["look"] = lambda cells: looked(cells, jnp.asarray(key))
            parts = [
                [read(jnp.asarray(part)) for read in reads.values()] for _, part in self._chunks("patches", indices)
            ]
            maps |= {name: np.concatenate(of) for name, of in zip(reads, zip(*parts, strict=True), strict=True)}
        return maps

    def _chunks(self, name: str, indices: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows of an array of the file, float32, few at a time: patches may be larger than all else."""
        with np.load(self.path) as arrays:
            values = arrays[name]
        for first in range(0, len(indices), CHUNK):
            places = slice(first, min(first + CHUNK, len(indices)))
            chunk = np.asarray(values[self.rows[indices[places]]], np.float32)
            if not np.isfinite(chunk).all():
                raise _misfit(self.path, name)
            yield places, chunk

    @property
    def shown(self) -> str:
        """As `Evaluator.shown`."""
        return "look" if self.spec.pooling == "head" else "attention"

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
