"""Mask files of every kind, against what was drawn."""

import numpy as np
import pytest
from PIL import Image
from small_sources import write_image

from cvsa_jax.data.sources import load
from cvsa_jax.data.sources.masks import read_mask, read_trimap
from cvsa_jax.runtime.errors import UserError

DRAWN = np.zeros((12, 16), bool)
DRAWN[3:9, 4:13] = True
EXPECTED = np.where(DRAWN, 255, 0)


def two(background, inside) -> np.ndarray:
    shape = DRAWN[..., None] if np.ndim(inside) else DRAWN
    return np.where(shape, inside, background).astype(np.uint8)


def palette(image: np.ndarray, colours: dict[int, tuple[int, ...]]) -> Image.Image:
    picture = Image.fromarray(image, "P")
    flat = [0] * 768
    for index, colour in colours.items():
        flat[3 * index : 3 * index + 3] = colour
    picture.putpalette(flat)
    return picture


def soft_edge() -> np.ndarray:
    grey = two(0, 255)
    grey[3, 4:13] = 128
    grey[8, 4:13] = 127
    return grey


KINDS = {
    "0 and 255": Image.fromarray(two(0, 255)),
    "0 and 1": Image.fromarray(two(0, 1)),
    "7 and 9": Image.fromarray(two(7, 9)),
    "one bit": Image.fromarray(two(0, 255)).convert("1"),
    "16 bits": Image.fromarray(np.where(DRAWN, 65535, 0).astype(np.uint16)),
    "16 bits, 0 and 1": Image.fromarray(np.where(DRAWN, 1, 0).astype(np.uint16)),
    "red channel": Image.fromarray(two((0, 0, 0), (200, 0, 0))),
    "blue channel": Image.fromarray(two((0, 0, 0), (0, 0, 255))),
    "two colours": Image.fromarray(two((20, 0, 90), (90, 200, 20))),
    "alpha of white": Image.fromarray(two((255, 255, 255, 0), (255, 255, 255, 255))),
    "alpha of black": Image.fromarray(two((0, 0, 0, 0), (0, 0, 0, 255))),
    "palette of PASCAL": palette(two(0, 1), {1: (128, 0, 0)}),
    "palette of one colour": palette(two(0, 3), {0: (9, 9, 9), 3: (9, 9, 9)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_values_of_any_kind_are_a_mask(tmp_path, kind):
    KINDS[kind].save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, EXPECTED)


def test_soft_edges_and_jpeg_count_from_the_middle_on(tmp_path):
    Image.fromarray(soft_edge()).save(tmp_path / "m.png")
    expected = EXPECTED.copy()
    expected[8] = 0
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, expected)
    large = np.kron(two(0, 255), np.ones((16, 16), np.uint8))
    for picture in (Image.fromarray(large), Image.fromarray(large).convert("RGB")):
        picture.save(tmp_path / "m.jpg", quality=80)
        np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg").values, large)


def test_trimaps_have_their_border_inside(tmp_path):
    trimap = two(2, 1)
    trimap[3, 4:13] = 3
    Image.fromarray(trimap).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, EXPECTED)
    np.testing.assert_array_equal(read_trimap(tmp_path / "m.png").values, EXPECTED)
    # Without a border nothing tells which is which.
    Image.fromarray(two(2, 1)).save(tmp_path / "m.png")
    with pytest.raises(UserError, match="has the values 1 and 2: in a trimap 1 is the object"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize(("level", "expected"), [(0, 0), (1, 255), (255, 255)])
def test_masks_of_one_value_are_empty_or_full(tmp_path, level, expected):
    Image.new("L", (4, 3), level).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png").values == expected).all()


def test_other_pictures_are_refused_with_what_they_hold(tmp_path):
    rng = np.random.default_rng(0)
    labels = 7 + rng.integers(0, 21, (12, 16)).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    with pytest.raises(UserError, match=r"labels\.png has \d+ values \(7, 8, 9, 10, 11, 12, …\): a mask has two"):
        read_mask(tmp_path / "labels.png")
    photo = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8))
    for name, picture in (("photo", photo), ("quantised", photo.quantize(64))):
        picture.save(tmp_path / f"{name}.png")
        with pytest.raises(UserError, match=rf"{name}\.png is a colour picture"):
            read_mask(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match=r"labels\.png is no trimap"):
        read_trimap(tmp_path / "labels.png")


def voc() -> np.ndarray:
    """Two objects side by side, 1 and 5, with a ring of 255 around them."""
    labels = np.zeros((12, 16), np.uint8)
    labels[2:10, 3:14] = 255
    labels[3:9, 4:13], labels[3:9, 9:13] = 1, 5
    return labels


def test_labels_of_a_palette_are_objects_but_for_the_border(tmp_path):
    # As Pascal VOC paints them: as greys 0, 38, 113 and 220.
    picture = palette(voc(), {1: (128, 0, 0), 5: (128, 0, 128), 255: (224, 224, 192)})
    picture.save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    np.testing.assert_array_equal(mask.values, EXPECTED)
    assert mask.kind == "labels of objects"


@pytest.mark.parametrize(
    "values", [voc(), np.where(voc() == 255, 0, voc()), two(0, 1) * np.arange(1, 17, dtype=np.uint8)]
)
def test_labels_of_greys_are_objects_too(tmp_path, values):
    if values.max() == 12:  # objects 1 to 9, without a gap
        values = np.where(values > 0, values - 3, 0).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    np.testing.assert_array_equal(mask.values, EXPECTED)
    assert mask.kind == "labels of objects"


def test_palette_of_greys_stands_for_its_greys(tmp_path):
    # Places in another order than the greys: a mask of a soft edge, as programs write it into a GIF.
    places = np.zeros((12, 16), np.uint8)
    places[DRAWN], places[3, 4:13] = 2, 1
    palette(places, {0: (0,) * 3, 1: (40,) * 3, 2: (255,) * 3}).save(tmp_path / "m.png")
    expected = EXPECTED.copy()
    expected[3] = 0
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, expected)
    palette(two(1, 0), {0: (255,) * 3, 1: (0,) * 3}).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, EXPECTED)


def test_degrees_stay_degrees(tmp_path):
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 17, (12, 1))
    Image.fromarray(ramp).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").kind == "degrees"
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, ramp)
    # As several people drew it: 43 of 255 is one of six.
    votes = np.array([0, 43, 85, 128, 191, 255], np.uint8)[np.random.default_rng(0).integers(0, 6, (12, 16))]
    Image.fromarray(votes).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, votes)
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, ramp)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_cut_outs_are_masks_by_their_transparency(tmp_path, mode):
    rng = np.random.default_rng(0)
    picture = np.concatenate([rng.integers(0, 256, (12, 16, 3)), EXPECTED[..., None]], 2).astype(np.uint8)
    image = Image.fromarray(picture, "RGBA")
    (image.quantize(200) if mode == "P" else image.convert(mode)).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    np.testing.assert_array_equal(mask.values, EXPECTED)
    assert mask.kind == "cut-out, two values"


# In a folder.


def folder_with(tmp_path, images: tuple[str, ...], masks: tuple[str, ...]):
    for name in images:
        write_image(tmp_path / "images" / name, 16, 12)
    for name in masks:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(two(0, 255)).save(path)
    return load("folder", str(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["masks/owl/1.png", "Masks/owl/1.gif", "mask/owl/1.bmp", "masks/owl/1_mask.png", "masks/owl/1.jpg.png"],
)
def test_a_mask_is_found_under_its_usual_names(tmp_path, name):
    source = folder_with(tmp_path, ("owl/1.jpg", "owl/2.jpg"), (name,))
    np.testing.assert_array_equal(source.mask(0), EXPECTED)
    assert source.masked.tolist() == [True, False]
    assert source.has_mask(np.array([1, 0])).tolist() == [False, True]
    with pytest.raises(UserError, match=r"no mask of owl/2\.jpg"):
        source.mask(1)


def test_masks_beside_their_images_are_no_images(tmp_path):
    source = folder_with(tmp_path, ("owl/1.jpg", "owl/2.jpg"), ("images/owl/1_mask.png", "images/owl/2_mask.png"))
    assert source.names == ("owl/1.jpg", "owl/2.jpg")
    np.testing.assert_array_equal(source.mask(1), EXPECTED)


def test_two_images_of_one_stem_do_not_share_a_mask(tmp_path):
    source = folder_with(tmp_path, ("1.jpg", "1.png", "2.jpg"), ("masks/1.png", "masks/2.png"))
    assert source.masked.tolist() == [False, False, True]
    assert source.left_out["masks that belong to no image"] == ["masks/1.png"]
    source = folder_with(tmp_path, ("1.jpg", "1.png"), ("masks/1.png.png",))
    assert dict(zip(source.names, source.masked, strict=True)) == {"1.jpg": False, "1.png": True, "2.jpg": True}


def test_several_masks_of_an_image_are_named(tmp_path):
    with pytest.raises(UserError, match=r"several masks of 1\.jpg: 1\.gif, 1\.png"):
        folder_with(tmp_path, ("1.jpg",), ("masks/1.png", "masks/1.gif"))


def test_a_mask_of_another_aspect_speaks_of_exif_where_there_is_one(tmp_path):
    source = folder_with(tmp_path, ("1.jpg", "2.jpg"), ("masks/1.png", "masks/2.png"))
    Image.new("RGB", (12, 16)).save(tmp_path / "images/1.jpg")
    with pytest.raises(UserError, match=r"16×12 px and its image 12×16: they must have one aspect\.$"):
        source.mask(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 12)).save(tmp_path / "images/2.jpg", exif=exif)
    with pytest.raises(UserError, match=r"must have one aspect\. Its EXIF data say how to turn it"):
        source.mask(1)
    # A small mask is a rounded one.
    Image.new("RGB", (1600, 1211)).save(tmp_path / "images/1.jpg")
    assert source.mask(0).shape == (12, 16)


def test_a_mask_that_is_redrawn_in_place_changes_the_annotation(tmp_path):
    source = folder_with(tmp_path, ("1.jpg",), ("masks/1.bmp",))
    before, size = source.annotation(), (tmp_path / "masks/1.bmp").stat().st_size
    assert load("folder", str(tmp_path)).annotation() == before
    Image.fromarray(two(0, 255)[::-1, ::-1].copy()).save(tmp_path / "masks/1.bmp")
    assert (tmp_path / "masks/1.bmp").stat().st_size == size
    assert load("folder", str(tmp_path)).annotation() != before


def test_a_class_called_mask_is_a_class(tmp_path):
    for name in ("hat/1.jpg", "mask/2.jpg", "shoe/3.jpg"):
        write_image(tmp_path / name, 16, 12)
    assert load("folder", str(tmp_path)).classes == ("hat", "mask", "shoe")


def test_pictures_that_are_only_named_as_masks_are_images(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for k in range(2):
        for name in (f"face{k}.png", f"face{k}_mask.png"):
            Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)).save(tmp_path / name)
    source = load("folder", str(tmp_path))
    assert len(source) == 4 and source.mask is None
    assert "2 files are named as masks of images beside them, but read as images" in capsys.readouterr().out


def test_the_mask_of_the_exact_name_wins(tmp_path):
    source = folder_with(tmp_path, ("dog.jpg", "dog_seg.jpg"), ("masks/dog.png", "masks/dog_seg.png"))
    assert source.masked is None and source.mask(0).shape == source.mask(1).shape


@pytest.mark.parametrize("values", [(0, 1, 255), (0, 20, 255), (0, 4, 8, 255)])
def test_labels_with_a_border_to_ignore_are_not_taken_for_their_border(tmp_path, values):
    # As of Pascal VOC: background, objects, and 255 around them.
    rows, columns = np.mgrid[:60, :60]
    distance = np.hypot(rows - 30, columns - 30)
    mask = np.full((60, 60), values[0], np.uint8)
    mask[distance < 20] = values[1]
    if len(values) == 4:
        mask[(distance < 20) & (columns > 30)] = values[2]
    mask[(distance >= 18) & (distance < 20)] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, np.where(distance < 18, 255, 0))


@pytest.mark.parametrize("values", [(1, 3), (2, 3), (2,)])
def test_parts_of_trimaps_are_refused(tmp_path, values):
    mask = np.full((8, 8), values[0], np.uint8)
    mask[:3] = values[-1]
    Image.fromarray(mask).save(tmp_path / "m.png")
    with pytest.raises(UserError, match="in a trimap 1 is the object, 2 the background, 3 the border"):
        read_mask(tmp_path / "m.png")


def test_a_mask_is_turned_as_its_exif_data_say(tmp_path):
    mask = np.zeros((6, 10), np.uint8)
    mask[:2] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(mask).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, mask[::-1, ::-1])
