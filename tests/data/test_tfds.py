import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support.small_sources import CROP

from configs import common
from cvsa_jax import settings
from cvsa_jax.data import pipeline, reading
from cvsa_jax.data.index import Order
from cvsa_jax.data.sources import load, source, tfds
from cvsa_jax.runtime.errors import UserError

library = pytest.importorskip("tensorflow_datasets", reason="needs pip install -e '.[tfds]'")
ArrayRecordReader = pytest.importorskip("array_record.python.array_record_module").ArrayRecordReader
SPLITS = {"test": 5, "train": 17}
BREEDS = ("beagle", "persian", "pug")


def picture(seed: int, width: int = 24) -> bytes:
    encoded = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, width, 3), np.uint8)
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def trimap(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 4, (20, 24, 1), np.uint8)


def example(split: str, k: int) -> dict:
    seed = 100 * (split == "test") + k
    box = np.array([0.1, 0.2, 0.5 + k / 200, 0.75], np.float32)
    return {
        "image": io.BytesIO(picture(seed)),
        "label": seed % len(BREEDS),
        "segmentation_mask": trimap(seed),
        "bbox": library.features.BBox(*box),
    }


def prepare(root: Path, name: str = "oxford_iiit_pet", *, drop=(), splits=None, file_format="array_record", edit=None):
    """Writes a set with TFDS itself."""
    features = {
        "image": library.features.Image(),
        "label": library.features.ClassLabel(names=BREEDS),
        "segmentation_mask": library.features.Image(shape=(None, None, 1)),
        "bbox": library.features.BBoxFeature(),
    }
    features = {key: feature for key, feature in features.items() if key not in drop}

    def info(self):
        return library.core.DatasetInfo(builder=self, features=library.features.FeaturesDict(features))

    def examples(split: str, n: int):
        for k in range(n):
            row = example(split, k) | ({} if edit is None else edit(split, k))
            yield k, {key: row[key] for key in features}

    def generators(self, manager):
        return {split: examples(split, n) for split, n in (splits or SPLITS).items()}

    members = {"name": name, "VERSION": library.core.Version("3.1.0"), "_info": info, "_split_generators": generators}
    members |= {"_generate_examples": None}
    with library.core.registered.skip_registration():
        builder = type("Prepared", (library.core.GeneratorBasedBuilder,), members)
    builder(data_dir=str(root), file_format=file_format).download_and_prepare()
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> str:
    return str(prepare(tmp_path_factory.mktemp("tfds")))


def test_images_and_labels_equal_the_records(pets):
    found = load("tfds:oxford_iiit_pet", pets)
    expected = []
    for split in found.splits:
        (path,) = Path(pets).rglob(f"*-{split}.array_record-*")
        rows = [tf.train.Example.FromString(r).features.feature for r in ArrayRecordReader(str(path)).read_all()]
        expected += [(row["image"].bytes_list.value[0], row["label"].int64_list.value[0]) for row in rows]
    assert [found.read(i) for i in range(len(found))] == [image for image, _ in expected]
    assert found.labels.tolist() == [label for _, label in expected]
    assert sorted(found.read(i) for i in found.splits["train"]) == sorted(picture(k) for k in range(17))
    assert found.classes == BREEDS
    assert found.labels.dtype == np.int32


def test_tfds_config_loads_the_set(pets):
    config = common.pretrain()
    common.tfds(config, "oxford_iiit_pet", test_split="test")
    config.data.root = pets
    found = settings.load_source(config.data)
    assert {split: len(found.split(split)) for split in (config.data.train_split, config.data.test_split)} == SPLITS


def test_splits_and_names_follow_the_records(pets):
    found = load("tfds:oxford_iiit_pet:3.1.0", pets)
    assert {split: len(rows) for split, rows in found.splits.items()} == SPLITS
    assert list(found.splits) == sorted(SPLITS)
    names = {split: [found.names[i] for i in rows] for split, rows in found.splits.items()}
    assert names == {split: [f"{split}/{k:07d}" for k in range(n)] for split, n in SPLITS.items()}
    assert len(set(found.names)) == len(found) == 22
    assert list(found.names)[-1] == found.names[-1]
    with pytest.raises(IndexError):
        found.names[22]


def test_numbered_names_locate_billions_of_images():
    names = tfds.NumberedNames({"train": 10**9, "val": 5})
    assert names[10**9] == "val/0000000"
    assert names[10**9 - 1] == "train/999999999"
    assert names.locate(3) == ("train", 3)


def test_masks_and_boxes_belong_to_their_images(pets):
    found = load("tfds:oxford_iiit_pet", pets)
    seed_of = {picture(k + offset): k + offset for offset in (0, 100) for k in range(17)}
    for i in range(len(found)):
        seed = seed_of[found.read(i)]
        np.testing.assert_array_equal(found.mask(i), np.where(trimap(seed)[..., 0] == 2, 0, 255))
        np.testing.assert_allclose(found.box(i), [0.1, 0.2, 0.5 + seed % 100 / 200, 0.75], atol=1e-6)


def test_masks_of_unknown_sets_are_not_used(tmp_path):
    found = load("tfds:some_cats", prepare(tmp_path, "some_cats", drop=("bbox",)).as_posix())
    assert (found.name, found.mask, found.box, found.annotation()) == ("some_cats", None, None, "")


def test_masks_of_birds_are_the_majority_of_annotators(tmp_path):
    shades = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)[..., None]
    root = prepare(tmp_path, "caltech_birds2011", edit=lambda split, k: {"segmentation_mask": shades})
    assert load("tfds:caltech_birds2011", str(root)).mask(0).tolist() == [[0, 0, 0], [255, 255, 255]]


def test_batches_equal_those_of_a_folder_of_the_same_images(pets, tmp_path):
    found = load("tfds:oxford_iiit_pet", pets)
    for i in range(len(found)):
        path = tmp_path / f"{found.names[i]}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(found.read(i))
    files = load("folder", str(tmp_path))
    assert [Path(name).stem for name in files.names] == [Path(name).name for name in found.names]

    def batches(of: source.Source) -> list[dict]:
        pool, labels = of.splits["train"], found.labels
        return list(pipeline.train_batches(of, pool, None, CROP, Order(9, range(3, 6), seed=7), labels))

    for ours, theirs in zip(batches(found), batches(files), strict=True):
        for key in theirs:
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_labels_are_read_once(pets, monkeypatch, capsys):
    first = load("tfds:oxford_iiit_pet", pets)
    assert capsys.readouterr().out.count("read once") == 2

    def refuse(*_):
        raise AssertionError("the records were read again")

    records = "tensorflow_datasets.core.data_sources.base.BaseDataSource"
    for way in ("__getitem__", "__getitems__"):
        monkeypatch.setattr(f"{records}.{way}", refuse)
    again = load("tfds:oxford_iiit_pet", pets)
    assert capsys.readouterr().out == ""
    np.testing.assert_array_equal(again.labels, first.labels)


def test_sets_of_one_name_have_their_own_fingerprints_and_labels(pets, tmp_path):
    first = load("tfds:oxford_iiit_pet", pets)
    root = prepare(tmp_path, edit=lambda split, k: {"label": 2, "image": io.BytesIO(picture(k, width=40))})
    second = load("tfds:oxford_iiit_pet", str(root))
    assert second.fingerprint != first.fingerprint
    assert set(second.labels.tolist()) == {2}


def test_split_without_labels_is_left_out_and_reported(tmp_path, capsys):
    root = prepare(tmp_path, edit=lambda split, k: {"label": -1} if split == "test" and k > 2 else {})
    found = load("tfds:oxford_iiit_pet", str(root))
    assert "left out, since not all of their images have a label: test" in capsys.readouterr().out
    assert {split: rows.tolist() for split, rows in found.splits.items()} == {"train": list(range(17))}
    assert len(found) == len(found.labels) == 17
    assert found.labels.min() == 0
    assert sorted(found.read(i) for i in range(17)) == sorted(picture(k) for k in range(17))


def test_set_of_hidden_labels_is_unlabelled(tmp_path):
    found = load("tfds:some_cats", str(prepare(tmp_path, "some_cats", edit=lambda split, k: {"label": -1})))
    assert (found.labels, found.classes, len(found)) == (None, (), 22)


def test_set_without_class_label_is_unlabelled(tmp_path):
    found = load("tfds:some_cats", str(prepare(tmp_path, "some_cats", drop=("label",))))
    assert (found.labels, found.classes) == (None, ())
    assert not (tmp_path / "cache").exists()


def test_damaged_records_are_named(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(reading.time, "sleep", pauses.append)
    root = prepare(tmp_path, splits={"train": 60}, edit=lambda split, k: {"image": io.BytesIO(picture(k, width=2000))})
    (path,) = root.rglob("*.array_record-*")
    found = load("tfds:oxford_iiit_pet", str(root))
    size = path.stat().st_size
    with path.open("r+b") as file:  # in the middle, where the records are
        file.seek(size // 3)
        file.write(np.random.default_rng(0).bytes(size // 3))
    bad = reading.unreadable(found, np.arange(60))
    assert bad and not pauses  # a damaged record stays damaged, so that reading it again would only take time
    assert all(reason.startswith(f"record {int(name[6:])} of train: ") for name, reason in bad.items())
    with pytest.raises(UserError, match=r"of oxford_iiit_pet cannot be decoded: train/00000"):
        list(pipeline.train_batches(found, np.arange(60), None, CROP, Order(3, range(20), seed=0)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tfds:persian_cats", r"persian_cats: Could not find .*tfds build persian_cats --file_format=array_record"),
        ("tfds:oxford_iiit_pet:9.0.0", r"tfds build oxford_iiit_pet:9\.0\.0 .*--data_dir="),
        ("tfds:not a name", "not a name"),
        ("tfds:", "tfds"),
    ],
    ids=["unknown set", "unknown version", "invalid name", "no name"],
)
def test_missing_set_names_the_build_command(pets, kind, message):
    with pytest.raises(UserError, match=message):
        load(kind, pets)


def test_other_file_formats_are_refused(tmp_path):
    root = prepare(tmp_path, "some_cats", file_format="tfrecord")
    with pytest.raises(UserError, match=r"not ArrayRecord.*tfds build some_cats --file_format=array_record"):
        load("tfds:some_cats", str(root))


def test_a_set_without_images_is_refused(tmp_path):
    root = prepare(tmp_path, "some_cats", drop=("image", "segmentation_mask"))
    with pytest.raises(UserError, match="no feature 'image'; it has bbox, label"):
        load("tfds:some_cats", str(root))


@pytest.mark.parametrize("kind", ["tfds:oxford_iiit_pet", "folder"])
def test_images_in_a_bucket_are_refused(kind):
    with pytest.raises(UserError, match=r"data\.root=gs://bucket/images: .* Copy them"):
        load(kind, "gs://bucket/images")


def test_missing_package_names_the_extra(pets, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tfds\]'"):
        load("tfds:oxford_iiit_pet", pets)
