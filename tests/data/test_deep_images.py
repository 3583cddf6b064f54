"""Images of more than 8 bits, and PNG files with damaged metadata: the right pixels, or one line of why not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from support.small_sources import decoded, write_image

from cvsa_jax.data import decode, inspect
from cvsa_jax.data.sources import load

RAMP = np.linspace(0, 1, 12).reshape(3, 4)
LOWEST, HIGHEST, FLOAT_LOWEST, FLOAT_HIGHEST = 280, 281, 340, 341


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(values: np.ndarray, **tags: float) -> bytes:
    info = {"lowest": LOWEST, "highest": HIGHEST, "float_lowest": FLOAT_LOWEST, "float_highest": FLOAT_HIGHEST}
    return encoded(Image.fromarray(values), "TIFF", tiffinfo={info[name]: value for name, value in tags.items()})


def pgm(values: np.ndarray, most: int) -> bytes:
    return b"P5 %d %d %d\n" % (values.shape[1], values.shape[0], most) + values.astype(">u2").tobytes()


# Name -> bytes that show RAMP.
RIGHT = {
    "floats from 0 to 1": tiff(RAMP.astype(np.float32)),
    "floats of a range in tags": tiff((RAMP * 7 - 3).astype(np.float32), float_lowest=-3.0, float_highest=4.0),
    "16 bits": tiff((RAMP * 65535).astype(np.uint16)),
    "12 bits in 16, range in tags": tiff((RAMP * 4095).astype(np.uint16), lowest=0, highest=4095),
    "32 bits of a range in tags": tiff((RAMP * 10**6).astype(np.int32), float_lowest=0.0, float_highest=1e6),
    "PNG of 16 bits": encoded(Image.fromarray((RAMP * 65535).astype(np.uint16)), "PNG"),
    "PGM of 12 bits": pgm(RAMP * 4095, 4095),
}


@pytest.mark.parametrize("name", RIGHT)
def test_deep_images_are_scaled_by_the_range_in_the_file(name):
    pixels = decoded(RIGHT[name])
    assert (pixels == pixels[..., :1]).all()
    np.testing.assert_allclose(pixels[..., 0], RAMP * 255, atol=1)


REFUSED = {
    "floats of no known range": (tiff((RAMP * 300).astype(np.float32)), "values from 0 to 300, outside of the range"),
    "floats with a NaN": (tiff(np.full((2, 2), np.nan, np.float32)), "values from nan"),
    "negative floats": (tiff((RAMP - 0.5).astype(np.float32)), "values from -0.5 to 0.5"),
    "32 bits": (tiff((RAMP * 10**6).astype(np.int32)), "32 bits, of a range that it does not tell"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_range_is_refused(name):
    content, reason = REFUSED[name]
    with pytest.raises(decode.Unreadable, match=reason):
        decoded(content)


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    right = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", right if checksum is None else checksum)


PLAIN = encoded(Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5), "PNG")
HEADER = 8 + 25  # signature and IHDR
MUCH = 2 * PngImagePlugin.MAX_TEXT_CHUNK
DAMAGED = {
    "EXIF that is no EXIF": chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff" + b"\0" * 9),
    "a checksum of EXIF": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", checksum=1),
    "a checksum of text": chunk(b"tEXt", b"Comment\0hello", checksum=1),
    "text above Pillow's limit": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * MUCH)),
    "an ICC profile above Pillow's limit": chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"x" * MUCH)),
}


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        *(pytest.param(name, HEADER, id=f"{name}, before the pixels") for name in DAMAGED),
        pytest.param("a checksum of text", len(PLAIN) - 12, id="a checksum of text, after the pixels"),
    ],
)
def test_png_with_damaged_metadata_keeps_its_pixels(name, cut):
    np.testing.assert_array_equal(decoded(PLAIN[:cut] + DAMAGED[name] + PLAIN[cut:]), decoded(PLAIN))


def test_truncated_png_is_refused():
    with pytest.raises(decode.Unreadable):
        decoded(PLAIN[: len(PLAIN) // 2])


def test_nearly_black_and_constant_images_are_reported(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, most in (("dark", 16), ("good", 256)):
        for k in range(4):
            path = tmp_path / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, most, (20, 20, 3), np.uint8)).save(path)
        source = load("folder", str(tmp_path / name))
        inspect.warn_of_faint(source, np.arange(4))
        assert ("4 of 4 images of dark" in capsys.readouterr().out) == (name == "dark")
    write_image(tmp_path / "flat" / "a.png")
    assert inspect.faint_levels([(3, 3), (0, 15), (0, 16), (100, 255)]) == [0, 1]


@pytest.mark.parametrize("place", ["eXIf", "XMP", "Raw profile"])
def test_png_orientation_is_read_from_every_place(place):
    image, info = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3)), PngImagePlugin.PngInfo()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {}
    if place == "eXIf":
        options["exif"] = exif
    elif place == "XMP":
        told = (
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
        )
        info.add_itxt("XML:com.adobe.xmp", told)
    else:
        data = exif.tobytes()
        info.add_text("Raw profile type exif", f"\nexif\n{len(data)}\n{data.hex()}\n")
    info.add_text("Comment", "x" * 100)
    content = encoded(image, "PNG", pnginfo=info, **options)
    assert Image.open(io.BytesIO(content)).getexif().get(0x0112) == 6
    np.testing.assert_array_equal(decoded(content), np.rot90(np.asarray(image), -1))


def test_white_is_zero_tiff_is_not_inverted():
    values = (RAMP * 65535).astype(np.uint16)
    content = encoded(Image.fromarray(65535 - values), "TIFF", tiffinfo={262: 0})
    np.testing.assert_allclose(decoded(content)[..., 0], RAMP * 255, atol=1)
