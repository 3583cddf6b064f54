"""The look at a data set: what it finds is what was put there."""

import json

import numpy as np
import pytest
from PIL import Image
from support.small_sources import write_image, write_splits

from configs import common
from cvsa_jax.data import inspect
from cvsa_jax.runs.data_check import check
from cvsa_jax.runtime.errors import UserError

CLEAN = ("owl/1.png", "owl/2.png", "wren/3.png", "wren/4.png")


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Smooth random colours, of which no two look alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path):
    """Four sound images of two classes with masks, in two splits."""
    folder = tmp_path / "set"
    for k, name in enumerate(CLEAN):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(k).save(path)
        mask = np.zeros((40, 48), np.uint8)
        mask[10:30, 12:36] = 255
        mask_path = folder / "masks" / name
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(mask_path)
    write_splits(folder, "image,split", *(f"{name},{'test' if k % 2 else 'train'}" for k, name in enumerate(CLEAN)))
    return folder


def results(root, tmp_path, near: bool = False, images: int | None = None, **data) -> dict:
    config = common.pretrain()
    config.data.root = str(root)
    config.data.update(data)
    check(config, tmp_path / "out", images, near)
    return json.loads((tmp_path / "out/report/results.json").read_text())


def test_data_check_of_a_sound_set_reports_counts_and_page(root, tmp_path, capsys):
    found = results(root, tmp_path)
    assert {key: found[key] for key in ("images", "images_train", "images_test", "classes")} == {
        "images": 4,
        "images_train": 2,
        "images_test": 2,
        "classes": 2,
    }
    assert found["refused"] == found["warnings"] == 0 and found["lists"] == {}
    said = capsys.readouterr().out
    assert "2 classes of 2 to 2 images" in said and "Images of 48×40 to 48×40 px" in said and "warning" not in said
    page = (tmp_path / "out/report/index.html").read_text()
    assert page.count("<img") == 1 and "http" not in page


def test_unreadable_images_are_refused_unless_skipped(root, tmp_path):
    whole = (root / "images/owl/1.png").read_bytes()
    (root / "images/owl/1.png").write_bytes(whole[: len(whole) // 2])
    (root / "images/wren/3.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"2 images cannot be decoded: owl/1\.png \(.*truncated.*\), wren/3\.png \(the file"
    ):
        results(root, tmp_path)
    found = results(root, tmp_path, on_bad_image="skip")
    assert found["lists"]["unreadable"] == ["owl/1.png", "wren/3.png"] and found["refused"] == 0


def test_equal_and_near_duplicate_images_are_found(root, tmp_path, capsys):
    (root / "images/wren/4.png").write_bytes((root / "images/owl/1.png").read_bytes())  # test and train, two labels
    picture(1).resize((96, 80), Image.Resampling.BICUBIC).save(root / "images/wren/3.png")  # looks like owl/2.png
    found = results(root, tmp_path)
    assert found["lists"]["equal images"] == ["owl/1.png = wren/4.png"]
    assert "nearly equal images" not in found["lists"]
    assert "1 groups of equal images, 1 of them across splits (owl/1.png = wren/4.png), 1 with different labels" in (
        capsys.readouterr().out
    )
    assert results(root, tmp_path, near=True)["lists"]["nearly equal images"] == ["owl/2.png = wren/3.png"]


def test_wrong_missing_empty_or_full_masks_are_reported(root, tmp_path):
    (root / "masks/owl/2.png").unlink()
    Image.new("L", (40, 48)).save(root / "masks/wren/3.png")  # of another aspect
    with pytest.raises(UserError, match=r"1 masks are wrong: wren/3\.png .*one aspect.*") as refused:
        results(root, tmp_path)
    assert "; 1 images have no mask, and config.saliency.detector is 'masks', which needs all" in str(refused.value)
    assert str(refused.value).endswith("such as rbd: owl/2.png")
    for name in CLEAN:
        Image.fromarray(np.pad(np.full((38, 46), 255, np.uint8), 1)).save(root / "masks" / name)
    found = results(root, tmp_path)
    assert found["lists"]["full masks"] == list(CLEAN) and found["warnings"] == 1
    Image.new("L", (48, 40)).save(root / "masks/owl/1.png")
    assert results(root, tmp_path)["lists"]["empty masks"] == ["owl/1.png"]


def test_mask_kinds_are_counted(root, tmp_path, capsys):
    ramp = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1))
    Image.fromarray(ramp).save(root / "masks/owl/1.png")
    cut = np.dstack([np.random.default_rng(0).integers(0, 256, (40, 48, 3)), np.where(ramp > 99, 255, 0)])
    Image.fromarray(cut.astype(np.uint8)).save(root / "masks/owl/2.png")
    results(root, tmp_path)
    assert "Masks: two values (2), degrees (1), cut-out, two values (1)." in capsys.readouterr().out


def test_classes_missing_from_a_split_and_unknown_splits_are_reported(root, tmp_path, capsys):
    write_splits(root, "image,split", *(f"{name},{'test' if 'owl' in name else 'train'}" for name in CLEAN))
    results(root, tmp_path)
    said = capsys.readouterr().out
    assert "1 classes have no image in test: wren" in said and "1 classes have no image in train: owl" in said
    with pytest.raises(UserError, match="there is no split 'training'; there are test, train"):
        results(root, tmp_path, train_split="training")


def test_rotated_images_and_wrong_boxes_are_listed(root, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    picture(0).save(root / "images/owl/1.png", exif=exif)
    (root / "boxes.csv").write_text(
        "image,x,y,width,height\n" + "".join(f"{n},5,5,{w},20\n" for n, w in zip(CLEAN, (9, 9, 90, 9), strict=True))
    )
    found = results(root, tmp_path)
    assert found["lists"]["turned"] == ["owl/1.png"] and found["lists"]["wrong boxes"] == ["wren/3.png"]


def test_images_option_limits_the_inspected_images(root, tmp_path):
    assert results(root, tmp_path, images=2)["images_looked_at"] == 2
    found = results(root, tmp_path, images=0)
    assert (found["images_looked_at"], found["images"]) == (0, 4)


def test_near_pairs_equal_brute_force():
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 2**63, 300, np.uint64)
    for k in range(60):  # copies with 0 to 5 bits changed
        changed = sum(1 << int(bit) for bit in rng.choice(64, k % 6, replace=False))
        looks = np.append(looks, looks[k] ^ np.uint64(changed))
    every = [
        (a, b)
        for a in range(len(looks))
        for b in range(a + 1, len(looks))
        if int(looks[a] ^ looks[b]).bit_count() <= inspect.NEAR
    ]
    assert len(every) >= 40 and inspect.near_pairs(looks) == every


def test_near_pairs_of_many_equal_looks_are_a_chain():
    # 2,000 black images, say: two million pairs. One of them stands for all in pairs with what is near.
    looks = np.array([7] * 2000 + [6, 2**40 + 2**41], np.uint64)
    pairs = inspect.near_pairs(looks)
    assert pairs == [*((0, row) for row in range(1, 2000)), (0, 2000)]


def test_look_of_is_stable_under_resize_and_jpeg(tmp_path):
    looks = [inspect.look_of(picture(k)) for k in range(20)]
    for k in range(20):
        picture(k, (200, 160)).save(tmp_path / "x.jpg", quality=60)
        other = inspect.look_of(Image.open(tmp_path / "x.jpg"))
        distances = [(look ^ other).bit_count() for look in looks]
        assert distances[k] <= inspect.NEAR + 2 and min(d for j, d in enumerate(distances) if j != k) > 8
    assert not write_image(tmp_path / "plain.png") and inspect.look_of(Image.open(tmp_path / "plain.png")) == 0
