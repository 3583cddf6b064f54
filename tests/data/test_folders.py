"""Folders as people have them: splits by any name, files that are no images, tables from spreadsheets."""

import os

import numpy as np
import pytest
from PIL import Image
from support.small_sources import split_names, write_all, write_image, write_splits

from cvsa_jax.data.reading import load_image
from cvsa_jax.data.sources import load
from cvsa_jax.report import pictures
from cvsa_jax.runtime.errors import UserError


def folder(root):
    return load("folder", str(root))


# Splits.


def test_split_folders_are_found_in_any_case(tmp_path):
    write_all(tmp_path, "Training/owl/1.png", "Validation/owl/2.png", "TEST/wren/3.png")
    source = folder(tmp_path)
    expected = {"train": ["Training/owl/1.png"], "val": ["Validation/owl/2.png"], "test": ["TEST/wren/3.png"]}
    assert split_names(source) == expected and source.classes == ("owl", "wren")


@pytest.mark.parametrize("stray", ["extra/owl/4.png", "4.png"])
def test_images_beside_split_folders_are_refused(tmp_path, stray):
    write_all(tmp_path, "train/owl/1.png", "test/wren/3.png", stray)
    with pytest.raises(UserError, match=rf"1 images lie beside the folders of the splits, test, train: {stray}"):
        folder(tmp_path)


def test_train_folder_is_a_split_alone_and_a_class_beside_others(tmp_path):
    assert folder(write_all(tmp_path / "a", "train/owl/1.png", "train/wren/2.png")).classes == ("owl", "wren")
    source = folder(write_all(tmp_path / "b", "train/1.png", "bus/2.png", "car/3.png"))
    assert source.classes == ("bus", "car", "train") and list(source.splits) == ["train"]


def test_split_names_of_a_table_are_normalised_and_unused_ones_reported(tmp_path, capsys):
    write_all(tmp_path, "1.png", "2.png", "3.png")
    write_splits(tmp_path, "image,split", "1.png,Training", "2.png,validation", "3.png,extra")
    assert split_names(folder(tmp_path)) == {"train": ["1.png"], "val": ["2.png"], "extra": ["3.png"]}
    assert "splits that nothing uses unless config.data.train_split or test_split names them: {'extra': 1}" in (
        capsys.readouterr().out
    )


# What is no image.


def test_files_of_the_system_and_of_runs_are_ignored(tmp_path):
    write_all(tmp_path, "owl/1.png", ".hidden/2.png", "owl/._1.png", "__MACOSX/owl/1.png", ".3.png")
    for name in ("Thumbs.db", "owl/desktop.ini", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("runs/a/config.json", "runs/a/metrics.jsonl", "runs/a/report/views.png", "store/identity.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("store/names.txt", "store/sheet.png", "out/results.json", "out/attention.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = folder(tmp_path)
    assert source.names == ("owl/1.png",)
    assert source.left_out == {"folders of runs, stores and reports": ["out", "runs/a", "store"]}


def test_files_that_are_no_images_are_counted(tmp_path):
    write_all(tmp_path, "owl/1.png")
    for name in ("owl/notes.txt", "owl/2.heic", "owl/clip.mp4"):
        (tmp_path / name).write_bytes(b"x")
    assert folder(tmp_path).left_out == {
        "files that are no images we read": ["owl/2.heic", "owl/clip.mp4", "owl/notes.txt"]
    }
    write_all(tmp_path, "images/owl/5.png")
    assert folder(tmp_path).left_out == {"images that lie beside the folder of images": ["owl/1.png"]}


def test_images_are_found_by_every_ending_of_their_kind(tmp_path):
    kinds = {"a.TIF": "TIFF", "b.jfif": "JPEG", "c.jpe": "JPEG", "d.ppm": "PPM", "e.tiff": "TIFF", "f.webp": "WEBP"}
    for name, kind in kinds.items():
        Image.new("RGB", (12, 10), (200, 10, 10)).save(tmp_path / name, kind)
    source = folder(tmp_path)
    assert source.names == tuple(kinds)
    for i in range(len(source)):
        pixels = load_image(source, i)
        assert pixels.shape == (10, 12, 3) and np.abs(pixels[5, 5].astype(int) - (200, 10, 10)).max() < 8


def test_links_are_followed_and_loops_reported(tmp_path):
    write_all(tmp_path / "elsewhere", "wren/2.png", "3.png")
    write_all(tmp_path / "mine", "owl/1.png")
    os.symlink(tmp_path / "elsewhere/wren", tmp_path / "mine/wren")
    os.symlink(tmp_path / "elsewhere/3.png", tmp_path / "mine/owl/3.png")
    os.symlink(tmp_path / "mine", tmp_path / "mine/owl/again")
    os.symlink(tmp_path / "gone.png", tmp_path / "mine/owl/gone.png")
    os.symlink(tmp_path / "mine/self.png", tmp_path / "mine/self.png")
    source = folder(tmp_path / "mine")
    assert source.names == ("owl/1.png", "owl/3.png", "wren/2.png")
    assert source.left_out == {
        "links to a folder above them": ["owl/again"],
        "links to nothing": ["owl/gone.png", "self.png"],
    }


def test_file_names_that_are_not_utf8_are_read(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        write_image(tmp_path / "owl" / "1.png")
        os.rename(tmp_path / "owl" / "1.png", tmp_path / "owl" / name)
    except OSError:
        pytest.skip("this file system takes no such name")
    source = folder(tmp_path)
    assert source.names == (f"owl/{name}",) and source.fingerprint == folder(tmp_path).fingerprint
    assert load_image(source, 0).shape == (5, 6, 3)


def test_folder_without_images_names_the_files_in_it(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no image \(.*\) in .*, but 1 files that are no images we read"):
        folder(tmp_path)


# Tables from spreadsheets.

TABLE = "image,label,split\nowl/1.png,grand duc,train\nwren/2.png,wren ,test\n"


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode("utf-8-sig"),
        TABLE.encode("utf-16"),
        TABLE.replace(",", ";").encode(),
        TABLE.replace(",", "\t").encode(),
        TABLE.replace("\n", "\r\n").encode(),
        TABLE.replace("owl/", ".\\owl\\").replace("wren/", "wren\\").encode(),
        TABLE.replace("image,label", " Image , LABEL ").encode(),
        (TABLE + "\n,,\n\n").encode(),
    ],
    ids=["BOM", "UTF-16", "semicolons", "tabs", "CRLF", "backslashes", "blanks and case", "empty rows"],
)
def test_tables_are_read_as_spreadsheets_write_them(tmp_path, content):
    write_all(tmp_path, "owl/1.png", "wren/2.png")
    (tmp_path / "Splits.csv").write_bytes(content)
    source = folder(tmp_path)
    assert split_names(source) == {"train": ["owl/1.png"], "test": ["wren/2.png"]}
    assert source.classes == ("grand duc", "wren")


def test_latin_1_table_is_read_with_a_warning(tmp_path, capsys):
    write_all(tmp_path, "1.png")
    (tmp_path / "splits.csv").write_bytes("image,split,label\n1.png,train,hibou des marais à l'été\n".encode("cp1252"))
    assert folder(tmp_path).classes == ("hibou des marais à l'été",)
    assert "is not UTF-8: read as Windows' Latin-1" in capsys.readouterr().out
    (tmp_path / "splits.csv").write_bytes(b"\x00\x01image\x00")
    with pytest.raises(UserError, match="is no text in UTF-8, UTF-16 or Latin-1: save it as CSV in UTF-8"):
        folder(tmp_path)


def test_composed_and_decomposed_accents_are_the_same(tmp_path):
    write_image(tmp_path / "e\u0301te\u0301.png")  # as macOS writes été
    write_splits(tmp_path, "image,split", "\u00e9t\u00e9.png,train")
    assert folder(tmp_path).names == ("e\u0301te\u0301.png",)


@pytest.mark.parametrize(
    ("row", "message"),
    [(",train,a", "row 3: no image"), ("2.png,,a", "row 3: no split"), ("2.png,train,", "row 3: no label")],
    ids=["image", "split", "label"],
)
def test_missing_cell_is_named_by_its_row(tmp_path, row, message):
    write_all(tmp_path, "1.png", "2.png")
    write_splits(tmp_path, "image,split,label", "1.png,train,a", row)
    with pytest.raises(UserError, match=rf"splits\.csv, {message}\. Fill the cell"):
        folder(tmp_path)


def test_nearly_equal_labels_are_reported(tmp_path, capsys):
    write_all(tmp_path, *(f"{k}.png" for k in range(3)))
    write_splits(tmp_path, "image,split,label", "0.png,train,ant", "1.png,train,ant ", "2.png,train,Ant")
    assert folder(tmp_path).classes == ("Ant", "ant")
    assert (
        "classes that differ in case, blanks or accents alone: 'Ant', 'ant'. Are they one?" in capsys.readouterr().out
    )


def test_boxes_of_missing_images_are_reported(tmp_path, capsys):
    write_image(tmp_path / "1.png", 60, 50)
    (tmp_path / "boxes.csv").write_text("image;x;y;width;height\n1.png;6,0;5;30;20\ngone.png;1;1;2;2\n")
    source = folder(tmp_path)
    np.testing.assert_allclose(source.box(0), [5 / 50, 6 / 60, 25 / 50, 36 / 60])
    assert "boxes of 1 images that are not there: gone.png" in capsys.readouterr().out


def test_images_are_in_the_order_of_their_paths(tmp_path):
    # `-` and blanks come before `/` among characters, and after it among the parts of paths.
    write_all(tmp_path, "cat-big/1.png", "cat/1.png", "cat/a b.png", "cat/a/1.png", "cat (old)/1.png")
    expected = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    assert folder(tmp_path).names == tuple(path.as_posix() for path in expected)


def test_short_rows_are_refused_and_carriage_returns_end_rows(tmp_path):
    write_all(tmp_path, "1.png", "2.png")
    for rows in (("1.png,train", "2.png,test,b"), ("1.png,train,a", "2.png,test")):
        write_splits(tmp_path, "image,split,label", *rows)
        with pytest.raises(UserError, match=r"row [23]: no label"):
            folder(tmp_path)
    (tmp_path / "splits.csv").write_bytes(b"image,split,label\r1.png,train,a\r2.png,test,b\r")
    assert folder(tmp_path).classes == ("a", "b")


def test_class_called_masks_below_images_is_a_class(tmp_path):
    write_all(tmp_path, "images/masks/1.png", "images/owl/2.png", "masks/owl/2.png")
    source = folder(tmp_path)
    assert source.names == ("masks/1.png", "owl/2.png") and source.classes == ("masks", "owl")
    assert source.has_mask(np.arange(2)).tolist() == [False, True]


def test_cells_beyond_the_columns_are_refused_unless_empty(tmp_path):
    write_all(tmp_path, "a.png", "b.png")
    write_splits(tmp_path, "image,split,label", "a.png,train,Gull", "b.png,train,Gull, ")
    assert folder(tmp_path).classes == ("Gull",)
    write_splits(tmp_path, "image,split,label", "a.png,train,Gull", "b.png,train,Gull, herring")
    with pytest.raises(UserError, match=r"splits\.csv, row 3: 4 cells for 3 columns .*quotes"):
        folder(tmp_path)


def test_class_names_that_are_not_utf8_or_look_like_formulas_are_drawn(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    try:
        write_image(tmp_path / name / "1.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    write_image(tmp_path / "price_$5_vs_$10" / "2.png")
    source = folder(tmp_path)
    assert set(source.classes) == {r"caf\udce9", "price_$5_vs_$10"}
    for text in source.classes:
        text.encode()
    # The pictures take any name for what it is.
    titles = [source.classes[label] for label in source.labels]
    images = np.zeros((2, 8, 8, 3), np.uint8)
    pictures.contact_sheet(tmp_path / "sheet.png", images, None, None, titles, "")
    points = {"_a run": np.zeros((2, 2)), "b $x": np.ones((2, 2))}
    pictures.scatter_picture(tmp_path / "scatter.png", points, source.labels, ("_$1_", "x$y$z"), "")
    assert (tmp_path / "sheet.png").stat().st_size > 0 and (tmp_path / "scatter.png").stat().st_size > 0


def test_split_folders_beside_a_table_are_no_classes(tmp_path):
    write_all(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/cat/3.png")
    write_splits(tmp_path, "image,split", "train/cat/1.png,train", "train/dog/2.png,val", "test/cat/3.png,test")
    assert folder(tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize("place", ["train/{}/{}", "owl/{}/{}"], ids=["in a split", "in a class"])
def test_mask_folders_among_the_images_are_refused(tmp_path, place):
    for k in range(3):
        write_image(tmp_path / place.format("images", f"{k}.jpg"), 40, 30)
        path = tmp_path / place.format("masks", f"{k}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(255 * (np.mgrid[:30, :40][0] > 10))).save(path)
    with pytest.raises(UserError, match=r"3 files below .* lie in folders called masks, are named as images"):
        folder(tmp_path)


def test_masks_beside_images_may_be_jpegs(tmp_path):
    for k in range(3):
        write_image(tmp_path / f"{k}.jpg", 40, 30)
        Image.fromarray(np.uint8(255 * (np.mgrid[:30, :40][0] > 10))).save(tmp_path / f"{k}_mask.jpg", quality=95)
    source = folder(tmp_path)
    assert source.names == ("0.jpg", "1.jpg", "2.jpg") and source.mask(0).max() == 255


def test_class_called_masks_beside_classes_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    for k, name in enumerate(("hats", "masks", "shoes")):
        path = tmp_path / name / f"{k}.png"
        path.parent.mkdir()
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    with pytest.raises(UserError, match="holds no mask of any image: if it is a class, put the folders of the classes"):
        folder(tmp_path)
