"""The saliency store: for each image a small map, its box, area and confidence, in shards, with a manifest.

A store is a folder of `shard-00000.npy`, … (structured arrays of RECORD, in the order of `names.txt`) and of
`manifest.json`, which is written last: a folder without it is an unfinished store.
"""

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from cvsa_jax.data.decode import DECODER
from cvsa_jax.data.sources import Source
from cvsa_jax.data.sources.source import difference
from cvsa_jax.evaluation.boxes import bounding_box
from cvsa_jax.runtime import formats
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import AnyPath, LocalCopy, as_path, load_array, read_json

GRID = 64  # cells along each side of a stored map
_MAPPED = 64  # files
MOSTLY, HALF = 0.8, 0.5  # a map's share of the image that is mostly object, and the share of such maps that is odd
SHARD_SIZE = 256  # images per file, the smallest share of a machine
# `box` is (y0, x0, y1, x1) in fractions of the image around the map's cells at or above the manifest's threshold;
# `area` the share of these cells; `confidence` the detector's raw maximum in [0, 1]; `usable` is False for an image
# that could not be decoded and was left out.
RECORD = np.dtype(
    [("map", "u1", (GRID, GRID)), ("box", "f4", (4,)), ("area", "f4"), ("confidence", "f4"), ("usable", "?")]
)

MANIFEST, IDENTITY = "manifest.json", "identity.json"  # the latter names what an unfinished store is of
REPORT_PAGE = Path("report") / "saliency.html"  # in a store's folder
REMAKE = "make it again, into another folder or after deleting this one"
CENTER_BOX = (0.25, 0.25, 0.75, 0.75)


class SaliencyStore:
    """A finished store, of which a few files at a time are mapped into memory.

    Raises:
        UserError: there is no store, it is unfinished, of another version, or of another data set.
    """

    def __init__(self, folder: AnyPath, source: Source):
        self.folder = folder = as_path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            state = "is unfinished" if folder.is_dir() else "does not exist"
            raise UserError(
                f"the saliency store {folder} {state}: make it with python -m cvsa_jax.saliency --config=<the same> "
                "--detector=<name>, or point config.saliency.store to another"
            )
        self.manifest = read_json(path)
        formats.check(f"the saliency store {folder}", self.manifest, formats.STORE, REMAKE)
        if self.manifest.get("decoder") != DECODER:
            raise UserError(
                f"the saliency store {folder} is of images as another version of this program decoded them: {REMAKE}"
            )
        if self.manifest["fingerprint"] != source.fingerprint:
            raise UserError(self._difference(source))
        made_from = self.manifest["settings"].get("annotation_hash")
        if made_from is not None and made_from != source.annotation():
            raise UserError(
                f"the saliency store {folder} was made from other masks or boxes than {source.name} has now: {REMAKE}"
            )
        self._local = LocalCopy(folder)
        self._paths = shard_paths(self._local.path, len(source))
        if missing := [path.name for path in self._paths if not path.is_file()]:
            raise UserError(f"the saliency store {folder} lacks {len(missing)} files: {some(missing)}. Make it again")
        self._length = len(source)
        # An open map holds a file descriptor, of which a process has about a thousand.
        self._shard = functools.lru_cache(_MAPPED)(lambda k: load_array(self._paths[k], mapped=True))

    def __len__(self) -> int:
        return self._length

    @functools.cached_property
    def usable(self) -> np.ndarray:
        """(N,) False of images that could not be decoded."""
        return self._field("usable") if self.manifest["unreadable"] else np.ones(len(self), bool)

    @functools.cached_property
    def boxes(self) -> np.ndarray:
        """(N, 4) float32, the box of each image: (y0, x0, y1, x1) in fractions of the image."""
        return self._field("box")

    @functools.cached_property
    def areas(self) -> np.ndarray:
        """(N,) float32, the share of each map that is at the threshold."""
        return self._field("area")

    @functools.cached_property
    def confidences(self) -> np.ndarray:
        """(N,) float32, the detector's confidence in each map."""
        return self._field("confidence")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self), GRID, GRID)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """(k,) indices into the source -> (k, GRID, GRID) uint8 maps."""
        return np.stack([self.record(int(i))["map"] for i in np.asarray(indices)])

    def record(self, i: int) -> np.void:
        """All that is stored of image i: `map`, `box`, `area`, `confidence` and `usable`; UserError where its file
        is no longer there."""
        try:
            return self._shard(i // SHARD_SIZE)[i % SHARD_SIZE]
        except OSError as error:
            raise UserError(
                f"the saliency store {self.folder} was changed while it was in use ({error}). Make it again, and the "
                "same command goes on"
            ) from None

    @property
    def described(self) -> dict:
        """The entry in a run's `data.json`."""
        return {key: self.manifest[key] for key in ("detector", "supervision")}

    @property
    def identity(self) -> dict:
        """The settings that identify a pass: the detector and its settings, weights and threshold."""
        return {"detector": self.manifest["detector"]} | self.manifest["settings"]

    @property
    def threshold(self) -> float:
        """Of the maps, for box and area."""
        return self.manifest["settings"]["threshold"]

    @property
    def fallback_share(self) -> float:
        """Share of the images with a map whose map has no cell at the threshold, so that its box is the centre's."""
        return self.manifest["fallback"] / max(int(self.usable.sum()), 1)

    def _field(self, name: str) -> np.ndarray:
        return np.concatenate(read_field(self._paths, name))

    def _difference(self, source: Source) -> str:
        stored = set((self.folder / "names.txt").read_bytes().decode(errors="surrogateescape").splitlines())
        names = set(source.names)
        unmapped, unknown = [n for n in source.names if n not in stored], stored - names
        if len(unmapped) == len(source):
            detail = f"it holds maps of {some(sorted(stored), 2)}, none of the images of {source.name}"
        elif unmapped:
            detail = f"{len(unmapped)} images have no map: {some(unmapped)}"
        elif unknown:
            detail = f"it holds maps of {len(unknown)} images that the data set no longer has: {some(sorted(unknown))}"
        else:
            detail = difference(self.manifest["fingerprint"], source.fingerprint)
        return (
            f"the saliency store {self.folder} was not made for this data set: {detail}. Make it again with "
            "python -m cvsa_jax.saliency (into another folder, or after deleting this one)"
        )


def open_store(configured: str, source: Source, detector: str, warn_fallback: float) -> SaliencyStore:
    """The store of a training, with a warning where more than `warn_fallback` of its maps show nothing."""
    store = SaliencyStore(store_path(configured, source.name, detector), source)
    if store.fallback_share > warn_fallback:
        print(
            f"warning: {store.fallback_share:.0%} of the maps in {store.folder} have no cell at the threshold "
            f"{store.threshold:g}: look at {store.folder / REPORT_PAGE} before you trust them "
            "(config.saliency.warn_fallback sets this limit)"
        )
    if (share := float((store.areas[store.usable] > MOSTLY).mean())) > HALF:
        print(
            f"warning: {share:.0%} of the maps in {store.folder} are object for more than {MOSTLY:.0%} of the image: "
            f"are they inverted? Look at {store.folder / REPORT_PAGE}"
        )
    return store


def store_path(configured: str, source_name: str, detector: str) -> AnyPath:
    """Where a store lies: as configured, else `saliency/<data set>/<detector>` below the current folder."""
    return as_path(configured) if configured else Path("saliency") / source_name / detector


def shard_paths(folder: Path, n: int) -> list[Path]:
    """The files of a store of n images."""
    return [folder / f"shard-{k:05d}.npy" for k in range(-(-n // SHARD_SIZE))]


def read_field(paths: list[Path], name: str) -> list[np.ndarray]:
    """One field of RECORD from each file, which is open no longer than that."""
    return [load_array(path, mapped=True)[name].copy() for path in paths]


def make_record(saliency: np.ndarray, confidence: float, threshold: float) -> np.ndarray:
    """One RECORD from a map (h, w) float in [0, 1]. A map without a cell at the threshold gets the centre box."""
    record = np.zeros((), RECORD)
    record["map"] = np.round(_to_grid(saliency) * 255)
    on = record["map"] >= 255 * threshold
    record["box"] = CENTER_BOX if (box := bounding_box(on)) is None else box
    record["area"], record["confidence"], record["usable"] = on.mean(), confidence, True
    return record


def _to_grid(saliency: np.ndarray) -> np.ndarray:
    """(h, w) float -> (GRID, GRID) float32: averages of what a cell covers, or bilinear where the map is smaller."""
    kind = Image.Resampling.BOX if min(saliency.shape) >= GRID else Image.Resampling.BILINEAR
    image = Image.fromarray(np.ascontiguousarray(saliency, np.float32), "F")
    return np.clip(np.asarray(image.resize((GRID, GRID), kind)), 0, 1)
