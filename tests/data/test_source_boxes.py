import json
from pathlib import Path

import numpy as np
import pytest
from support.small_sources import CUB_NAMES, write_cub, write_image, write_splits

from cvsa_jax.data.sources import load
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors.annotation import boxes, masks
from cvsa_jax.saliency.store import SaliencyStore

SIZES = {"owl/1.png": (60, 50), "owl/2.png": (10, 80)}  # width, height
GOOD = ("owl/2.png,1,20,4,30", "owl/1.png,6,10,30,35.5")


def write_boxes(root: Path, *rows: str, columns: str = "image,x,y,width,height", below: str = "") -> Path:
    for name, size in SIZES.items():
        write_image(root / below / name, *size)
    (root / "boxes.csv").write_text("\n".join((columns, *rows)) + "\n")
    return root


@pytest.mark.parametrize("below", ["", "images"], ids=["at the root", "below images"])
@pytest.mark.parametrize("splits", [False, True], ids=["without splits", "with splits"])
def test_boxes_of_a_folder_are_fractions_of_each_image(tmp_path, below, splits):
    if splits:  # The order of the images is then that of the splits.
        write_splits(tmp_path, "image,split", "owl/2.png,test", "owl/1.png,train")
    source = load("folder", str(write_boxes(tmp_path, *GOOD, "gone.png,1,1,1,1", below=below)))
    order = ["owl/2.png", "owl/1.png"] if splits else ["owl/1.png", "owl/2.png"]
    assert list(source.names) == order
    expected = {
        "owl/1.png": [10 / 50, 6 / 60, 45.5 / 50, 36 / 60],
        "owl/2.png": [20 / 80, 1 / 10, 50 / 80, 5 / 10],
    }
    for i, name in enumerate(order):
        np.testing.assert_allclose(source.box(i), expected[name])


def test_box_columns_are_found_by_name(tmp_path):
    rows = ("50,5,owl/1.png,x,0,20", "80,10,owl/2.png,x,0,0")
    source = load("folder", str(write_boxes(tmp_path, *rows, columns="height,width,image,note,y,x")))
    np.testing.assert_allclose(source.box(0), [0, 20 / 60, 1, 25 / 60])
    np.testing.assert_allclose(source.box(1), [0, 0, 1, 1])


def test_folder_without_a_table_has_no_boxes(tmp_path):
    write_image(tmp_path / "1.png")
    assert load("folder", str(tmp_path)).box is None


@pytest.mark.parametrize(
    "rows, message",
    [
        (GOOD[:1], r"boxes\.csv has no box of 1 images: owl/1\.png$"),
        ([*GOOD, GOOD[0]], r"boxes\.csv lists images twice: owl/2\.png"),
        ([GOOD[0], "owl/1.png,6,ten,30,35"], r"boxes\.csv has a box that is not four numbers: .*ten"),
        ([GOOD[0], "owl/1.png,6,10,,35"], r"boxes\.csv, row 3: no width\. Fill the cell"),
        # A decimal comma must not shift the numbers.
        ([GOOD[0], "owl/1.png,6,10,30,35,5"], r"boxes\.csv, row 3: 6 cells for 5 columns"),
        (["owl/1.png,.1,.2,.3,.4", "owl/2.png,0,0,1,1"], r"all boxes lie within \[0, 1\], as fractions do"),
    ],
    ids=["no box", "two boxes", "no number", "empty cell", "decimal comma", "fractions"],
)
def test_wrong_tables_of_boxes_are_refused(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        load("folder", str(write_boxes(tmp_path, *rows)))


def test_table_of_boxes_without_a_column_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"must have the columns image,x,y,width,height; it has .*'w'"):
        load("folder", str(write_boxes(tmp_path, *GOOD, columns="image,x,y,w,height")))


# Of an image 60 wide and 50 high, 1 % is 0.6 and 0.5 px.
@pytest.mark.parametrize(
    "box",
    ["-0.7,5,20,20", "5,-0.6,20,20", "5,5,55.7,20", "5,5,20,45.6", "5,5,0,20", "25,25,20,-20", "nan,5,20,20"],
    ids=["left", "top", "right", "bottom", "no width", "negative height", "NaN"],
)
def test_boxes_outside_of_their_images_are_refused(tmp_path, box):
    source = load("folder", str(write_boxes(tmp_path, f"owl/1.png,{box}", GOOD[0])))
    np.testing.assert_allclose(source.box(1), [20 / 80, 1 / 10, 50 / 80, 5 / 10])
    with pytest.raises(UserError, match=r"the box of .*owl/1\.png \(left .* px\) does not lie in it"):
        source.box(0)


def test_boxes_less_than_a_percent_outside_are_clipped(tmp_path):
    source = load("folder", str(write_boxes(tmp_path, "owl/1.png,-0.5,-0.4,61,50.8", "owl/2.png,5,40,5.05,40.7")))
    assert source.box(0).tolist() == [0, 0, 1, 1]
    assert source.box(1).tolist() == [0.5, 0.5, 1, 1]


def write_cub_boxes(root: Path, *rows: str) -> Path:
    write_cub(root)  # images 6 wide and 5 high
    (root / "bounding_boxes.txt").write_text("".join(f"{row}\n" for row in rows))
    return root


CUB_BOXES = ("4 0.0 0.0 6.0 5.0", "2 3.0 2.0 1.5 2.0", "1 1.0 2.0 3.0 2.5", "3 0.0 1.0 2.0 3.0")


def test_cub_boxes_are_fractions_of_each_image(tmp_path):
    source = load("cub", str(write_cub_boxes(tmp_path, *CUB_BOXES)))
    assert source.names == tuple(CUB_NAMES.values())
    expected = [[2 / 5, 1 / 6, 4.5 / 5, 4 / 6], [2 / 5, 3 / 6, 4 / 5, 4.5 / 6], [1 / 5, 0, 4 / 5, 2 / 6], [0, 0, 1, 1]]
    np.testing.assert_allclose([source.box(i) for i in range(4)], expected)
    (tmp_path / "bounding_boxes.txt").unlink()
    assert load("cub", str(tmp_path)).box is None


@pytest.mark.parametrize(
    "rows, message",
    [
        (CUB_BOXES[:3], r"bounding_boxes\.txt does not list the same image ids as images\.txt"),
        ([*CUB_BOXES, "5 1 1 1 1"], r"bounding_boxes\.txt does not list the same image ids as images\.txt"),
        *(([*CUB_BOXES[:3], row], r"bounding_boxes\.txt") for row in ("3 0.0 one 2.0 3.0", "3 0.0 1.0 2.0")),
    ],
    ids=["no box", "unknown image", "no number", "three numbers"],
)
def test_wrong_tables_of_cub_boxes_are_refused(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        load("cub", str(write_cub_boxes(tmp_path, *rows)))


def test_settings_change_with_boxes_and_masks(tmp_path):
    root = write_boxes(tmp_path, *GOOD)
    before = boxes(load("folder", str(root))).settings
    assert boxes(load("folder", str(root))).settings == before
    write_boxes(root, GOOD[0], GOOD[1].replace("35.5", "35"))
    assert boxes(load("folder", str(root))).settings != before
    for name, size in SIZES.items():
        write_image(root / "masks" / name, *size)
    before = masks(load("folder", str(root))).settings
    write_image(root / "masks" / "owl/1.png", 200, 170)
    assert masks(load("folder", str(root))).settings != before


def test_store_made_from_other_boxes_is_refused(tmp_path):
    root = write_boxes(tmp_path / "set", *GOOD)
    source = load("folder", str(root))
    compute(source, boxes(source), tmp_path / "store", threshold=0.5, on_bad_image="stop")
    assert len(SaliencyStore(tmp_path / "store", source)) == len(source)
    write_boxes(root, GOOD[0], GOOD[1].replace("35.5", "35"))
    with pytest.raises(UserError, match="was made from other masks or boxes than set has now: make it again"):
        SaliencyStore(tmp_path / "store", load("folder", str(root)))
    # Older stores do not hold the hash.
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    del manifest["settings"]["annotation_hash"]
    (tmp_path / "store/manifest.json").write_text(json.dumps(manifest))
    assert len(SaliencyStore(tmp_path / "store", load("folder", str(root)))) == len(source)
    (tmp_path / "store/manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(.*\): restore it, or delete"):
        SaliencyStore(tmp_path / "store", source)
