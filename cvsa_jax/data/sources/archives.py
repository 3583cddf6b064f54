"""Official sets as they are got: a folder, or archives, which are unpacked once beside themselves."""

import dataclasses
import fcntl
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import read_json, write_json_atomically
from cvsa_jax.runtime.progress import Progress

UNPACKED = "unpacked_by_cvsa_jax"
ENDINGS = (".tar", ".tar.gz", ".tgz", ".zip", ".tar.bz2")


@dataclasses.dataclass(frozen=True)
class Official:
    """What is published of a set: its `title`, the `page` to get it from, its `archives` (name, and bytes where they
    are known), the folder `top` in which they unpack, `classes`, and images of each split in `counts`."""

    title: str
    page: str
    archives: tuple[tuple[str, int | None], ...]
    top: str
    classes: int
    counts: dict[str, int]

    @property
    def hint(self) -> str:
        """What to get, from where, and where to put it."""
        files = ", ".join(f"{name} ({size / 1e6:,.0f} MB)" if size else name for name, size in self.archives)
        return (
            f"{self.title} is at {self.page}: get {files} and give the folder in which they lie, unpacked or not, as "
            f"--config.data.root=data/{self.top or 'set'}"
        )


def located(root: str, official: Official, *markers: str) -> Path:
    """The folder with the set's files: the first of `root`, its sub-folder `top`, or what the archives there unpack to
    that holds all `markers`.

    Raises:
        UserError: there is none; it says what to get.
    """
    given = Path(root).expanduser()
    if not root or not given.exists():
        shown = f"{root} does not exist" if root else "config.data.root is not set"
        raise UserError(f"{shown}. {official.hint}")
    folder, archives = given, []
    if given.is_file() and given.name.lower().endswith(ENDINGS):
        folder, archives = given.parent, [given]
    candidates = [folder, folder / official.top, folder / UNPACKED, folder / UNPACKED / official.top]
    if not archives:
        if (found := _with(candidates[:2], markers)) is not None:
            return found
        archives = [folder / name for name, _ in official.archives if (folder / name).is_file()]
    for archive in archives:
        if archive.name.lower().endswith(ENDINGS):
            unpack(archive, folder / UNPACKED)
    for table in archives:  # what lies beside the archives and belongs among their files
        there = folder / UNPACKED / table.name
        if (folder / UNPACKED).is_dir() and not table.name.lower().endswith(ENDINGS) and _differs(table, there):
            shutil.copy2(table, half := there.with_name(f"{table.name}.{os.getpid()}.part"))
            os.replace(half, there)
    if (found := _with(candidates, markers)) is not None:
        return found
    absent = [marker for marker in markers if not any((place / marker).exists() for place in candidates)]
    raise UserError(f"{folder} holds no {official.title}: no {absent[0] if absent else markers[0]}. {official.hint}")


def _differs(file: Path, copy: Path) -> bool:
    """By size and time of change, which a copy keeps."""
    if not copy.is_file():
        return True
    one, other = file.stat(), copy.stat()
    return (one.st_size, one.st_mtime_ns) != (other.st_size, other.st_mtime_ns)


def unpack(archive: Path, into: Path) -> None:
    """Unpacks a tar or zip archive, or goes on where it was stopped, unless it was exchanged meanwhile: then files of
    the right size are left as they are.

    Raises:
        UserError: the archive is damaged or cut off, names files outside of `into`, or the disk is full.
    """
    status = archive.stat()
    stamp = {"bytes": status.st_size, "time": status.st_mtime_ns}
    done = into / f"{archive.name}.done"
    if done.is_file() and read_json(done) == stamp:
        return
    try:
        into.mkdir(parents=True, exist_ok=True)
        with open(into / ".unpacking", "w") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX)  # of several processes one unpacks, and the others wait
            if not (done.is_file() and read_json(done) == stamp):
                begun = into / f"{archive.name}.begun"
                goes_on = begun.is_file() and read_json(begun) == stamp
                write_json_atomically(begun, stamp)
                done.unlink(missing_ok=True)
                _unpack(archive, into, status.st_size, goes_on)
                write_json_atomically(done, stamp)
    except OSError as error:
        raise UserError(
            f"cannot unpack {archive} into {into}: {error}. Unpack it where you can write, and give that folder"
        ) from None


def _unpack(archive: Path, into: Path, size_of_archive: int, goes_on: bool) -> None:
    progress, count, links = Progress(f"unpack {archive.name}", size_of_archive, unit="bytes"), 0, []
    try:
        for name, size, read, place in _members(archive, links):
            target = _inside(archive, into, name)
            if not (goes_on and target.is_file() and target.stat().st_size == size):
                target.parent.mkdir(parents=True, exist_ok=True)
                half = target.with_name(f"{target.name}.{os.getpid()}.part")
                with read() as source, open(half, "wb") as file:
                    shutil.copyfileobj(source, file)
                os.replace(half, target)
            count += 1
            progress.update(min(place, size_of_archive - 1))
        _link(archive, into, links)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"cannot unpack {archive} after {count} files: {error}. Get it again, or make room, and give the same "
            "command again"
        ) from None
    progress.update(size_of_archive)


def _inside(archive: Path, into: Path, name: str) -> Path:
    target = (into / name).resolve()
    if not target.is_relative_to(into.resolve()):
        raise UserError(f"{archive} names a file outside of its folder, {name!r}: do not trust it")
    return target


def _link(archive: Path, into: Path, links: list[tuple[str, str]]) -> None:
    """Makes the links of a tar, name and what it is of, copies of the files they are of; says which are of none."""
    dangling, before = dict(links), None
    while dangling and len(dangling) != before:  # a link may be of a link
        before = len(dangling)
        for name, origin in list(dangling.items()):
            there = into / origin
            if there.resolve().is_relative_to(into.resolve()) and there.is_file():
                target = _inside(archive, into, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(there, half := target.with_name(f"{target.name}.{os.getpid()}.part"))
                os.replace(half, target)
                del dangling[name]
    if dangling:
        print(f"{archive}: left out {len(dangling)} links to what is not a file in it: {some(dangling)}")


def product(folder: Path, name: str, archive: str) -> Path | None:
    """The folder `name` of what a set offers besides, near the set's folder or in an archive there; None where there
    is neither."""
    near = (folder, folder.parent, folder.parent.parent)
    for place in (*near, *(place / UNPACKED for place in near)):
        if (place / name).is_dir():
            return place / name
    for place in near:
        if (place / archive).is_file():
            unpack(place / archive, place / UNPACKED)
            return place / UNPACKED / name
    return None


def _members(archive: Path, links: list[tuple[str, str]]) -> Iterator[tuple[str, int, Callable[[], IO[bytes]], int]]:
    """(name, bytes, opens it, place in the archive) of each file. Hard and soft links, name and what it is of below the
    archive's root, go to `links`; devices are nothing."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, lambda info=info: opened.open(info), info.header_offset
        return
    with open(archive, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as opened:
        for info in opened:
            if info.islnk():
                links.append((info.name, info.linkname))
            elif info.issym():
                links.append((info.name, os.path.normpath(os.path.join(os.path.dirname(info.name), info.linkname))))
            elif info.isfile():
                yield info.name, info.size, lambda info=info: opened.extractfile(info), raw.tell()


def _with(folders: list[Path], markers: tuple[str, ...]) -> Path | None:
    return next((folder for folder in folders if all((folder / marker).exists() for marker in markers)), None)


def say_counts(official: Official, classes: int, splits: dict[str, int]) -> None:
    """Prints where a set is not as published: a copy that lacks images, or a subset."""
    here = {"classes": classes} | splits
    published = {"classes": official.classes} | official.counts
    if differing := [f"{name} {here.get(name, 0):,} for {n:,}" for name, n in published.items() if here.get(name) != n]:
        print(f"this copy of {official.title} is not as published: {', '.join(differing)}")
