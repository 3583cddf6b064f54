"""Sizes and orientations of images, looked up once and kept."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from support.small_sources import memory_source, write_all

from cvsa_jax.data import decode
from cvsa_jax.data.headers import OTHER, Headers
from cvsa_jax.data.sources import load


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(kind: str, mode: str = "RGB", orientation: int = 1, **options) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.new(mode, (30, 20)).save(file, kind, exif=exif, **options)
    return file.getvalue()


# Name -> file, its height and width, and the turn.
FILES = {
    "a JPEG": (encoded("JPEG"), (20, 30), 1),
    "upside down": (encoded("JPEG", orientation=3), (20, 30), 3),
    "on its side": (encoded("JPEG", orientation=6), (30, 20), 6),
    "grey": (encoded("JPEG", "L"), (20, 30), 1),
    "CMYK": (encoded("JPEG", "CMYK"), (20, 30), OTHER),
    "a PNG on its side": (encoded("PNG", orientation=8), (30, 20), OTHER),
    "WebP": (encoded("WEBP"), (20, 30), OTHER),
    "a JPEG with much before its size": (encoded("JPEG", icc_profile=bytes(200_000)), (20, 30), 1),
}


@pytest.mark.parametrize("in_files", [False, True], ids=["in memory", "in files"])
def test_headers_give_shapes_and_turns(in_files, tmp_path):
    source = memory_source([file for file, _, _ in FILES.values()])
    if in_files:
        paths = [tmp_path / f"{k}" for k in range(len(FILES))]
        for path, (file, _, _) in zip(paths, FILES.values(), strict=True):
            path.write_bytes(file)
        source = dataclasses.replace(source, path=lambda i: str(paths[i]))
    shapes, turns = Headers(source).look(np.arange(len(FILES)))
    for name, shape, turn in zip(FILES, shapes.tolist(), turns.tolist(), strict=True):
        assert (tuple(shape), turn) == FILES[name][1:], name


def test_cut_rows_are_no_part_of_the_shape():
    source = dataclasses.replace(memory_source([encoded("JPEG"), encoded("JPEG", orientation=6)]), cut=4)
    assert Headers(source).look(np.arange(2))[0].tolist() == [[16, 30], [26, 20]]


def test_headers_are_kept_until_images_change():
    files = [encoded("JPEG"), encoded("PNG"), encoded("JPEG", orientation=6)]
    headers = Headers(memory_source(files))
    first = headers.look(np.array([2, 0]))
    headers.keep()
    asked = []
    unread = dataclasses.replace(memory_source(files), read=lambda i: asked.append(i) or files[i])
    again = Headers(unread)
    for found, value in zip(again.look(np.array([2, 0])), first, strict=True):
        np.testing.assert_array_equal(found, value)
    assert not asked
    again.look(np.arange(3))
    assert asked == [1]
    # Two processes, each with headers of its own, keep both.
    again.keep()
    assert (Headers(unread).shapes[:, 0] > 0).all()
    changed = memory_source([*files[:2], encoded("JPEG", orientation=3)])
    assert Headers(changed).look(np.array([2]))[1].tolist() == [3]


def test_keep_preserves_findings_of_another_process():
    source = memory_source([encoded("JPEG"), encoded("JPEG", orientation=6)])
    one, other = Headers(source), Headers(source)
    one.look(np.arange(2))
    other.look(np.arange(2))
    one.leave_to_us(1)
    one.keep()
    other.keep()
    assert Headers(source).turns.tolist() == [1, OTHER]


def test_headers_of_images_exchanged_meanwhile_are_not_kept():
    files = [encoded("JPEG"), encoded("JPEG", orientation=6)]
    source, fingerprint = memory_source(files), memory_source(list(files)).fingerprint
    source = dataclasses.replace(source, identify=lambda kind: fingerprint)
    headers = Headers(source)
    headers.look(np.arange(2))
    files[1] = encoded("JPEG", orientation=8)
    assert not headers.look_again(0)
    assert headers.look_again(1) and headers.turns.tolist() == [1, 8]
    headers.keep()
    files[1] = encoded("JPEG", orientation=6)
    assert Headers(source).look(np.arange(2))[1].tolist() == [1, 6]


def test_unwritable_cache_is_tried_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    headers = Headers(memory_source([encoded("JPEG")] * 3))
    headers.look(np.arange(3))
    tries = []
    monkeypatch.setattr(headers, "_kept", lambda: tries.append(1))
    headers.keep()
    headers.keep()
    headers.look(np.arange(3))
    assert not tries


def test_damaged_cache_is_made_again(tmp_path):
    source = load("folder", str(write_all(tmp_path / "set", "a.png", "b.jpg")))
    headers = Headers(source)
    expected = headers.look(np.arange(2))
    headers.keep()
    (kept,) = (tmp_path / "cache").rglob("headers-*.npz")
    kept.write_bytes(kept.read_bytes()[:50])
    for found, value in zip(Headers(source).look(np.arange(2)), expected, strict=True):
        np.testing.assert_array_equal(found, value)


def test_file_that_is_no_image_is_unreadable(tmp_path):
    for content, reason in (
        (b"", "empty"),
        (b"no image", "not an image"),
        (encoded("JPEG")[:80], "Truncated"),
    ):
        with pytest.raises(decode.Unreadable, match=reason):
            Headers(memory_source([content])).look(np.array([0]))
