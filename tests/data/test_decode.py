"""Odd images as the decoder gives them: turned, transparent, of other colours, cut, enormous."""

import io
import resource

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.small_sources import decoded, memory_source

from cvsa_jax.data import decode
from cvsa_jax.data.pipeline import image_batches


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corners(pixels: np.ndarray) -> list[str]:
    """Which colour lies in which corner, clockwise from the top left."""
    of = {0: "red", 1: "green", 2: "blue"}
    places = (pixels[2, 2], pixels[2, -3], pixels[-3, -3], pixels[-3, 2])
    return [of[int(p.argmax())] if np.ptp(p) > 60 else "grey" for p in places]


def four_corners() -> Image.Image:
    pixels = np.full((48, 80, 3), 128, np.uint8)
    pixels[:24, :40], pixels[:24, 40:], pixels[24:, 40:] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    return Image.fromarray(pixels)


# Pillow turns a TIFF itself, and a PNG has its metadata filtered.
@pytest.mark.parametrize(
    ("kind", "orientation"), [*(("JPEG", k) for k in range(1, 9)), ("PNG", 6), ("TIFF", 6), ("WEBP", 6)]
)
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} | ({"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {})
    content = encoded(four_corners(), kind, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    read = decode.opened(content)
    assert read.size == expected.size == ((80, 48) if orientation <= 4 else (48, 80))
    pixels = decoded(content)
    assert pixels.shape == (*expected.size[::-1], 3)
    assert corners(pixels) == corners(np.asarray(expected.convert("RGB")))


def test_reduced_size_of_a_turned_jpeg_follows_its_upright_sides():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(four_corners().resize((1600, 960)), "JPEG", exif=exif)
    read = decode.opened(content).pixels(np.array([300.0, 180.0]))
    assert 300 <= read.height < 1600 and read.height / read.width == pytest.approx(1600 / 960)
    assert corners(np.asarray(read)) == ["grey", "red", "green", "blue"]


def test_transparent_pixels_are_white():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (10, 20, 30, 255)
    pixels[2:, :2] = (0, 0, 0, 128)
    seen = decoded(encoded(Image.fromarray(pixels, "RGBA")))
    assert seen[0, 0].tolist() == [10, 20, 30] and seen[3, 3].tolist() == [255] * 3
    assert abs(int(seen[3, 0, 0]) - 127) <= 1
    grey = Image.fromarray(np.dstack([np.full((2, 2), 7, np.uint8), np.array([[255, 0]] * 2, np.uint8)]), "LA")
    assert decoded(encoded(grey))[0].tolist() == [[7] * 3, [255] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putpixel((1, 0), 1)
    assert decoded(encoded(palette, transparency=1))[0].tolist() == [[9, 8, 7], [255] * 3]
    assert decoded(encoded(palette))[0].tolist() == [[9, 8, 7], [1, 2, 3]]


def test_colour_spaces_and_depths_become_rgb_of_8_bits():
    rgb = Image.new("RGB", (16, 16), (200, 40, 40))
    for mode in ("CMYK", "YCbCr"):
        kind = "JPEG" if mode == "CMYK" else "TIFF"
        pixels = decoded(encoded(rgb.convert(mode), kind))
        assert np.abs(pixels.astype(int) - (200, 40, 40)).max() < 12
    deep = Image.fromarray(np.full((4, 4), 0x80FF, np.uint16))
    assert (decoded(encoded(deep)) == 0x80).all()
    levels = np.array([[0, 255, 255]], np.uint8)
    for grey in (Image.fromarray(levels), Image.fromarray(levels).convert("1")):
        np.testing.assert_array_equal(decoded(encoded(grey)), np.dstack([levels] * 3))


def test_reason_of_a_truncated_jpeg_is_one_line():
    content = encoded(four_corners(), "JPEG")
    with pytest.raises(decode.Unreadable, match=r"(?i)truncated") as reason:
        decoded(content[: len(content) // 2])
    assert "\n" not in str(reason.value)


def test_cut_rows_are_no_part_of_the_size():
    content = encoded(four_corners())
    read = decode.opened(content, cut=20)
    assert read.size == (80, 28)
    np.testing.assert_array_equal(np.asarray(read.pixels()), np.asarray(four_corners())[:28])
    with pytest.raises(decode.Unreadable, match="80 x 48 px, of which the lowest 48 rows are cut off"):
        decode.opened(content, cut=48)


def test_enormous_image_is_refused_by_its_header():
    # A PNG of 30,000 x 30,000 px of one colour is a few kB.
    content = encoded(Image.new("1", (30_000, 30_000)))
    assert len(content) < 200_000
    with pytest.raises(decode.Unreadable, match="could be decompression bomb"):
        decode.opened(content)


def test_crop_of_a_very_long_image_takes_little_memory():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 30_000, 3), np.uint8))
    source = memory_source([encoded(image)])
    next(image_batches(source, np.array([0]), resize=256, size=224, batch_size=1))  # what TensorFlow takes at first
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (((crop,), _),) = image_batches(source, np.array([0]), resize=256, size=224, batch_size=1)
    # Scaled whole, it would be 256 x 3,840,000 px, 3 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert crop.shape == (224, 224, 3)
    # The middle of the image scaled to a height of 256: 224 / 256 of its 2 px, as wide as high.
    expected = np.asarray(image.crop((14_999, 0, 15_001, 2)), float).mean()
    assert abs(crop.mean() - expected) < 40
