"""TFDS data sets that are prepared as ArrayRecord files: random access to sets of millions of images."""

import contextlib
import functools
import io
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from PIL import Image

from cvsa_jax.data.sources.contents import identity
from cvsa_jax.data.sources.masks import binary_mask
from cvsa_jax.data.sources.source import TIMES, Source, fingerprint
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import as_path, cache_folder, is_local, write_atomically

PREFIX = "tfds:"
_CHUNK = 256  # records read at once for their labels
# The object's pixels in the masks of these sets; what other sets' masks mean is not known here.
_MASKS = {
    "caltech_birds2011": binary_mask,
    "oxford_iiit_pet": lambda trimap: np.where(trimap == 2, 0, 255).astype(np.uint8),  # 2 is background; 3 the border
}


class NumberedNames(Sequence):
    """The names `<split>/<number>` of N examples, which are not kept in memory."""

    def __init__(self, sizes: dict[str, int]):
        self.splits = tuple(sizes)
        self.ends = np.cumsum(list(sizes.values()))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: SupportsIndex) -> str:
        split, number = self.locate(range(len(self))[i])
        return f"{split}/{number:07d}"

    def locate(self, i: SupportsIndex) -> tuple[str, int]:
        """Example i -> its split, and its number there."""
        k = int(np.searchsorted(self.ends, i, side="right"))
        return self.splits[k], int(i - (self.ends[k - 1] if k else 0))


def load(name: str, root: str) -> Source:
    """The set `name`, with TFDS's configuration and version if wanted (`stanford_dogs`, `cars196:2.2.0`), prepared
    below `root`, or where TFDS keeps its sets if that is empty.

    Its splits are TFDS's. Labels are those of the class label, boxes of the feature `bbox`; masks those of
    `caltech_birds2011` and `oxford_iiit_pet`. The labels are read once, from all records, and kept in the cache folder
    of the user; a split with images that have none (a public test set) is left out, which is printed.

    Raises:
        UserError: TFDS is not installed, or the set is not there, not in ArrayRecord files, or has no feature `image`.
    """
    builder, records = _open(name, root)
    from tensorflow_datasets.core.features import BBoxFeature, ClassLabel

    features = dict(builder.info.features.items())
    sizes = {split: len(r) for split, r in records.items()}
    identify = functools.partial(_identity, builder)
    version = identify(TIMES)
    labels, classes = None, ()
    if isinstance(features.get("label"), ClassLabel):
        labels = {split: _labels(f"{builder.name}_{split}_{version}", r) for split, r in records.items()}
        classes = tuple(features["label"].names)
        unlabelled = [split for split, values in labels.items() if values.min() < 0]
        if len(unlabelled) == len(records):
            labels, classes = None, ()
        elif unlabelled:
            print(f"{PREFIX}{name}: left out, since not all of their images have a label: {', '.join(unlabelled)}")
            sizes = {split: n for split, n in sizes.items() if split not in unlabelled}
    names = NumberedNames(sizes)

    def example(i: SupportsIndex) -> dict[str, Any]:
        split, number = names.locate(i)
        try:
            return records[split][number]
        except Exception as error:  # whatever the record reader raises at a damaged file
            raise OSError(f"record {number} of {split}: {error}") from error

    mask, box = None, None
    if "segmentation_mask" in features and builder.name in _MASKS:

        def mask(i: SupportsIndex) -> np.ndarray:
            with Image.open(io.BytesIO(example(i)["segmentation_mask"])) as picture:
                return _MASKS[builder.name](np.asarray(picture))

    if isinstance(features.get("bbox"), BBoxFeature):

        def box(i: SupportsIndex) -> np.ndarray:
            return np.asarray(example(i)["bbox"], float)

    ends = np.cumsum([0, *sizes.values()])
    return Source(
        name=builder.name,
        names=names,
        labels=None if labels is None else np.concatenate([labels[split] for split in sizes]),
        classes=classes,
        splits={split: np.arange(ends[k], ends[k + 1]) for k, split in enumerate(sizes)},
        read=lambda i: example(i)["image"],
        mask=mask,
        identify=identify,
        box=box,
    )


def _open(name: str, root: str) -> tuple[Any, dict[str, Sequence]]:
    """TFDS's builder of a set, and the records of each split in the order of their names, so that an example keeps its
    index whatever the order in which TFDS lists them; images stay encoded."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(f"config.data.kind={PREFIX}{name} needs TFDS: pip install -e '.[tfds]'") from None
    prepare = f"tfds build {name} --file_format=array_record" + (f" --data_dir={root}" if root else "")
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=root or None)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{PREFIX}{name}: {reason} Prepare it with: {prepare}") from None
    images = [key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
    if "image" not in images:
        raise UserError(f"{PREFIX}{name} has no feature 'image'; it has {', '.join(sorted(builder.info.features))}")
    try:
        records = builder.as_data_source(decoders={key: tfds.decode.SkipDecoding() for key in images})
    except NotImplementedError:  # what TFDS raises for a format without random access
        raise UserError(
            f"{PREFIX}{name}: the files in {builder.data_path} are not ArrayRecord, which random access needs. "
            f"Prepare the set again, into another folder: {prepare}"
        ) from None
    return builder, {split: records[split] for split in sorted(records)}


def _identity(builder: Any, kind: str) -> str:
    """The fingerprint of the files that hold the records, and so of images, labels, masks and boxes. Those in a bucket
    are told by sizes and times alone."""
    folder = as_path(str(builder.data_path))
    files = sorted(path for path in folder.iterdir() if ".array_record" in path.name)
    if is_local(folder):
        return identity(kind, folder, [path.name for path in files], note=builder.info.full_name)
    stats = [path.stat() for path in files]
    names = [builder.info.full_name, *(path.name for path in files)]
    return f"{TIMES}-{fingerprint(names, ['', *(f'{one.length} {one.mtime}' for one in stats)])}"


def _labels(title: str, records: Sequence) -> np.ndarray:
    """(n,) int32 labels of the records with this title, from the cache or, the first time, from the records."""
    path = cache_folder() / f"labels_{title}.npy"
    if path.is_file():
        return np.load(path)
    print(f"{title}: the labels of {len(records):,} images are read once, and kept in {path}", flush=True)
    chunks = (range(k, min(k + _CHUNK, len(records))) for k in range(0, len(records), _CHUNK))
    values = [example["label"] for chunk in chunks for example in records.__getitems__(list(chunk))]
    labels = np.array(values, np.int32)
    with contextlib.suppress(OSError, UserError):  # a cache, which may lie where nothing can be written
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: np.save(file, labels))
    return labels
