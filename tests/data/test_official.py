"""The official layouts in miniature, each with the traps that its copies are known for."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from support.official_files import CLASSES, car, write, write_annotations
from support.small_sources import CUB_NAMES, split_names, write_cub, write_image

from cvsa_jax.data.reading import load_image
from cvsa_jax.data.sources import aircraft, load
from cvsa_jax.runtime.errors import UserError


def labelled(source) -> dict[str, str]:
    return {name: source.classes[k] for name, k in zip(source.names, source.labels, strict=True)}


# CUB-200-2011 and NABirds.


def test_cub_masks_are_the_majority_of_annotators(tmp_path):
    write_cub(tmp_path / "CUB_200_2011")
    levels = np.repeat(np.array([[0, 51, 102, 153, 204, 255]], np.uint8), 5, 0)
    for name in list(CUB_NAMES.values())[:3]:
        path = (tmp_path / "segmentations" / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(path)
    source = load("cub", str(tmp_path))
    np.testing.assert_array_equal(source.mask(0)[0], [0, 0, 0, 255, 255, 255])
    assert source.masked.tolist() == [True, True, True, False]


def test_incomplete_and_unlisted_images_of_cub_are_reported(tmp_path, capsys):
    write_cub(tmp_path)
    write_image(tmp_path / "images/001.Owl/._a.jpg")
    write_image(tmp_path / "images/001.Owl/copy.jpg")
    source = load("cub", str(tmp_path))
    assert source.left_out == {"images that are in no list": ["001.Owl/copy.jpg"]}
    said = capsys.readouterr().out
    assert (
        "this copy of CUB-200-2011 is not as published: classes 2 for 200, train 2 for 5,994, test 2 for 5,794" in said
    )


def test_nabirds_classes_are_those_of_images_in_numeric_order(tmp_path):
    images = {"a-1": "0817/a1.jpg", "b-2": "0010/b2.jpg", "c-3": "0002/c3.jpg", "d-4": "0010/d4.jpg"}
    for name in images.values():
        write_image(tmp_path / "nabirds/images" / name)
    root = tmp_path / "nabirds"
    write(root / "images.txt", *(f"{i} {name}" for i, name in images.items()))
    write(root / "image_class_labels.txt", "a-1 817", "b-2 10", "c-3 2", "d-4 10")
    write(root / "train_test_split.txt", "a-1 1", "b-2 1", "c-3 0", "d-4 0")
    write(root / "bounding_boxes.txt", "a-1 1 1 2 2", "b-2 0 0 6 5", "c-3 0 0 3 5", "d-4 0 0 1 1")
    # 5 is an inner node of the tree.
    write(root / "classes.txt", "5 Ducks", "817 Gull (Adult/male)", "10 Teal (Female)", "2 Teal (Male)")
    source = load("nabirds", str(tmp_path))
    assert source.classes == ("Teal (Male)", "Teal (Female)", "Gull (Adult/male)")
    assert source.labels.tolist() == [2, 1, 0, 1]
    assert split_names(source)["test"] == ["0002/c3.jpg", "0010/d4.jpg"]
    np.testing.assert_allclose(source.box(2), [0, 0, 1, 0.5])


# FGVC-Aircraft.


def write_aircraft(root: Path, banner: int = 255) -> Path:
    data = root / "fgvc-aircraft-2013b/data"
    for k, name in enumerate(("0034309", "1025794", "0481847")):
        pixels = np.full((50, 80, 3), 40 * k, np.uint8)
        pixels[-aircraft.BANNER :] = banner
        (data / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(data / "images" / f"{name}.jpg")
    write(data / "variants.txt", "F/A-18", "Boeing 707-320", "A310")
    write(data / "families.txt", "Hornet", "Boeing 707", "A310")
    for level, first, second in (("variant", "F/A-18", "Boeing 707-320"), ("family", "Hornet", "Boeing 707")):
        write(data / f"images_{level}_train.txt", f"0034309 {first}")
        write(data / f"images_{level}_val.txt", f"1025794 {second}")
        write(data / f"images_{level}_test.txt", f"0481847 {first}")
    write(data / "images_box.txt", "0034309 1 1 80 30", "1025794 11 6 50 15", "0481847 1 1 1 1")
    return root


def test_aircraft_labels_splits_and_boxes(tmp_path):
    source = load("aircraft", str(write_aircraft(tmp_path)))
    assert labelled(source) == {
        "0034309.jpg": "F/A-18",
        "1025794.jpg": "Boeing 707-320",
        "0481847.jpg": "F/A-18",
    }
    assert source.classes == ("F/A-18", "Boeing 707-320", "A310")  # the order of the set's own list
    assert split_names(source)["trainval"] == ["0034309.jpg", "1025794.jpg"]
    # Boxes are counted from 1, with the last pixel inside, and in the image without its banner.
    np.testing.assert_allclose(source.box(0), [0, 0, 1, 1])
    np.testing.assert_allclose(source.box(1), [5 / 30, 10 / 80, 15 / 30, 50 / 80])
    assert load("aircraft:family", str(tmp_path)).classes == ("Hornet", "Boeing 707", "A310")
    with pytest.raises(UserError, match=r"aircraft:model': take one of variant, family, manufacturer"):
        load("aircraft:model", str(tmp_path))


def test_aircraft_banner_is_cut_off(tmp_path):
    source = load("aircraft", str(write_aircraft(tmp_path)))
    image = load_image(source, 0)
    assert image.shape == (30, 80, 3) and image.max() < 40
    # The fingerprint says that it was.
    uncut = load("folder", str(tmp_path / "fgvc-aircraft-2013b/data"))
    assert uncut.names == ("0034309.jpg", "0481847.jpg", "1025794.jpg") and uncut.fingerprint != source.fingerprint


# Stanford Cars.


def write_cars(root: Path) -> Path:
    write_image(root / "cars_train/00001.jpg", level=10)
    write_image(root / "cars_train/00002.jpg", 5000, 4000, level=20)
    write_image(root / "cars_test/00001.jpg", level=30)
    train = [car("00001.jpg", 2), car("00002.jpg", 1, (500, 300, 4500, 3900))]
    write_annotations(root / "devkit/cars_train_annos.mat", train)
    savemat(root / "devkit/cars_meta.mat", {"class_names": CLASSES})
    write_annotations(root / "cars_test_annos_withlabels.mat", [car("00001.jpg", 1)])
    return root


def test_cars_in_two_folders(tmp_path):
    source = load("cars", str(write_cars(tmp_path)))
    assert labelled(source) == {
        "cars_train/00001.jpg": "Ram C/V Cargo Van Minivan 2012",
        "cars_train/00002.jpg": "AM General Hummer SUV 2000",
        "cars_test/00001.jpg": "AM General Hummer SUV 2000",
    }
    assert source.read(0) != source.read(2)  # the same name in both folders
    assert {split: len(rows) for split, rows in source.splits.items()} == {"train": 2, "test": 1}
    np.testing.assert_allclose(source.box(1), [299 / 4000, 499 / 5000, 3900 / 4000, 4500 / 5000])


def test_cars_in_one_folder(tmp_path):
    for k in range(3):
        write_image(tmp_path / f"car_ims/00000{k}.jpg", level=10 * k)
    rows = [car("", 1 + k % 2, relative_im_path=f"car_ims/00000{k}.jpg", test=np.uint8(k == 1)) for k in range(3)]
    write_annotations(tmp_path / "cars_annos.mat", rows, class_names=CLASSES)
    source = load("cars", str(tmp_path))
    assert source.labels.tolist() == [0, 1, 0]
    assert split_names(source) == {"train": ["000000.jpg", "000002.jpg"], "test": ["000001.jpg"]}


def test_cars_without_test_labels_name_the_missing_file(tmp_path):
    write_cars(tmp_path)
    (tmp_path / "cars_test_annos_withlabels.mat").rename(tmp_path / "devkit/cars_test_annos_withlabels.mat")
    assert len(load("cars", str(tmp_path))) == 3
    (tmp_path / "devkit/cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(UserError, match=r"no labels of the test images.*cars_test_annos_withlabels\.mat"):
        load("cars", str(tmp_path))
    (tmp_path / "devkit/cars_meta.mat").write_bytes(b"no matlab")
    write_annotations(tmp_path / "cars_test_annos_withlabels.mat", [car("00001.jpg", 1)])
    with pytest.raises(UserError, match=r"cannot read .*cars_meta\.mat"):
        load("cars", str(tmp_path))


# Stanford Dogs, iNaturalist.


def test_dogs_labels_boxes_and_warning_of_imagenet(tmp_path, capsys):
    names = ["n02-Chihuahua/n02_1.jpg", "n03-shih-tzu/n03_2.jpg", "n03-shih-tzu/n03_3.jpg"]
    for name in names:
        write_image(tmp_path / "Images" / name, 60, 50)
        objects = "".join(
            f"<object><name>d</name><bndbox><xmin>{x}</xmin><ymin>5</ymin><xmax>{x + 20}</xmax><ymax>25</ymax></bndbox>"
            "</object>"
            for x in (6, 30)
        )
        write(tmp_path / "Annotation" / name.removesuffix(".jpg"), f"<annotation>{objects}</annotation>")
    Image.new("RGBA", (60, 50)).save(tmp_path / "Images" / names[2], "PNG")  # under .jpg
    for split, rows in (("train", [0, 1]), ("test", [2])):
        cells = np.array([names[k] for k in rows], object)[:, None]
        labels = np.array([[1 if k == 0 else 2] for k in rows], np.uint8)
        savemat(tmp_path / f"{split}_list.mat", {"file_list": cells, "labels": labels})
    source = load("dogs", str(tmp_path))
    assert source.classes == ("Chihuahua", "shih-tzu") and source.labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(source.box(0), [5 / 50, 6 / 60, 25 / 50, 50 / 60])  # around both
    assert load_image(source, 2).shape == (50, 60, 3)
    assert "a part of ImageNet's train set" in capsys.readouterr().out


def write_inat(root: Path, table: str, names: dict[int, str], category_of: dict[int, int], categories) -> None:
    for name in names.values():
        write_image(root / name)
    content = {
        "images": [{"id": i, "file_name": name, "latitude": None} for i, name in names.items()],
        "annotations": [{"id": 9, "image_id": i, "category_id": c} for i, c in category_of.items()],
        "categories": categories,
    }
    (root / table).write_text(json.dumps(content))


def test_inaturalist_2018_shares_a_folder_and_orders_classes_by_number(tmp_path):
    categories = [{"id": 10, "name": "X"}, {"id": 2, "name": "Y"}]
    train = {7: "train_val2018/Aves/10/a.jpg", 8: "train_val2018/Plantae/2/b.jpg"}
    write_inat(tmp_path, "train2018.json", train, {8: 2, 7: 10}, categories)
    write_inat(tmp_path, "val2018.json", {9: "train_val2018/Aves/10/c.jpg"}, {9: 10}, categories)
    write_image(tmp_path / "elsewhere/d.jpg")
    source = load("inat", str(tmp_path))
    assert source.classes == ("Y", "X") and source.labels.tolist() == [1, 0, 1]  # 2 before 10
    assert split_names(source)["val"] == ["train_val2018/Aves/10/c.jpg"]
    assert not source.left_out
    (tmp_path / "val2018.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"val2018\.json is no JSON, or cut off"):
        load("inat", str(tmp_path))


def test_inaturalist_2021_folders_may_be_renamed_by_torchvision(tmp_path):
    categories = [{"id": k, "name": "b", "image_dir_name": f"0000{k}_A_b"} for k in range(2)]
    write_inat(tmp_path, "train_mini.json", {1: "train_mini/00001_A_b/a.jpg"}, {1: 1}, categories)
    write_inat(tmp_path, "val.json", {2: "val/00000_A_b/b.jpg"}, {2: 0}, categories)
    first = load("inat:mini", str(tmp_path))
    assert first.classes == ("00000_A_b", "00001_A_b") and first.labels.tolist() == [1, 0]
    (tmp_path / "train_mini").rename(tmp_path / "2021_train_mini")
    (tmp_path / "val").rename(tmp_path / "2021_valid")
    assert load("inat:mini", str(tmp_path)).names == ("2021_train_mini/00001_A_b/a.jpg", "2021_valid/00000_A_b/b.jpg")
    with pytest.raises(UserError, match=r"no train\.json\. iNaturalist 2021 is at .*train\.tar\.gz"):
        load("inat:2021", str(tmp_path))


# Pets, flowers, food.


def write_pets(root: Path) -> Path:
    names = {"Abyssinian_34": 1, "american_pit_bull_terrier_12": 4, "Abyssinian_5": 1}
    for name in names:
        write_image(root / "images" / f"{name}.jpg")
        trimap = np.full((5, 6), 2, np.uint8)
        trimap[1:4, 1:5], trimap[2, 2:4] = 3, 1
        (root / "annotations/trimaps").mkdir(parents=True, exist_ok=True)
        Image.fromarray(trimap).save(root / "annotations/trimaps" / f"{name}.png")
    Image.new("P", (6, 5)).save(root / "images/Abyssinian_34.jpg", "GIF")
    write_image(root / "images/._Abyssinian_34.jpg")
    write_image(root / "images/unlisted_1.jpg")
    (root / "images/Abyssinian_100.mat").write_bytes(b"")
    write(root / "annotations/trainval.txt", "# a header", "Abyssinian_34 1 1 1", "american_pit_bull_terrier_12 4 2 2")
    write(root / "annotations/test.txt", "Abyssinian_5 1 1 1")
    return root


def test_pets_labels_and_trimaps(tmp_path):
    source = load("pets", str(write_pets(tmp_path)))
    assert labelled(source) == {
        "Abyssinian_34.jpg": "Abyssinian",
        "american_pit_bull_terrier_12.jpg": "american_pit_bull_terrier",
        "Abyssinian_5.jpg": "Abyssinian",
    }
    assert load_image(source, 0).shape == (5, 6, 3)  # a GIF under .jpg
    mask = np.zeros((5, 6), np.uint8)
    mask[1:4, 1:5] = 255
    np.testing.assert_array_equal(source.mask(1), mask)
    assert source.left_out == {
        "files that are no images we read": ["Abyssinian_100.mat"],
        "images that are in no list": ["unlisted_1.jpg"],
    }


def test_flowers_labels_masks_and_exchanged_splits(tmp_path, capsys):
    for k in range(1, 8):
        write_image(tmp_path / f"jpg/image_{k:05d}.jpg", level=k)
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[2, 1, 2, 1, 7, 7, 1]], np.uint8)})
    sets = {"trnid": [[5, 1]], "valid": [[2]], "tstid": [[7, 3, 4, 6]]}
    savemat(tmp_path / "setid.mat", {key: np.array(rows, np.uint16) for key, rows in sets.items()})
    painted = np.full((32, 32, 3), (0, 0, 254), np.uint8)
    painted[8:24, 8:24] = (200, 120, 30)
    (tmp_path / "segmim").mkdir()
    Image.fromarray(painted).save(tmp_path / "segmim/segmim_00001.jpg", quality=90, subsampling=0)
    Image.new("RGB", (32, 32)).save(tmp_path / "jpg/image_00001.jpg")
    source = load("flowers", str(tmp_path))
    assert source.classes == ("1", "2", "7") and source.labels.tolist() == [1, 0, 1, 0, 2, 2, 0]
    assert {split: rows.tolist() for split, rows in source.splits.items()} == {
        "train": [0, 4],
        "val": [1],
        "test": [2, 3, 5, 6],
        "trainval": [0, 1, 4],
    }
    expected = np.zeros((32, 32))
    expected[8:24, 8:24] = 255
    assert (source.mask(0) == expected).mean() > 0.99
    sets["trnid"], sets["tstid"] = sets["tstid"], sets["trnid"]
    savemat(tmp_path / "setid.mat", {key: np.array(rows, np.uint16) for key, rows in sets.items()})
    load("flowers", str(tmp_path))
    assert "this copy has exchanged them" in capsys.readouterr().out


@pytest.mark.parametrize("lists", ["txt", "json"])
def test_food_labels_and_splits(tmp_path, lists):
    root = tmp_path / "food-101"
    for name in ("apple_pie/1.jpg", "waffles/2.jpg", "apple_pie/3.jpg"):
        write_image(root / "images" / name)
    if lists == "txt":
        write(root / "meta/train.txt", "apple_pie/1", "waffles/2")
        write(root / "meta/test.txt", "apple_pie/3")
    else:
        write(root / "meta/train.json", json.dumps({"apple_pie": ["apple_pie/1"], "waffles": ["waffles/2"]}))
        write(root / "meta/test.json", json.dumps({"apple_pie": ["apple_pie/3"]}))
    source = load("food", str(tmp_path))
    assert source.classes == ("apple_pie", "waffles") and source.labels.tolist() == [0, 1, 0]
    assert split_names(source)["test"] == ["apple_pie/3.jpg"]


# What is missing.


@pytest.mark.parametrize("kind", ["cub", "nabirds", "aircraft", "cars", "dogs", "inat", "pets", "flowers", "food"])
def test_missing_set_names_its_download(tmp_path, kind):
    for root in ("", str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(UserError, match=r"is at http.*: get .* as --config\.data\.root=data/"):
            load(kind, root)


def test_inaturalist_images_are_unpacked_beside_its_tables(tmp_path):
    categories = [{"id": 8, "name": "b"}, {"id": 10, "name": "a"}]
    write_inat(tmp_path, "train2018.json", {7: "train_val2018/Aves/10/a.jpg"}, {7: 10}, categories)
    write_inat(tmp_path, "val2018.json", {9: "train_val2018/Aves/10/c.jpg"}, {9: 10}, categories)
    with tarfile.open(tmp_path / "train_val2018.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "train_val2018", "train_val2018")
    shutil.rmtree(tmp_path / "train_val2018")
    source = load("inat", str(tmp_path))
    assert len(source) == 2 and load_image(source, 1).ndim == 3
