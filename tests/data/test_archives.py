"""Official sets that lie in their archives."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.small_sources import CUB_NAMES, write_cub

from cvsa_jax.data.sources import load
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


@pytest.mark.parametrize("given", ["folder", "archive"])
def test_a_set_is_read_from_its_archives_which_are_unpacked_once(tmp_path, given):
    write_cub(tmp_path / "made/CUB_200_2011", segmentations=True)
    shutil.move(tmp_path / "made/CUB_200_2011/segmentations", tmp_path / "masks/segmentations")
    root = tmp_path / "data"
    root.mkdir()
    packed(tmp_path / "made", root / "CUB_200_2011.tgz", "tgz")
    packed(tmp_path / "masks", root / "segmentations.tgz", "tgz")
    source = load("cub", str(root if given == "folder" else root / "CUB_200_2011.tgz"))
    assert source.names == tuple(CUB_NAMES.values())
    assert source.mask(0).shape == (5, 6)  # from the other archive
    place = root / UNPACKED / "CUB_200_2011/images" / CUB_NAMES["1"]
    before = place.stat().st_mtime_ns
    load("cub", str(root))
    assert place.stat().st_mtime_ns == before


@pytest.mark.parametrize("ending", ["tar", "tgz", "zip"])
def test_unpacking_goes_on_where_it_was_stopped(tmp_path, ending):
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


def test_archives_that_cannot_be_trusted_or_read(tmp_path):
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


def test_masks_that_are_still_packed_beside_an_unpacked_set_are_unpacked(tmp_path):
    write_cub(tmp_path / "CUB_200_2011", segmentations=True)
    (tmp_path / "made").mkdir()
    shutil.move(tmp_path / "CUB_200_2011/segmentations", tmp_path / "made/segmentations")
    assert load("cub", str(tmp_path)).mask is None
    packed(tmp_path / "made", tmp_path / "segmentations.tgz", "tgz")
    assert load("cub", str(tmp_path)).mask(0).shape == (5, 6)


def test_several_processes_unpack_an_archive_once(tmp_path):
    write_cub(tmp_path / "made")
    packed(tmp_path / "made", tmp_path / "set.tgz", "tgz")
    script = (
        "import sys\nfrom pathlib import Path\nfrom cvsa_jax.data.sources.archives import unpack\n"
        "unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "set.tgz"), str(tmp_path / "into")]
    processes = [subprocess.Popen(arguments, env=os.environ | {"PYTHONPATH": os.getcwd()}) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert not list((tmp_path / "into").rglob("*.part"))
    image = f"images/{CUB_NAMES['1']}"
    assert (tmp_path / "into" / image).read_bytes() == (tmp_path / "made" / image).read_bytes()


def test_links_in_a_tar_are_files_and_dangling_ones_are_said(tmp_path, capsys):
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


def test_a_link_that_leads_outside_is_none(tmp_path, capsys):
    (tmp_path / "secret.txt").write_text("x")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "../secret.txt"
        archive.addfile(link)
    unpack(tmp_path / "set.tar", tmp_path / "into")
    assert not (tmp_path / "into" / "link.txt").exists() and "left out 1 links" in capsys.readouterr().out
