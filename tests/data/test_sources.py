import csv
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support.small_sources import CUB_NAMES, CUB_TABLES, split_names, write_all, write_cub, write_image, write_splits

from cvsa_jax.data import reading
from cvsa_jax.data.sources import KINDS, load
from cvsa_jax.runtime.errors import UserError

DATA = Path(os.environ.get("CVSA_TEST_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()


# Folders.


def test_flat_folder_is_unlabelled(tmp_path):
    source = load("folder", str(write_all(tmp_path / "mine", "b.png", "a.JPG", "c.gif", "d.bmp")))
    (tmp_path / "mine" / "notes.txt").write_text("not an image")
    assert source.name == "mine"
    assert source.names == ("a.JPG", "b.png", "c.gif", "d.bmp")
    assert source.labels is None
    assert source.classes == ()
    assert source.mask is None
    assert split_names(source) == {"train": ["a.JPG", "b.png", "c.gif", "d.bmp"]}
    assert source.read(1) == (tmp_path / "mine" / "b.png").read_bytes()
    assert load("folder", str(tmp_path / "mine")).fingerprint == source.fingerprint


@pytest.mark.parametrize("below", ["", "images/"], ids=["at the root", "below images"])
def test_sub_folders_are_classes(tmp_path, below):
    write_all(tmp_path, f"{below}wren/1.png", f"{below}owl/2.png", f"{below}owl/deep/1.png")
    source = load("folder", str(tmp_path))
    assert source.names == ("owl/2.png", "owl/deep/1.png", "wren/1.png")
    assert source.classes == ("owl", "wren")
    assert source.labels.tolist() == [0, 0, 1]
    assert source.labels.dtype == np.int32
    assert source.read(2) == (tmp_path / below / "wren/1.png").read_bytes()


@pytest.mark.parametrize(("val", "kind"), [("val", "val"), ("Valid", "val"), ("TESTING", "test")])
def test_train_and_val_folders_are_splits(tmp_path, val, kind):
    write_all(tmp_path, "train/owl/1.png", "train/wren/2.png", f"{val}/wren/3.png")
    source = load("folder", str(tmp_path))
    found = {"train": ["train/owl/1.png", "train/wren/2.png"], kind: [f"{val}/wren/3.png"]}
    assert split_names(source) == found
    assert source.classes == ("owl", "wren")
    assert dict(zip(source.names, source.labels, strict=True))[f"{val}/wren/3.png"] == 1


def test_train_and_val_folders_without_classes_are_unlabelled(tmp_path):
    source = load("folder", str(write_all(tmp_path, "train/1.png", "val/2.png")))
    assert source.labels is None
    assert split_names(source) == {"train": ["train/1.png"], "val": ["val/2.png"]}


def test_table_gives_splits_and_labels(tmp_path):
    write_all(tmp_path, "images/x/1.png", "images/x/2.png", "images/y/3.png")
    write_splits(tmp_path, "image,label,split", "y/3.png,red,test", "x/1.png,red,train", "x/2.png,blue,train")
    source = load("folder", str(tmp_path))
    assert split_names(source) == {"test": ["y/3.png"], "train": ["x/1.png", "x/2.png"]}
    assert source.classes == ("blue", "red")
    assert {name: source.classes[k] for name, k in zip(source.names, source.labels, strict=True)} == {
        "y/3.png": "red",
        "x/1.png": "red",
        "x/2.png": "blue",
    }


@pytest.mark.parametrize("folders", [True, False], ids=["folders", "no folders"])
def test_table_without_labels_takes_classes_from_sub_folders(tmp_path, folders):
    names = ["x/1.png", "y/2.png"] if folders else ["1.png", "2.png"]
    write_all(tmp_path, *names)
    write_splits(tmp_path, "split,image", f"train,{names[0]}", f"val,{names[1]}")
    source = load("folder", str(tmp_path))
    assert split_names(source) == {"train": names[:1], "val": names[1:]}
    assert source.classes == (("x", "y") if folders else ())
    assert (source.labels is None) != folders


@pytest.mark.parametrize("below", ["", "images/"], ids=["at the root", "below images"])
def test_mask_folders_mirror_the_images(tmp_path, below):
    write_all(tmp_path, f"{below}owl/1.jpg", f"{below}owl/2.jpg")
    pixels = np.zeros((5, 6), np.uint8)
    pixels[1:4, 2:5] = 255
    for name in ("1", "2"):
        path = tmp_path / "masks/owl" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels if name == "1" else pixels[:, ::-1]).save(path)
    source = load("folder", str(tmp_path))
    assert source.names == ("owl/1.jpg", "owl/2.jpg")
    for i, drawn in enumerate((pixels, pixels[:, ::-1])):
        mask = source.mask(i)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, np.where(drawn == 255, 255, 0))


def test_missing_and_broken_masks_are_named(tmp_path):
    write_all(tmp_path, "images/1.png", "images/2.png", "masks/other.png")
    (tmp_path / "masks/2.png").write_bytes(b"no image")
    source = load("folder", str(tmp_path))
    with pytest.raises(UserError, match=r"no mask .*1\.png"):
        source.mask(0)
    with pytest.raises(UserError, match=r"cannot read mask .*2\.png"):
        source.mask(1)


def test_test_split_that_holds_train_images_is_warned_of(tmp_path, capsys):
    for k in range(3):
        write_image(tmp_path / f"{k}.png")
    source = load("folder", str(tmp_path))
    both = SimpleNamespace(train_split="train", test_split="all", on_bad_image="stop")
    train, test = reading.readable_splits(source, both)
    assert train.tolist() == test.tolist() == [0, 1, 2]
    assert "warning: 3 of the 3 test images are train images as well" in capsys.readouterr().out


def test_missing_root_and_empty_folder_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"nowhere' is not a folder.*config\.data\.root"):
        load("folder", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"config\.data\.root is not set"):
        load("folder", "")
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(UserError, match=rf"no image \(.*\.png.*\) in {tmp_path}"):
        load("folder", str(tmp_path))


def test_loose_images_beside_class_folders_are_named(tmp_path):
    write_all(tmp_path, "owl/1.png", "loose.png", "wren/1.png", "astray.png")
    with pytest.raises(UserError, match=r"2 images lie beside the class folders: astray\.png, loose\.png\."):
        load("folder", str(tmp_path))


@pytest.mark.parametrize(
    "columns, rows, message",
    [
        ("image,split", ["1.png,train", "2.png,train", "gone.png,test"], r"lists 1 images .*: gone\.png"),
        ("image,split", ["1.png,train", "2.png,train", "1.png,test"], r"lists images twice: 1\.png in rows 2 and 4"),
        ("image,split", ["1.png,train"], r"1 images .* are not listed in .*splits\.csv: 2\.png"),
        ("image,label", ["1.png,a", "2.png,b"], r"must have the columns image,split; it has \['image', 'label'\]"),
    ],
    ids=["missing image", "image twice", "image not listed", "column missing"],
)
def test_wrong_tables_of_splits_are_refused(tmp_path, columns, rows, message):
    write_all(tmp_path, "1.png", "2.png")
    write_splits(tmp_path, columns, *rows)
    with pytest.raises(UserError, match=message):
        load("folder", str(tmp_path))


def test_long_lists_of_names_are_cut(tmp_path):
    write_all(tmp_path, "owl/1.png", *(f"loose{k}.png" for k in range(8)))
    with pytest.raises(UserError, match=r"loose4\.png and 3 more\.") as caught:
        load("folder", str(tmp_path))
    assert "loose5" not in str(caught.value)


def test_fingerprint_changes_with_every_change_of_the_images(tmp_path):
    write_all(tmp_path, "1.png", "2.png")
    prints = [load("folder", str(tmp_path)).fingerprint]
    write_image(tmp_path / "3.png")
    prints.append(load("folder", str(tmp_path)).fingerprint)
    write_image(tmp_path / "3.png", width=60, height=41)
    prints.append(load("folder", str(tmp_path)).fingerprint)
    (tmp_path / "3.png").rename(tmp_path / "4.png")
    prints.append(load("folder", str(tmp_path)).fingerprint)
    (tmp_path / "1.png").unlink()
    prints.append(load("folder", str(tmp_path)).fingerprint)
    assert len(set(prints)) == 5


def test_missing_split_names_those_there_are(tmp_path):
    source = load("folder", str(write_all(tmp_path / "mine", "train/1.png", "train/2.png")))
    assert source.split("train").tolist() == [0, 1]
    assert source.split("all").tolist() == [0, 1]
    for name in ("test", "tset"):
        with pytest.raises(UserError, match=rf"mine has no images in split '{name}'; it has {{'train': 2}}"):
            source.split(name)


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(UserError, match=rf"'cubs' is unknown; take one of {', '.join(KINDS)}"):
        load("cubs", "")


# CUB.


@pytest.mark.parametrize("below", ["", "CUB_200_2011"], ids=["at the root", "in its folder"])
@pytest.mark.parametrize("segmentations", [True, False], ids=["masks", "no masks"])
def test_cub_in_its_official_layout(tmp_path, below, segmentations):
    root = write_cub(tmp_path / below, segmentations=segmentations)
    source = load("cub", str(tmp_path))
    assert source.name == "cub"
    assert source.names == tuple(CUB_NAMES.values())
    assert source.classes == ("001.Owl", "002.Wren")
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.splits["train"].tolist() == [0, 3]
    assert source.splits["test"].tolist() == [1, 2]
    assert source.read(2) == (root / "images/002.Wren/c.jpg").read_bytes()
    if segmentations:
        np.testing.assert_array_equal(source.mask(3), np.full((5, 6), 255))
    else:
        assert source.mask is None


def test_cub_with_a_subset_of_the_classes(tmp_path):
    # Class ids need not start at 1 nor be dense; labels do.
    write_cub(tmp_path)
    (tmp_path / "classes.txt").write_text("7 001.Owl\n30 002.Wren\n")
    (tmp_path / "image_class_labels.txt").write_text("1 7\n2 7\n3 30\n4 30\n")
    assert load("cub", str(tmp_path)).labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("table", CUB_TABLES)
def test_missing_cub_table_is_named_with_its_download(tmp_path, table):
    write_cub(tmp_path)
    (tmp_path / table).unlink()
    missing = "holds no CUB-200-2011: no images.txt" if table == "images.txt" else f"{table} does not exist"
    with pytest.raises(UserError, match=rf"{missing}\..*at https://.*get CUB_200_2011\.tgz \(1,151 MB\)"):
        load("cub", str(tmp_path))


@pytest.mark.parametrize("table", ["image_class_labels.txt", "train_test_split.txt"])
def test_cub_tables_must_list_the_same_ids(tmp_path, table):
    write_cub(tmp_path)
    with (tmp_path / table).open("a") as file:
        file.write("5 1\n")
    with pytest.raises(UserError, match=rf"{table} does not list the same image ids as images\.txt"):
        load("cub", str(tmp_path))


def test_cub_without_folder_image_or_list_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"nowhere does not exist\. CUB-200-2011 is at https://www\.vision\.caltech\.edu"
    ):
        load("cub", str(tmp_path / "nowhere"))
    write_cub(tmp_path)
    (tmp_path / "images" / CUB_NAMES["3"]).unlink()
    with pytest.raises(UserError, match=r"1 listed images do not exist in .*: .*c\.jpg"):
        load("cub", str(tmp_path))
    (tmp_path / "images.txt").write_text("")
    with pytest.raises(UserError, match=r"images\.txt lists no image"):
        load("cub", str(tmp_path))


# The project's real data.


def real(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} in {DATA} (set CVSA_TEST_DATA)")
    return DATA / name


def test_butterflies_splits_labels_and_masks():
    root = real("butterflies")
    source = load("folder", str(root))
    assert source.name == "butterflies"
    assert len(source) == 832
    assert {split: len(members) for split, members in source.splits.items()} == {"train": 557, "test": 275}
    assert len(source.classes) == 10
    with (root / "splits.csv").open(newline="") as file:
        label_of = {row["image"]: row["label"] for row in csv.DictReader(file)}
    assert [source.classes[k] for k in source.labels] == [label_of[name] for name in source.names]
    for i in (0, 400, 831):
        mask = source.mask(i)
        with Image.open(root / "images" / source.names[i]) as image:
            assert mask.shape == image.size[::-1]
        assert 0.01 < (mask > 0).mean() < 0.95


def test_cub100_splits_and_labels():
    source = load("cub", str(real("cub100")))
    assert len(source) == 5902
    assert {split: len(members) for split, members in source.splits.items()} == {"train": 2999, "test": 2903}
    assert len(source.classes) == 100
    assert np.unique(source.labels).tolist() == list(range(100))
    assert source.mask is None
    # Folders carry the class's name.
    assert all(name.startswith(source.classes[k] + "/") for name, k in zip(source.names, source.labels, strict=True))
    assert source.read(5901)[:2] == b"\xff\xd8"


def test_test_images_equal_to_train_images_are_reported(tmp_path, capsys):
    write_all(tmp_path, "train/1.png", "train/2.png", "test/3.png")
    (tmp_path / "test" / "again.png").write_bytes((tmp_path / "train" / "2.png").read_bytes())
    source = load("folder", str(tmp_path))
    data = ConfigDict({"train_split": "train", "test_split": "test", "on_bad_image": "stop"})
    reading.readable_splits(source, data)
    said = capsys.readouterr().out
    assert "1 of the 2 test images are equal to train images byte by byte (test/again.png = train/2.png)" in said
    # Where the set is told by times alone, nothing is read for it.
    reading.readable_splits(load("folder", str(tmp_path), looks_at="times"), data)
    assert "byte by byte" not in capsys.readouterr().out
