"""Mask files of every kind, against what was drawn."""

import numpy as np
import pytest
from PIL import Image
from support.small_sources import write_image

from cvsa_jax.data.sources import load
from cvsa_jax.data.sources.masks import Mask, _pascal, read_mask, read_trimap
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
    "one bit": Image.fromarray(two(0, 255)).convert("1"),
    "16 bits": Image.fromarray(np.where(DRAWN, 65535, 0).astype(np.uint16)),
    "red channel": Image.fromarray(two((0, 0, 0), (200, 0, 0))),
    "two colours": Image.fromarray(two((20, 0, 90), (90, 200, 20))),
    "alpha of white": Image.fromarray(two((255, 255, 255, 0), (255, 255, 255, 255))),
    "palette of PASCAL": palette(two(0, 1), {1: (128, 0, 0)}),
    "palette of one colour": palette(two(0, 3), {0: (9, 9, 9), 3: (9, 9, 9)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_values_in_any_encoding_are_a_mask(tmp_path, kind):
    KINDS[kind].save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, EXPECTED)


def test_soft_edges_and_jpegs_are_cut_at_half_the_range(tmp_path):
    Image.fromarray(soft_edge()).save(tmp_path / "m.png")
    expected = EXPECTED.copy()
    expected[8] = 0
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, expected)
    large = np.kron(two(0, 255), np.ones((16, 16), np.uint8))
    for picture in (Image.fromarray(large), Image.fromarray(large).convert("RGB")):
        picture.save(tmp_path / "m.jpg", quality=80)
        np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg").values, large)


def test_trimap_border_is_part_of_the_object(tmp_path):
    trimap = two(2, 1)
    trimap[3, 4:13] = 3
    Image.fromarray(trimap).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, EXPECTED)
    np.testing.assert_array_equal(read_trimap(tmp_path / "m.png").values, EXPECTED)


@pytest.mark.parametrize(("level", "expected"), [(0, 0), (1, 255), (255, 255)], ids=["0", "1", "255"])
def test_masks_of_one_value_are_empty_or_full(tmp_path, level, expected):
    Image.new("L", (4, 3), level).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png").values == expected).all()


def test_pictures_that_are_no_masks_are_refused(tmp_path):
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


PASCAL = {1: (128, 0, 0), 5: (128, 0, 128), 15: (192, 128, 128), 255: (224, 224, 192)}


def disc(radius: float, soft: float, size: int = 200) -> np.ndarray:
    """A disc with an edge that is so many pixels wide, in fractions."""
    rows, columns = np.mgrid[:size, :size]
    distance = np.hypot(rows - size / 2, columns - size / 2)
    return np.clip((radius - distance) / soft + 0.5, 0, 1)


def read(tmp_path, picture) -> Mask:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(tmp_path / "m.png")
    return read_mask(tmp_path / "m.png")


def test_pascal_palette_labels_are_objects_without_the_border(tmp_path):
    # As greys they are 0, 38, 113 and 220.
    assert (_pascal(np.array([1, 5, 15, 255])) == list(PASCAL.values())).all()
    mask = read(tmp_path, palette(voc(), PASCAL))
    np.testing.assert_array_equal(mask.values, EXPECTED)
    assert mask.kind == "labels of objects"
    # An object that leaves no background, only its border; and a picture whose border is transparent.
    full = np.where(DRAWN, 15, 255).astype(np.uint8)
    np.testing.assert_array_equal(read(tmp_path, palette(full, PASCAL)).values, EXPECTED)
    palette(voc(), PASCAL).save(tmp_path / "m.png", transparency=255)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, EXPECTED)


def test_other_palettes_are_read_by_their_colours(tmp_path):
    # Places in another order than the greys: a mask of a soft edge, as programs write it into a GIF.
    places = np.zeros((12, 16), np.uint8)
    places[DRAWN], places[3, 4:13] = 2, 1
    expected = EXPECTED.copy()
    expected[3] = 0
    greys = {0: (0,) * 3, 1: (40,) * 3, 2: (255,) * 3}
    np.testing.assert_array_equal(read(tmp_path, palette(places, greys)).values, expected)
    white_first = palette(two(1, 0), {0: (255,) * 3, 1: (0,) * 3})
    np.testing.assert_array_equal(read(tmp_path, white_first).values, EXPECTED)
    red = np.dstack([255 * disc(60, 3), np.zeros((200, 200, 2))]).astype(np.uint8)
    for colours in (8, 16, 64):
        mask = read(tmp_path, Image.fromarray(red).quantize(colours))
        assert mask.kind == "soft edges" and np.mean((mask.values > 0) != (disc(60, 3) > 0.5)) < 0.01
    three = Image.fromarray(np.where(DRAWN[..., None], (255, 0, 0), (0, 0, 0)).astype(np.uint8))
    three.putpixel((0, 0), (0, 255, 0))
    three.save(tmp_path / "m.png")
    with pytest.raises(UserError, match="is a colour picture"):
        read_mask(tmp_path / "m.png")
    three.quantize(4).save(tmp_path / "m.png")
    with pytest.raises(UserError, match="is a colour picture"):
        read_mask(tmp_path / "m.png")


APART = np.zeros((40, 60), np.uint16)
APART[5:15, 5:20], APART[20:35, 10:30], APART[8:30, 40:55] = 1, 2, 3


@pytest.mark.parametrize(
    "numbers", [(1, 2, 3), (85, 170, 255), (1, 26, 1001)], ids=["small", "up to white", "of 16 bits"]
)
def test_numbers_of_separate_objects_are_one_mask(tmp_path, numbers):
    values = np.array([0, *numbers], np.uint16)[APART]
    for dtype in [np.uint16] + [np.uint8] * (max(numbers) < 256):
        mask = read(tmp_path, values.astype(dtype))
        np.testing.assert_array_equal(mask.values, np.where(APART > 0, 255, 0))
        assert mask.kind == "labels of objects"


@pytest.mark.parametrize("values", [(0, 20, 255), (0, 4, 8, 255)], ids=["one object", "two objects"])
def test_grey_pascal_labels_leave_the_border_out(tmp_path, values):
    rows, columns = np.mgrid[:60, :60]
    distance = np.hypot(rows - 30, columns - 30)
    for radius, width in ((20, 2), (6, 7)):  # also where the border is larger than the object
        mask = np.full((60, 60), values[0], np.uint8)
        mask[distance < radius] = values[1]
        if len(values) == 4:
            mask[(distance < radius) & (columns > 30)] = values[2]
        mask[(distance >= radius) & (distance < radius + width)] = 255
        np.testing.assert_array_equal(read(tmp_path, mask).values, np.where(distance < radius, 255, 0))


def test_stray_pixels_and_halos_are_no_labels(tmp_path):
    values = np.where(disc(60, 1) > 0.5, 255, 0).astype(np.uint8)
    stray = np.random.default_rng(0).random(values.shape) < 0.02
    for level in (1, 5, 254):
        mask = read(tmp_path, np.where(stray & (values == 0), np.uint8(min(level, 31)), values))
        np.testing.assert_array_equal(mask.values, values)
    halo = np.where((disc(70, 1) > 0.5) & (values == 0), 5, values).astype(np.uint8)
    np.testing.assert_array_equal(read(tmp_path, halo).values, values)


@pytest.mark.parametrize("soft", [2, 8], ids=["2 px", "8 px"])
def test_wide_edges_are_soft_and_no_labels(tmp_path, soft):
    fractions = disc(60, soft)
    expected = fractions * 255 > 127.5
    cut_out = np.dstack([np.random.default_rng(0).integers(0, 256, (200, 200, 3)), fractions * 255]).astype(np.uint8)
    for picture in ((fractions * 255).round().astype(np.uint8), cut_out, (fractions * 65535).astype(np.uint16)):
        mask = read(tmp_path, picture)
        assert mask.kind.endswith("soft edges") and np.mean((mask.values > 0) != expected) < 0.003
    # Fractions, as networks give them, are the same.
    Image.fromarray(fractions.astype(np.float32), "F").save(tmp_path / "m.tif")
    assert np.mean((read_mask(tmp_path / "m.tif").values > 0) != expected) < 0.003


def test_graded_masks_keep_their_levels(tmp_path):
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 17, (12, 1))
    smooth = np.tile(np.arange(256, dtype=np.uint8), (40, 1))
    blob = (255 * np.exp(-(((np.mgrid[:99, :99] - 49) / 30) ** 2).sum(0))).round().astype(np.uint8)
    # As several people drew it: 43 of 255 is one of six.
    votes = np.array([0, 43, 85, 128, 191, 255], np.uint8)[(5 * disc(60, 90)).round().astype(int)]
    for values in (ramp, smooth, blob, votes):
        assert read(tmp_path, values).kind == "degrees"
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, values)
    np.testing.assert_array_equal(read(tmp_path, ramp.astype(np.uint16) * 257).values, ramp)
    # Of a map that is never bright half of the range says nothing.
    with pytest.raises(UserError, match="has 103 values"):
        read(tmp_path, (disc(60, 90) * 102).round().astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_mask_of_a_cut_out_is_its_transparency(tmp_path, mode):
    rng = np.random.default_rng(0)
    picture = np.concatenate([rng.integers(0, 256, (12, 16, 3)), EXPECTED[..., None]], 2).astype(np.uint8)
    image = Image.fromarray(picture, "RGBA")
    mask = read(tmp_path, image.quantize(200) if mode == "P" else image.convert(mode))
    np.testing.assert_array_equal(mask.values, EXPECTED)
    assert mask.kind == "cut-out, two values"


def test_uninformative_transparency_is_no_mask(tmp_path):
    mask = np.dstack([EXPECTED] * 3 + [np.full((12, 16), 255)]).astype(np.uint8)
    for place, level in (((0, 0), 254), ((slice(0, 3), slice(None)), 0)):
        alpha = mask.copy()
        alpha[(*place, 3)] = level
        np.testing.assert_array_equal(read(tmp_path, alpha).values, EXPECTED)
    photo = np.random.default_rng(0).integers(0, 256, (12, 16, 4)).astype(np.uint8)
    photo[..., 3] = 255
    photo[0, 0, 3] = 0
    overlay = np.dstack(
        [np.full((200, 200), 255), np.arange(40000).reshape(200, 200) % 99, disc(60, 9), disc(60, 9) * 127]
    )
    for picture in (photo, overlay.astype(np.uint8)):
        with pytest.raises(UserError, match="is a colour picture"):
            read(tmp_path, picture)


def test_negative_and_non_finite_values_are_refused(tmp_path):
    for values in (np.where(DRAWN, 1.0, np.nan), np.where(DRAWN, 300, -1.0)):
        Image.fromarray(values.astype(np.float32), "F").save(tmp_path / "m.tif")
        with pytest.raises(UserError, match="negative or not finite"):
            read_mask(tmp_path / "m.tif")


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
def test_mask_is_found_under_its_usual_names(tmp_path, name):
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


def test_several_masks_of_an_image_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"several masks of 1\.jpg: 1\.gif, 1\.png"):
        folder_with(tmp_path, ("1.jpg",), ("masks/1.png", "masks/1.gif"))


def test_mask_of_another_aspect_is_refused_with_a_hint_at_exif(tmp_path):
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


def test_annotation_changes_with_a_mask_redrawn_in_place(tmp_path):
    source = folder_with(tmp_path, ("1.jpg",), ("masks/1.bmp",))
    before, size = source.annotation(), (tmp_path / "masks/1.bmp").stat().st_size
    assert load("folder", str(tmp_path)).annotation() == before
    Image.fromarray(two(0, 255)[::-1, ::-1].copy()).save(tmp_path / "masks/1.bmp")
    assert (tmp_path / "masks/1.bmp").stat().st_size == size
    assert load("folder", str(tmp_path)).annotation() != before


def test_class_called_mask_is_a_class(tmp_path):
    for name in ("hat/1.jpg", "mask/2.jpg", "shoe/3.jpg"):
        write_image(tmp_path / name, 16, 12)
    assert load("folder", str(tmp_path)).classes == ("hat", "mask", "shoe")


def test_colour_pictures_named_as_masks_are_images(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for k in range(2):
        for name in (f"face{k}.png", f"face{k}_mask.png"):
            Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)).save(tmp_path / name)
    source = load("folder", str(tmp_path))
    assert len(source) == 4 and source.mask is None
    assert "2 files are named as masks of images beside them, but read as images" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["grey", "cut-out"])
def test_grey_and_cut_out_photographs_named_as_masks_are_images(tmp_path, kind):
    rng = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)).save(tmp_path / f"{k}.png")
        grey = np.tile(np.linspace(0, 255, 160), (120, 1)).astype(np.uint8)
        cut = np.dstack([rng.integers(0, 256, (120, 160, 3)), np.where(grey > 99, 255, 0)]).astype(np.uint8)
        Image.fromarray(grey if kind == "grey" else cut).save(tmp_path / f"{k}_mask.png")
    source = load("folder", str(tmp_path))
    assert len(source) == 6 and source.mask is None


def test_mask_of_the_exact_name_wins(tmp_path):
    source = folder_with(tmp_path, ("dog.jpg", "dog_seg.jpg"), ("masks/dog.png", "masks/dog_seg.png"))
    assert source.masked is None and source.mask(0).shape == source.mask(1).shape


@pytest.mark.parametrize("values", [(1, 2), (1, 3), (2, 3), (2,)], ids=["no border", "no background", "no object", "2"])
def test_parts_of_trimaps_are_refused(tmp_path, values):
    # Nothing tells which of the values is the object.
    mask = np.full((8, 8), values[0], np.uint8)
    mask[:3] = values[-1]
    Image.fromarray(mask).save(tmp_path / "m.png")
    with pytest.raises(UserError, match="in a trimap 1 is the object, 2 the background, 3 the border"):
        read_mask(tmp_path / "m.png")


def test_exif_orientation_of_a_mask_is_applied(tmp_path):
    mask = np.zeros((6, 10), np.uint8)
    mask[:2] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(mask).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").values, mask[::-1, ::-1])
