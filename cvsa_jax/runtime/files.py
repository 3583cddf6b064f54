"""Where files lie, on a disk or in a bucket, and how they are never half-written: a command killed at any moment leaves
the old file or the new one."""

import atexit
import contextlib
import errno
import functools
import io
import json
import math
import os
import shutil
import tempfile
import threading
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from etils import epath

from cvsa_jax.runtime.errors import UserError

# On a disk, or in a bucket, which is reached through TensorFlow's file systems.
AnyPath: TypeAlias = Path | epath.Path
_READING = threading.Lock()


def as_path(location: str | AnyPath) -> AnyPath:
    """A path on a disk, `~` being home, or of `gs://bucket/…` one in a bucket."""
    return epath.Path(location) if "://" in str(location) else Path(location).expanduser()


def absolute(location: str | AnyPath) -> AnyPath:
    """The same place, whatever folder a later command is started in."""
    path = as_path(location)
    return path.absolute() if is_local(path) else path


def as_text(name: str) -> str:
    """A file's name, which need not be text, as text."""
    return name.encode("utf-8", "backslashreplace").decode()


def cache_folder() -> Path:
    """Of this user, for what can be made again; among the temporary files where the user has no home."""
    folder = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if folder.startswith("~"):
        folder = os.path.join(tempfile.gettempdir(), f"cache-{os.getuid()}")
    return Path(folder) / "cvsa_jax"


def is_local(path: AnyPath) -> bool:
    """True of a path on a disk."""
    return isinstance(path, Path)


def check_room(folder: Path, needed: int, what: str, advice: str) -> None:
    """UserError, with this advice, where the disk of a folder has fewer bytes free than what is to be written."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder}: {what} need {needed:,} bytes, and {free:,} are free there: {advice}")


class LocalCopy:
    """A folder without sub-folders in reach of programs that need a disk: itself, or of one in a bucket a copy, which
    goes with this object."""

    def __init__(self, folder: AnyPath):
        if is_local(folder):
            self.path = folder
            return
        self.path = Path(tempfile.mkdtemp(prefix="cvsa_jax-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        for file in folder.iterdir():
            if not file.is_dir():
                (self.path / file.name).write_bytes(file.read_bytes())


def on_disk(path: AnyPath) -> Path:
    """A file in reach of programs that need a disk: itself, or of one in a bucket a copy, which goes with the
    process."""
    if is_local(path):
        return path
    return _copied(str(path))


@functools.lru_cache
def _copied(location: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cvsa_jax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = folder / location.rpartition("/")[2]
    with epath.Path(location).open("rb") as source, open(copy, "wb") as target:
        shutil.copyfileobj(source, target)
    return copy


def output_file(flag: str, value: str, *kinds: str) -> Path:
    """The file that a flag names, below folders that are there; UserError where it cannot be one of these kinds."""
    if "://" in value:
        raise UserError(f"{flag}={value}: this is written to a disk; copy it to the bucket afterwards")
    path = Path(value).expanduser()
    if path.suffix not in kinds or value.endswith("/") or path.is_dir():
        raise UserError(f"{flag}={value} must be a file, and end with {' or '.join(kinds)}")
    output_folder(flag, path.parent)
    return path


def output_folder(flag: str, folder: AnyPath) -> None:
    """Makes the folder that a flag names; UserError where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}: the folder {folder} cannot be made ({error.strerror})") from None
    if is_local(folder) and not os.access(folder, os.W_OK):
        raise UserError(f"{flag}: the folder {folder} cannot be written to")


def report_folder(flag: str, folder: AnyPath) -> None:
    """Makes the sub-folder `report` of the folder that a flag names, for a page that is not a run's own; UserError
    where that cannot be, or where the folder is a run's, whose page this one would overwrite."""
    if not folder.is_file() and any((folder / name).exists() for name in ("config.json", "ckpt")):
        raise UserError(f"{flag}: {folder} is the workdir of a run, whose report would be overwritten: name another")
    output_folder(flag, folder / "report")


def write_atomically(path: AnyPath, write) -> None:
    """Calls `write(file)` on a temporary file beside `path` and renames it; of two that write the same file the later
    one wins. An object in a bucket appears when it is whole.

    Raises:
        UserError: the disk is full.
    """
    if not is_local(path):
        written = io.BytesIO()
        write(written)
        path.write_bytes(written.getvalue())
        return
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no space left to write {path}. What is finished is kept: make room and give the same command again"
        ) from None


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place when what is done inside is done, and is gone otherwise. Who
    has mapped a file of the old one keeps it. UserError where the disk does not take it."""
    half = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
    try:
        yield half
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(half, folder)
    except OSError as error:
        raise UserError(f"decoded images cannot be written to {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(half, ignore_errors=True)


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """What `np.save` wrote, in memory or mapped from disk; raises what `np.load` raises. For threads: NumPy reads a
    file's header with Python's parser, of which two at once can raise SystemError (CPython 3.11, issue 106905)."""
    with _READING:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)


def write_text_atomically(path: AnyPath, text: str) -> None:
    """`text` as UTF-8; names of files that are none are written as the disk has them."""
    write_atomically(path, lambda file: file.write(text.encode(errors="surrogateescape")))


def read_json(path: AnyPath) -> dict:
    """What `write_json_atomically` wrote; UserError where the file is damaged."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        advice = "restore it, or delete what it belongs to and make that anew"
        raise UserError(f"{path} is damaged ({error}): {advice}") from None
    return content


def write_json_atomically(path: AnyPath, content: dict) -> None:
    """`content` as JSON, in a folder that is made where it is not there. Numbers that are not finite, which JSON does
    not know, are null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    """The same with None for numbers that are not finite."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
