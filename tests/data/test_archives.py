"""Official sets in their archives."""

import os
import shutil
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.small_sources import CUB_NAMES, write_cub

from cvsa_jax.data.sources import archives, load
from cvsa_jax.data.sources.archives import UNPACKED, unpack
from cvsa_jax.runtime.errors import UserError


def packed(root: Path, into: Path, ending: str) -> None:
    if ending == "zip":
        with zipfile.ZipFile(into, "w") as archive:
            for path in sorted(root.rglob("*")):
                archive.write(path, path.relative_to(root))
        return
    with tarfile.open(into, "w" if ending == "tar" else "w:gz") as archive:
        for path in sorted(root.iterdir()):
            archive.add(path, path.name)


@pytest.mark.parametrize("root_is", ["folder", "archive"])
def test_set_is_read_from_archives_that_are_unpacked_once(tmp_path, root_is):
    write_cub(tmp_path / "made/CUB_200_2011", segmentations=True)
    shutil.move(tmp_path / "made/CUB_200_2011/segmentations", tmp_path / "masks/segmentations")
    root = tmp_path / "data"
    root.mkdir()
    packed(tmp_path / "made", root / "CUB_200_2011.tgz", "tgz")
    packed(tmp_path / "masks", root / "segmentations.tgz", "tgz")
    source = load("cub", str(root if root_is == "folder" else root / "CUB_200_2011.tgz"))
    assert source.names == tuple(CUB_NAMES.values())
    assert source.mask(0).shape == (5, 6)  # from the other archive
    place = root / UNPACKED / "CUB_200_2011/images" / CUB_NAMES["1"]
    before = place.stat().st_mtime_ns
    load("cub", str(root))
    assert place.stat().st_mtime_ns == before


@pytest.mark.parametrize("ending", ["tar", "tgz", "zip"])
def test_interrupted_unpacking_resumes(tmp_path, ending):
    write_cub(tmp_path / "made")
    packed(tmp_path / "made", tmp_path / f"set.{ending}", ending)
    unpack(tmp_path / f"set.{ending}", tmp_path / "whole")
    into, names = tmp_path / "into", sorted(p.name for p in (tmp_path / "whole").rglob("*") if p.is_file())
    unpack(tmp_path / f"set.{ending}", into)
    kept, cut = into / "images/001.Owl/a.jpg", into / "images/001.Owl/b.jpg"
    (into / f"set.{ending}.done").unlink()
    stamp = kept.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:10])
    unpack(tmp_path / f"set.{ending}", into)
    assert sorted(p.name for p in into.rglob("*") if p.is_file()) == names
    assert kept.stat().st_mtime_ns == stamp
    assert cut.read_bytes() == (tmp_path / "made/images/001.Owl/b.jpg").read_bytes()


def test_unsafe_and_damaged_archives_are_refused(tmp_path):
    (tmp_path / "evil.txt").write_text("x")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.add(tmp_path / "evil.txt", "../outside.txt")
    with pytest.raises(UserError, match=r"names a file outside of its folder, '\.\./outside\.txt'"):
        unpack(tmp_path / "evil.tar", tmp_path / "into")
    assert not (tmp_path / "outside.txt").exists()
    write_cub(tmp_path / "made")
    packed(tmp_path / "made", tmp_path / "set.tgz", "tgz")
    whole = (tmp_path / "set.tgz").read_bytes()
    (tmp_path / "set.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot unpack .*set\.tgz after \d+ files"):
        unpack(tmp_path / "set.tgz", tmp_path / "into")
    (tmp_path / "set.zip").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"cannot unpack .*set\.zip after 0 files"):
        unpack(tmp_path / "set.zip", tmp_path / "into")


def test_packed_masks_beside_an_unpacked_set_are_unpacked(tmp_path):
    write_cub(tmp_path / "CUB_200_2011", segmentations=True)
    (tmp_path / "made").mkdir()
    shutil.move(tmp_path / "CUB_200_2011/segmentations", tmp_path / "made/segmentations")
    assert load("cub", str(tmp_path)).mask is None
    packed(tmp_path / "made", tmp_path / "segmentations.tgz", "tgz")
    assert load("cub", str(tmp_path)).mask(0).shape == (5, 6)


def test_simultaneous_unpacking_is_done_once(tmp_path, monkeypatch):
    write_cub(tmp_path / "made")
    packed(tmp_path / "made", tmp_path / "set.tgz", "tgz")
    together, unpacked, locked = threading.Barrier(3), [], archives.fcntl.flock

    def lock(*arguments):  # each has seen that nothing is unpacked before any of them begins
        together.wait(60)
        locked(*arguments)

    monkeypatch.setattr(archives, "fcntl", SimpleNamespace(flock=lock, LOCK_EX=archives.fcntl.LOCK_EX))
    unpack_all = archives._unpack
    monkeypatch.setattr(archives, "_unpack", lambda *args: unpacked.append(1) or unpack_all(*args))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: unpack(tmp_path / "set.tgz", tmp_path / "into"), range(3)))
    assert len(unpacked) == 1
    assert not list((tmp_path / "into").rglob("*.part"))
    image = f"images/{CUB_NAMES['1']}"
    assert (tmp_path / "into" / image).read_bytes() == (tmp_path / "made" / image).read_bytes()


def test_tar_links_become_files_and_dangling_ones_are_reported(tmp_path, capsys):
    (tmp_path / "made" / "sub").mkdir(parents=True)
    (tmp_path / "made" / "b.txt").write_text("held")
    os.link(tmp_path / "made" / "b.txt", tmp_path / "made" / "sub" / "hard.txt")
    os.symlink("../b.txt", tmp_path / "made" / "a_soft.txt")  # before its file in the archive, and wrong there
    os.symlink("../b.txt", tmp_path / "made" / "sub" / "soft.txt")
    os.symlink("sub/soft.txt", tmp_path / "made" / "a_chain.txt")  # before what it is of
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for path in sorted((tmp_path / "made").rglob("*")):
            archive.add(path, str(path.relative_to(tmp_path / "made")), recursive=False)
    unpack(tmp_path / "set.tar", tmp_path / "into")
    for name in ("sub/hard.txt", "sub/soft.txt", "a_chain.txt"):
        assert (tmp_path / "into" / name).read_text() == "held"
    assert not (tmp_path / "into" / "a_soft.txt").exists()
    assert "left out 1 links to what is not a file in it: a_soft.txt" in capsys.readouterr().out


def test_tar_link_to_outside_is_left_out(tmp_path, capsys):
    (tmp_path / "secret.txt").write_text("x")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "../secret.txt"
        archive.addfile(link)
    unpack(tmp_path / "set.tar", tmp_path / "into")
    assert not (tmp_path / "into" / "link.txt").exists() and "left out 1 links" in capsys.readouterr().out
