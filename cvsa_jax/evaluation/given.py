"""Features that another program made, under the same protocol as those of our networks."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.evaluator import labels_of
from cvsa_jax.evaluation.protocol import Knn, Probe
from cvsa_jax.evaluation.recognition import Labelled, Recognition, recognized
from cvsa_jax.runtime.errors import UserError, some


def is_features(path: Path) -> bool:
    """Whether a file is one of features: an npz of `names` and `vectors`."""
    if path.suffix != ".npz" or not path.is_file():
        return False
    with contextlib.suppress(Exception), np.load(path) as arrays:
        return {"names", "vectors"} <= set(arrays.files)
    return False


class GivenFeatures:
    """In the place of an `Evaluator`: features (n, C) of a source's images from an npz of `names` (n,), as the source
    names its images or with folders before that, and `vectors` (n, C). There is no network, and so there are no maps.

    Raises:
        UserError: it cannot be read, or an image of the source has no vector, or has two.
    """

    def __init__(self, path: Path, source: Source):
        try:
            with np.load(path) as arrays:
                names, vectors = arrays["names"], np.asarray(arrays["vectors"], np.float32)
        except Exception as error:  # a broken file raises whatever its reader stumbles over
            raise UserError(f"cannot read the features in {path}: {str(error).splitlines()[0][:160]}") from None
        if vectors.ndim != 2 or not vectors.shape[1] or len(vectors) != len(names) or not np.isfinite(vectors).all():
            raise UserError(f"{path}: `vectors` must be (n, C) finite numbers, one row for each of the n `names`")
        self.path, self.source, self.perf = path, source, {}
        self.vectors = vectors[_rows(path, [str(name) for name in names], source.names)]

    def recognition(
        self, network: None, train: np.ndarray, test: np.ndarray, *, knn: Knn, probe: Probe | None = None
    ) -> Recognition:
        """As `Evaluator.recognition`; UserError where the probe is to be fitted on crops, of which there are none."""
        if probe is not None and probe.crop_area is not None:
            raise UserError(f"{self.path} holds features of whole images: config.probe.augmented needs a network")
        labels = labels_of(self.source)
        halves = (Labelled(self.vectors[rows], labels[rows]) for rows in (train, test))
        return recognized(*halves, len(self.source.classes), knn=knn, probe=probe, timed=self._timed)

    def maps(self, network: None, indices: np.ndarray) -> dict[str, np.ndarray]:
        """None."""
        return {}

    class_maps = background = lambda self, *_: {}

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        yield


def _rows(path: Path, names: list[str], wanted: tuple[str, ...]) -> np.ndarray:
    """The row of each wanted name: names are equal, or one ends with the other behind a slash."""
    rows: dict[str, list[int]] = {}
    known = set(wanted)
    for row, name in enumerate(names):
        parts = name.replace("\\", "/").split("/")
        ends = ("/".join(parts[k:]) for k in range(len(parts)))
        rows.setdefault(next((end for end in ends if end in known), name), []).append(row)
    if missing := [name for name in wanted if name not in rows]:
        raise UserError(
            f"{path} has no vector for {len(missing)} of {len(wanted)} images: {some(missing)}; its names are like "
            f"{some(names, 2)}. Names are those of the files below the images' folder"
        )
    if double := [name for name in wanted if len(rows[name]) > 1]:
        raise UserError(f"{path} has several vectors for {len(double)} images: {some(double)}")
    return np.array([rows[name][0] for name in wanted])
