"""What tells one set of files from another: a hash of what they hold, which is read once and kept, or of when they were
last changed, where reading all of them is too dear."""

import contextlib
import fcntl
import hashlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cvsa_jax.data.sources.source import CONTENTS, fingerprint
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import cache_folder, write_atomically
from cvsa_jax.runtime.progress import Progress
from cvsa_jax.runtime.workers import in_threads

_CHUNK = 64  # files that a thread hashes at a time
_OTHERS = 2  # times as many files of other sets below one folder are kept
_LARGE = 2**24  # bytes, from which a file is not read at once
_SETTLED = 2 * 10**9  # ns after which a change would show in a file's times


def identity(kind: str, root: Path, names: Sequence[str], hashes: Sequence[str] | None = None, note: str = "") -> str:
    """The fingerprint of the files `names` below `root`: with the kind `contents` of what they hold, of which `hashes`
    are the `digests` where they are known, with `times` of their sizes and times of change. The order counts. `note`:
    what else makes the set another."""
    root = Path(os.path.abspath(root))
    paths = [os.path.join(root, name) for name in names]
    if kind == CONTENTS:
        told = digests(paths, root) if hashes is None else hashes
    else:
        told = [f"{size} {changed}" for size, changed, _ in _stamps(paths).tolist()]
    return f"{kind}-{fingerprint([*names, note], [*told, ''])}"


def digests(paths: Sequence[str | Path], root: Path | None = None) -> list[str]:
    """The SHA-256, in 32 hexadecimal digits, of what each file holds; "" of one that cannot be read.

    Those of files whose size and times (of change, and of the entry in its folder) are as before come from the user's
    cache; the others are read, by one process at a time. `root`: a folder above all, by which the cache is found; None:
    that of the first file.
    """
    if not paths:
        return []
    here = os.getcwd()
    # However it is spelled, a file has one row: `abspath` of each would take seconds for a million.
    paths = [path if path.startswith("/") else f"{here}/{path}" for path in map(os.fspath, paths)]
    stamps, now = _stamps(paths), time.time_ns()
    # One that was changed just now may be changed again without its times showing it.
    settled = stamps[:, 1:].max(1) < now - _SETTLED
    with _cache_of(os.path.abspath(os.path.dirname(paths[0]) if root is None else root)) as cache:
        known = _read(cache)
        hashes = _known(known, paths, stamps)
        todo = [i for i, digest in enumerate(hashes) if digest is None]
        if todo:
            _hash(paths, hashes, todo, lambda: _write(cache, known, paths, stamps, hashes, settled))
    return ["" if digest is None else digest for digest in hashes]


def _stamps(paths: Sequence[str | Path]) -> np.ndarray:
    """(n, 3) int64: bytes, and times of change of the content and of the entry in ns; -1 of what is not there."""
    stamps = np.full((len(paths), 3), -1, np.int64)
    for i, path in enumerate(paths):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            stamps[i] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return stamps


def _hash(paths: list[str], hashes: list[str | None], todo: list[int], keep) -> None:
    """Fills in what is to do; whatever ends it, `keep` is called, so that nothing is read twice."""

    def one(chunk: list[int]) -> list[str | None]:
        return [_digest(paths[i]) for i in chunk]

    chunks = [todo[k : k + _CHUNK] for k in range(0, len(todo), _CHUNK)]
    progress, done = Progress("hashing files, once", len(todo), unit="files"), 0
    try:
        for chunk, results in zip(chunks, in_threads(one, chunks, ahead=8), strict=True):
            for i, digest in zip(chunk, results, strict=True):
                hashes[i] = digest
            done += len(chunk)
            progress.update(done)
    finally:
        with contextlib.suppress(OSError, UserError):  # a cache, which may lie where nothing can be written
            keep()


def _digest(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _LARGE:
                return hashlib.file_digest(file, "sha256").hexdigest()[:32]
            return hashlib.sha256(file.read()).hexdigest()[:32]
    except OSError:
        return None  # whoever reads the image says why


def _known(known: tuple[list[str], np.ndarray, list[str]], paths: list[str], stamps: np.ndarray) -> list[str | None]:
    before, then, hashes = known
    if before[: len(paths)] == paths:  # as nearly always
        before, then, hashes = paths, then[: len(paths)], hashes[: len(paths)]
        same = (then == stamps).all(1)
        return [digest if kept else None for digest, kept in zip(hashes, same.tolist(), strict=True)]
    rows = {path: row for row, path in enumerate(before)}
    found = [rows.get(path, -1) for path in paths]
    return [
        hashes[row] if row >= 0 and (then[row] == stamp).all() else None
        for row, stamp in zip(found, stamps, strict=True)
    ]


@contextlib.contextmanager
def _cache_of(folder: str) -> Iterator[Path]:
    """The file that keeps the hashes of this folder's files; other processes that want it wait."""
    where = hashlib.sha256(folder.encode(errors="surrogateescape")).hexdigest()[:16]
    cache = cache_folder() / f"contents-{where}.npz"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a folder that cannot be written to, or without locks
            cache.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(open(cache.with_suffix(".lock"), "w")), fcntl.LOCK_EX)
        yield cache


def _read(cache: Path) -> tuple[list[str], np.ndarray, list[str]]:
    try:
        with np.load(io.BytesIO(cache.read_bytes()), allow_pickle=False) as arrays:
            paths = arrays["paths"].tobytes().decode(errors="surrogateescape").split("\0")
            hashes = arrays["digests"].astype("U32").tolist()
            stamps = arrays["stamps"]
        if len(paths) == len(hashes) == len(stamps):
            return paths, stamps, hashes
    except Exception:  # whatever a damaged file raises: it is made again
        pass
    return [], np.zeros((0, 3), np.int64), []


def _write(
    cache: Path,
    known: tuple[list[str], np.ndarray, list[str]],
    paths: list[str],
    stamps: np.ndarray,
    hashes: list[str | None],
    settled: np.ndarray,
) -> None:
    """With what is known of other files below the same folder, which another set or another split may want again."""
    asked, (before, then, digests_before) = set(paths), known
    others = [i for i, path in enumerate(before) if path not in asked][: _OTHERS * len(paths)]
    paths, hashes = [*paths, *(before[i] for i in others)], [*hashes, *(digests_before[i] for i in others)]
    stamps, settled = np.concatenate([stamps, then[others]]), np.concatenate([settled, np.ones(len(others), bool)])
    done = [i for i, digest in enumerate(hashes) if digest is not None and settled[i]]
    content = io.BytesIO()
    np.savez(
        content,
        paths=np.frombuffer("\0".join(paths[i] for i in done).encode(errors="surrogateescape"), np.uint8),
        stamps=stamps[done],
        digests=np.array([hashes[i] for i in done], "S32"),
    )
    write_atomically(cache, lambda file: file.write(content.getbuffer()))
