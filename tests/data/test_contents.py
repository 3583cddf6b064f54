"""Fingerprints notice files changed in place, under the same names and sizes, and read unchanged files only once."""

import os
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.small_sources import write_image

from cvsa_jax.data.sources import contents, load
from cvsa_jax.data.sources.archives import UNPACKED, unpack
from cvsa_jax.data.sources.source import difference
from cvsa_jax.data.stored import stored_squares
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.interruption import Interrupted
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors import annotation
from cvsa_jax.saliency.store import SaliencyStore


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    """Two BMPs of one size, older than the cache's caution about files of this very moment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_image(tmp_path / "set" / "a.bmp", level=10)
    write_image(tmp_path / "set" / "b.bmp", level=200)
    monkeypatch.setattr(contents, "_SETTLED", -(10**18))
    return tmp_path / "set"


def print_of(folder: Path, kind: str = "contents") -> str:
    return load("folder", str(folder), looks_at=kind).fingerprint


def exchange(a: Path, b: Path) -> None:
    a.rename(a.with_suffix(".tmp"))
    b.rename(a)
    a.with_suffix(".tmp").rename(b)


def edit(path: Path) -> None:
    """Other pixels in as many bytes, and the time of change as it was."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-4:] = bytes(255 - value for value in content[-4:])
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [lambda a, b: exchange(a, b), lambda a, b: edit(a)], ids=["exchanged", "edited"])
def test_fingerprint_changes_with_images_changed_in_place(images, change):
    before = print_of(images)
    assert print_of(images) == before
    sizes = [path.stat().st_size for path in sorted(images.iterdir())]
    change(images / "a.bmp", images / "b.bmp")
    assert [path.stat().st_size for path in sorted(images.iterdir())] == sizes
    assert print_of(images) != before


def test_fingerprint_of_a_copy_is_the_same_by_contents(images, tmp_path):
    before = print_of(images), print_of(images, "times")
    os.utime(images / "a.bmp", (1, 1))
    assert print_of(images) == before[0] and print_of(images, "times") != before[1]
    assert print_of(shutil.copytree(images, tmp_path / "copy" / "set")) == before[0]


def test_unchanged_files_are_not_read_again(images, monkeypatch):
    read, digest = [], contents._digest
    monkeypatch.setattr(contents, "_digest", lambda path: read.append(Path(path).name) or digest(path))
    first = print_of(images)
    assert sorted(read) == ["a.bmp", "b.bmp"]
    print_of(images), print_of(images, "times")
    assert len(read) == 2
    (images / "b.bmp").touch()
    write_image(images / "c.bmp")
    assert print_of(images) != first and sorted(read[2:]) == ["b.bmp", "c.bmp"]


def test_files_changed_just_now_are_not_cached(images, monkeypatch):
    # Its times might not show a change that follows at once.
    monkeypatch.setattr(contents, "_SETTLED", 2 * 10**9)
    now = time.time_ns()
    monkeypatch.setattr(contents.time, "time_ns", lambda: now)
    os.utime(images / "a.bmp", ns=(now, now))
    before = print_of(images)
    (path,) = (images.parent / "cache" / "cvsa_jax").glob("contents-*.npz")
    with np.load(path) as kept:
        assert kept["digests"].size == 0
    assert print_of(images) == before


def test_interrupted_hashing_resumes(images, monkeypatch):
    monkeypatch.setattr(contents, "_CHUNK", 1)
    digest, read = contents._digest, []

    def interrupted(path):
        if path.endswith("b.bmp"):
            raise Interrupted("now")
        return digest(path)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(contents, "_digest", interrupted)
        print_of(images)
    monkeypatch.setattr(contents, "_digest", lambda path: read.append(Path(path).name) or digest(path))
    print_of(images)
    assert read == ["b.bmp"]


def test_damaged_and_unwritable_caches_leave_the_fingerprint_as_it_is(images, monkeypatch, tmp_path):
    before = print_of(images)
    (cache,) = (tmp_path / "cache" / "cvsa_jax").glob("contents-*.npz")
    cache.write_bytes(b"nonsense")
    assert print_of(images) == before
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert print_of(images) == before


def test_hash_does_not_depend_on_how_a_file_is_read(images, monkeypatch):
    before = print_of(images)
    shutil.rmtree(images.parent / "cache")
    monkeypatch.setattr(contents, "_LARGE", 10)
    assert print_of(images) == before


def test_store_of_exchanged_images_is_refused(images, tmp_path):
    source = load("folder", str(images))
    compute(source, annotation.center(source), tmp_path / "store", threshold=0.5, on_bad_image="stop")
    exchange(images / "a.bmp", images / "b.bmp")
    with pytest.raises(UserError, match=r"was not made for this data set: some images have changed"):
        SaliencyStore(tmp_path / "store", load("folder", str(images)))


def test_stored_squares_follow_the_contents_of_the_files(images, tmp_path):
    squares, _ = stored_squares(load("folder", str(images)), np.arange(2), 8)
    # Another folder with files of the same names and sizes.
    other = tmp_path / "other" / "set"
    write_image(other / "a.bmp", level=77)
    write_image(other / "b.bmp", level=88)
    others, _ = stored_squares(load("folder", str(other)), np.arange(2), 8)
    assert squares[:, 0, 0, 0].tolist() == [10, 200] and others[:, 0, 0, 0].tolist() == [77, 88]
    exchange(images / "a.bmp", images / "b.bmp")
    squares, _ = stored_squares(load("folder", str(images)), np.arange(2), 8)
    assert squares[:, 0, 0, 0].tolist() == [200, 10]


def test_settings_change_with_exchanged_maps(images, tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir()
    for name, value in (("a", 0.2), ("b", 0.9)):
        np.save(maps / f"{name}.npy", np.full((8, 8), value, np.float32))
    source = load("folder", str(images))
    before = annotation.folder(source, maps, "human").settings
    assert annotation.folder(source, maps, "human").settings == before
    exchange(maps / "a.npy", maps / "b.npy")
    assert annotation.folder(source, maps, "human").settings != before


def test_archive_replaced_by_one_of_equal_size_is_unpacked_again(tmp_path):
    def pack(level: int) -> None:
        write_image(tmp_path / "made" / "a.bmp", level=level)
        with tarfile.open(tmp_path / "set.tar", "w") as archive:
            archive.add(tmp_path / "made" / "a.bmp", "a.bmp")

    into = tmp_path / UNPACKED
    for level in (10, 20):
        pack(level)
        os.utime(tmp_path / "set.tar", (level, level))  # two files of one tick of the clock would have one time
        unpack(tmp_path / "set.tar", into)
        assert np.asarray(Image.open(into / "a.bmp"))[0, 0, 0] == level


def test_difference_names_the_reason():
    assert difference("contents-1", "contents-2") == "some images have changed"
    assert "set config.data.fingerprint=times" in difference("times-1", "contents-1")


def test_other_spellings_and_parts_of_a_folder_use_its_cache(images, monkeypatch):
    for name in ("c.png", "d.png"):
        write_image(images / name)
    print_of(images)
    monkeypatch.setattr(contents, "_digest", lambda path: pytest.fail(f"{path} was read"))
    monkeypatch.chdir(images.parent)
    for spelled in ("set", "set/", "./set", str(images)):
        load("folder", spelled).identify("contents")
    (images / "c.png").unlink()
    print_of(images)


def test_full_disk_of_the_cache_leaves_the_fingerprint_as_it_is(images, monkeypatch):
    def full(path, write):
        raise UserError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(contents, "write_atomically", full)
        found = print_of(images)
    assert found == print_of(images)
