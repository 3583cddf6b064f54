import contextlib
import dataclasses
import errno
import io
import os
import resource
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.small_store import SHARD, N, make, shards, source_of, watched

from cvsa_jax.runtime import files
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency import compute as compute_module
from cvsa_jax.saliency import store as store_module
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detector import Detection, Detector
from cvsa_jax.saliency.detectors.annotation import masks
from cvsa_jax.saliency.store import GRID, SaliencyStore

THIRD = 2 * SHARD  # first image of the third and last file

pytestmark = pytest.mark.usefixtures("small_shards")


def share(folder: Path, i: int, n: int, detector: Detector | None = None) -> dict | None:
    source = source_of()
    detector = detector or masks(source)
    return compute(source, detector, folder, threshold=0.5, on_bad_image="stop", shard=(i, n))


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the one that says how long it took."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "timing.json"}


def stats(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("shard-*")}


def numbered(batch_size: int) -> tuple[Detector, list[list[int]]]:
    """A detector that says which image it was given, and the batches it got."""
    batches = []

    def detect(images: list[np.ndarray]) -> list[Detection]:
        batches.append([int(image[0]) for image in images])
        return [Detection(np.full((GRID, GRID), image[0] / 100, np.float32), image[0] / 100) for image in images]

    return Detector("numbered", "prior", {}, lambda i, image: np.array([i]), detect, batch_size), batches


# Shares of several machines.


@pytest.mark.parametrize("order", [(1, 0), (3, 1, 0, 2)], ids=["two shares", "more shares than files"])
def test_shares_in_any_order_make_the_store_of_one_pass(tmp_path, order):
    whole = make(source_of(), tmp_path / "whole")
    folder, seen_by = tmp_path / "shared", {}
    for done, i in enumerate(order):
        before = stats(folder)
        detector, seen = watched(source_of())
        manifest = share(folder, i, len(order), detector)
        seen_by[i] = sorted(seen)
        last = done == len(order) - 1
        assert manifest == (whole if last else None)
        assert (folder / "manifest.json").exists() == last
        # What the others have made is as it was.
        after = stats(folder)
        assert before.items() <= after.items()
        assert after.keys() - before.keys() == {f"shard-{k:05d}.npy" for k in range(i, 3, len(order))}
    assert contents(folder) == contents(tmp_path / "whole")
    assert len(SaliencyStore(folder, source_of())) == N
    # Each has looked at its own images, once.
    n = len(order)
    assert seen_by == {i: [k for k in range(N) if k // SHARD % n == i] for i in range(n)}


def test_share_is_not_made_twice(tmp_path):
    share(tmp_path, 0, 2)
    before = contents(tmp_path)
    detector, seen = watched(source_of())
    assert share(tmp_path, 0, 2, detector) is None
    assert seen == []
    assert contents(tmp_path) == before
    # One pass over everything makes the rest.
    assert make(source_of(), tmp_path, detector)["images"] == N
    assert sorted(seen) == list(range(SHARD, THIRD))


def test_old_unfinished_files_are_removed_and_young_ones_kept(tmp_path):
    # The same pass may run in another shell, which renames its file in the next moment.
    old, young = (tmp_path / f"shard-00001.npy.{k}.part" for k in ("01234567", "89abcdef"))
    share(tmp_path, 0, 2)
    for unfinished in (old, young):
        unfinished.write_bytes(b"half")
    hours_ago = time.time() - compute_module.STALE - 10
    os.utime(old, (hours_ago, hours_ago))
    make(source_of(), tmp_path)
    assert [path.name for path in tmp_path.glob("*.part")] == [young.name]
    young.unlink()
    make(source_of(), tmp_path.with_name("whole"))
    assert contents(tmp_path) == contents(tmp_path.with_name("whole"))


def test_two_passes_at_once_make_the_same_store(tmp_path):
    # The second begins while the first is in its first file, and ends before it.
    source = source_of()

    def second(images):
        if not (tmp_path / "both" / "manifest.json").exists():
            make(source, tmp_path / "both")
        return images

    detector = masks(source)
    first = dataclasses.replace(detector, detect=lambda maps: detector.detect(second(maps)))
    make(source, tmp_path / "both", first)
    make(source, tmp_path / "alone")
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")
    assert not list((tmp_path / "both").glob("*.part"))


# Batches.


@pytest.mark.parametrize(
    "batch_size, bad, batches",
    [
        (32, (), [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
        (3, (), [[0, 1, 2], [3], [4, 5, 6], [7], [8, 9]]),
        (1, (5,), [[0], [1], [2], [3], [4], [6], [7], [8], [9]]),
        # A batch without a readable image is none.
        (2, (0, 1, 3, 6, 9), [[2], [4, 5], [7], [8]]),
        (4, (0, 5, 6, 8, 9), [[1, 2, 3], [4, 7]]),
    ],
    ids=["a file each", "parts of files", "one image", "batches without an image", "gaps"],
)
def test_batches_are_in_order_and_records_in_their_places(tmp_path, batch_size, bad, batches):
    source = source_of(bad=bad)
    detector, found = numbered(batch_size)
    manifest = make(source, tmp_path, detector, on_bad_image="skip")
    assert found == batches
    store = SaliencyStore(tmp_path, source)
    good = [i for i in range(N) if i not in bad]
    assert np.flatnonzero(store.usable).tolist() == good
    np.testing.assert_allclose(store.confidences, [0 if i in bad else i / 100 for i in range(N)])
    np.testing.assert_array_equal(store[np.arange(N)][:, 5, 7], [0 if i in bad else round(2.55 * i) for i in range(N)])
    assert manifest["unreadable"] == [f"image{i}.png" for i in bad]


def test_exactly_one_batch_is_prepared_while_the_detector_looks_at_another(tmp_path, monkeypatch):
    monkeypatch.setattr(compute_module, "SHARD_SIZE", N)
    monkeypatch.setattr(store_module, "SHARD_SIZE", N)
    begun, lock, seen = 0, threading.Lock(), []
    detector, _ = numbered(2)

    def prepare(i: int, image: np.ndarray) -> np.ndarray:
        nonlocal begun
        with lock:
            begun += 1
        return np.array([i])

    def detect(images: list[np.ndarray]) -> list[Detection]:
        expected = min(int(images[-1][0]) + 3, N)
        deadline = time.monotonic() + 60
        while begun < expected and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.03)  # for what should not begin
        seen.append((begun, expected))
        return detector.detect(images)

    make(source_of(), tmp_path, dataclasses.replace(detector, prepare=prepare, detect=detect))
    assert seen == [(4, 4), (6, 6), (8, 8), (10, 10), (10, 10)]


# Errors.


@pytest.mark.parametrize("step", ["prepare", "detect"])
def test_finished_files_are_kept_after_an_error(tmp_path, step):
    source = source_of()
    make(source, tmp_path / "whole")
    detector = masks(source)
    looked_at = []

    def prepare(i: int, image: np.ndarray) -> np.ndarray:
        looked_at.append(i)
        if step == "prepare" and i == THIRD + 1:
            raise RuntimeError("out of memory")
        return detector.prepare(i, image)

    def detect(images: list[np.ndarray]) -> list[Detection]:
        if step == "detect" and max(looked_at) >= THIRD:
            raise RuntimeError("out of memory")
        return detector.detect(images)

    folder = tmp_path / "stopped"
    with pytest.raises(RuntimeError, match="out of memory"):
        make(source, folder, dataclasses.replace(detector, prepare=prepare, detect=detect))
    before = stats(folder)
    assert sorted(before) == ["shard-00000.npy", "shard-00001.npy"]
    assert not (folder / "manifest.json").exists()
    going_on, seen = watched(source)
    make(source, folder, going_on)
    assert sorted(seen) == list(range(THIRD, N))
    assert before.items() <= stats(folder).items()
    assert contents(folder) == contents(tmp_path / "whole")


@contextlib.contextmanager
def failing_fsync(monkeypatch, folder: Path, number: int):
    """The kernel finds out when it writes back."""

    def fsync(descriptor: int):
        if list(folder.glob("shard-00002*.part")):
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        yield


@contextlib.contextmanager
def failing_write(monkeypatch, folder: Path, number: int):
    """The first write fails."""

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(number, os.strerror(number))

    def opened(path: Path, mode: str):
        return Full(path, mode) if "shard-00002" in path.name else path.open(mode)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", opened, raising=False)
        yield


@contextlib.contextmanager
def short_write(monkeypatch, folder: Path, number: int):
    """The kernel takes the header and a part of the records. The limit's error, EFBIG, plays the full disk's."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        patch.setattr(files, "errno", SimpleNamespace(ENOSPC=errno.EFBIG, EDQUOT=errno.EDQUOT))
        resource.setrlimit(resource.RLIMIT_FSIZE, (GRID * GRID + 1000, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "failing, number",
    [
        (failing_fsync, errno.ENOSPC),
        (failing_fsync, errno.EDQUOT),
        (failing_write, errno.ENOSPC),
        (short_write, 0),
    ],
    ids=["full at fsync", "quota at fsync", "full at write", "short write"],
)
def test_full_disk_is_reported_and_finished_files_are_kept(tmp_path, monkeypatch, failing, number):
    source = source_of()
    make(source, tmp_path / "whole")
    folder = tmp_path / "full"
    dying, _ = watched(source, dies_at=THIRD)
    with pytest.raises(KeyboardInterrupt):
        make(source, folder, dying)
    before = contents(folder)
    with (
        failing(monkeypatch, folder, number),
        pytest.raises(UserError, match=r"no space left to write .*shard-00002\.npy\. What is finished is kept"),
    ):
        make(source, folder)
    assert contents(folder) == before
    make(source, folder)
    assert contents(folder) == contents(tmp_path / "whole")


def test_other_disk_errors_are_raised_as_they_are(tmp_path, monkeypatch):
    with failing_fsync(monkeypatch, tmp_path, errno.EIO), pytest.raises(OSError, match="Input/output error"):
        make(source_of(), tmp_path)
    assert not list(tmp_path.glob("*.part"))
    assert sorted(shards(tmp_path)) == ["shard-00000.npy", "shard-00001.npy"]
