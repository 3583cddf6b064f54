"""One pass of a detector over a data set into a store: resumable, and divisible over machines."""

import contextlib
import io
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cvsa_jax.data.decode import DECODER, Unreadable
from cvsa_jax.data.reading import load_image, unreadable_error
from cvsa_jax.data.sources import Source
from cvsa_jax.runtime import formats
from cvsa_jax.runtime.errors import Interrupted, UserError
from cvsa_jax.runtime.files import (
    AnyPath,
    is_local,
    load_array,
    read_json,
    write_atomically,
    write_json_atomically,
    write_text_atomically,
)
from cvsa_jax.runtime.progress import Progress
from cvsa_jax.saliency.detector import Detection, Detector
from cvsa_jax.saliency.store import (
    IDENTITY,
    MANIFEST,
    RECORD,
    REMAKE,
    SHARD_SIZE,
    make_record,
    read_field,
    shard_paths,
)

BLANK, FULL = 0.01, 0.95  # shares of the image at the threshold below and above which a map says nothing
TIMING = "timing.json"
BEGUN = ".begun"  # ending of the records of a file that is not complete
KEEP_SECONDS = 60.0  # after which they are written again
STALE = 3600  # seconds after which a file that is not finished belongs to nobody; one is written in less than one


def compute(
    source: Source,
    detector: Detector,
    folder: AnyPath,
    *,
    threshold: float,
    on_bad_image: str,
    shard: tuple[int, int] = (0, 1),
) -> dict | None:
    """Makes the store, or the files `i`, `i + n`, … of it where `shard` is (i, n), and returns its manifest; None
    while files of other shards are missing. What is finished is not made again.

    Raises:
        UserError: the folder is in a bucket, an image cannot be decoded and `on_bad_image` is `stop` (after the whole
            pass, so that all are named; the files without bad images are kept), the detector cannot go on, the disk is
            full, or the folder holds another store.
    """
    if not is_local(folder):
        raise UserError(f"the store {folder} must be made on a disk: then copy it there (gcloud storage cp -r)")
    identity = {
        formats.KEY: formats.STORE,
        "decoder": DECODER,
        "detector": detector.name,
        "settings": detector.settings | {"threshold": threshold},
        "supervision": detector.supervision,
        "source": source.name,
        "fingerprint": source.fingerprint,
        "images": len(source),
    }
    _claim(folder, identity, source)
    if (folder / MANIFEST).is_file():
        return read_json(folder / MANIFEST)
    _remove_unfinished(folder)
    paths = shard_paths(folder, len(source))
    missing = [k for k in range(shard[0], len(paths), shard[1]) if not paths[k].exists()]
    members = {k: range(k * SHARD_SIZE, min((k + 1) * SHARD_SIZE, len(source))) for k in missing}
    problems, started, seen = {}, time.monotonic(), itertools.count(1)
    begun = {k: _begun(paths[k], len(members[k])) for k in missing}
    total = sum(len(members[k]) - len(begun[k]) for k in missing)
    progress = Progress("saliency", total)
    if total:
        progress.update(0)  # images come in bursts, so the clock starts before the first
    with ThreadPoolExecutor() as pool:
        for k in missing:
            rows, bad, saved, kept = list(begun[k]), {}, time.monotonic(), paths[k].with_suffix(BEGUN)
            whole = len(rows)  # records before the first image that cannot be read
            try:
                for i, result in _detections(source, detector, members[k][len(rows) :], pool):
                    if isinstance(result, Unreadable):
                        bad[source.names[i]] = str(result)
                        rows.append(np.zeros((), RECORD))
                    else:
                        rows.append(make_record(result.saliency, result.confidence, threshold))
                    whole += not bad
                    progress.update(next(seen))
                    if time.monotonic() - saved > KEEP_SECONDS:
                        _write(rows[:whole], kept)
                        saved = time.monotonic()
            except Interrupted:
                with contextlib.suppress(OSError, UserError):  # the command was asked to end, with its code
                    _write(rows[:whole], kept)
                raise
            problems |= bad
            if not bad or on_bad_image == "skip":
                _write(rows, paths[k])
                kept.unlink(missing_ok=True)
    if problems and on_bad_image == "stop":
        raise unreadable_error(source, problems)
    if total:
        timing = {"images": total, "seconds": (seconds := time.monotonic() - started)}
        write_json_atomically(folder / TIMING, timing | {"ms_per_image": 1000 * seconds / total})
    return finish_store(source, folder)


def _write(rows: list[np.void | np.ndarray], path: Path) -> None:
    # NumPy writes to a file past Python, and then does not say that the disk is full.
    encoded = io.BytesIO()
    np.save(encoded, np.array(rows, RECORD))
    write_atomically(path, lambda file: file.write(encoded.getbuffer()))


def _begun(path: Path, most: int) -> np.ndarray:
    """The first records of a file that an interrupted pass had begun."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        rows = load_array(path.with_suffix(BEGUN))
        if rows.dtype == RECORD and len(rows) <= most:
            return rows
    return np.zeros(0, RECORD)


def finish_store(source: Source, folder: Path) -> dict | None:
    """Writes the manifest of a store whose files are all there, and returns it; None while some are missing."""
    paths = shard_paths(folder, len(source))
    if not all(path.exists() for path in paths):
        return None
    for path in folder.glob(f"*{BEGUN}"):  # of another pass, which was slower
        path.unlink(missing_ok=True)
    manifest = read_json(folder / IDENTITY) | _counts(source, paths)
    write_json_atomically(folder / MANIFEST, manifest)
    return manifest


def _remove_unfinished(folder: Path) -> None:
    """Removes what killed passes had begun to write; what is young may be another process's that goes on."""
    for path in folder.glob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def _detections(
    source: Source, detector: Detector, members: range, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, Detection | Unreadable]]:
    """Each image's detection, or why there is none. The next batch is decoded while the detector looks at one."""

    def prepare(i: int) -> np.ndarray | Unreadable:
        try:
            return detector.prepare(i, load_image(source, i))
        except Unreadable as problem:
            return problem

    if not members:
        return
    batches = [members[k : k + detector.batch_size] for k in range(0, len(members), detector.batch_size)]
    ahead = pool.map(prepare, batches[0])
    for batch, following in zip(batches, [*batches[1:], range(0)], strict=True):
        prepared, ahead = list(ahead), pool.map(prepare, following)
        images = [p for p in prepared if not isinstance(p, Unreadable)]
        detections = iter(detector.detect(images) if images else [])
        for i, p in zip(batch, prepared, strict=True):
            yield i, p if isinstance(p, Unreadable) else next(detections)


def _counts(source: Source, paths: list[Path]) -> dict:
    """What the manifest says of the maps."""
    usable, areas = (np.concatenate(read_field(paths, name)) for name in ("usable", "area"))
    return {
        "unreadable": [source.names[i] for i in np.flatnonzero(~usable)],
        "blank": int((areas[usable] < BLANK).sum()),
        "full": int((areas[usable] > FULL).sum()),
        "fallback": int((areas[usable] == 0).sum()),
        "mean_area": float(areas[usable].mean()) if usable.any() else 0.0,
    }


def _claim(folder: Path, identity: dict, source: Source) -> None:
    """Makes the folder this pass's own, or raises UserError where it holds something else's maps."""
    claim = folder / IDENTITY
    if claim.is_file():
        before = read_json(claim)
        formats.check(f"the saliency store {folder}", before, formats.STORE, REMAKE)
        there, now = _flat(before), _flat(identity)
        if keys := [k for k in {**now, **there} if there.get(k) != now.get(k)]:
            differing = [f"{k}: {there.get(k, 'nothing')} there, {now.get(k, 'nothing')} now" for k in keys]
            raise UserError(
                f"{folder} holds another saliency store ({'; '.join(differing)}). Delete it, or choose another folder "
                "with --config.saliency.store"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    names = "".join(f"{name}\n" for name in source.names)
    write_text_atomically(folder / "names.txt", names)
    write_json_atomically(claim, identity)


def _flat(identity: dict) -> dict:
    settings = {f"settings.{name}": value for name, value in identity["settings"].items()}
    return {name: value for name, value in identity.items() if name != "settings"} | settings
