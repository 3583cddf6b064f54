"""One pass of a detector over a data set into a store. Resumable: finished shards are kept."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cvsa_jax.data.pipeline import problem, unreadable_error
from cvsa_jax.data.sources import Source
from cvsa_jax.errors import UserError
from cvsa_jax.monitor import Progress
from cvsa_jax.saliency.detectors import Detector
from cvsa_jax.saliency.store import RECORD, SHARD_SIZE, VERSION, make_record, shard_paths, write_atomically

BLANK, FULL = 0.01, 0.95  # shares of the image at the threshold below and above which a map says nothing


def compute(source: Source, detector: Detector, folder: Path, *, threshold: float, on_bad_image: str) -> dict:
    """Makes the store and returns its manifest; a finished store of the same data and detector is only read.

    Raises:
        UserError: an image cannot be decoded and `on_bad_image` is `stop` (after the whole pass, so that all are
            named; the manifest is not written), or the folder holds another store.
    """
    identity = {
        "version": VERSION,
        "detector": detector.name,
        "settings": detector.settings | {"threshold": threshold},
        "supervision": detector.supervision,
        "source": source.name,
        "fingerprint": source.fingerprint,
        "images": len(source),
    }
    _claim(folder, identity, source)
    if (folder / "manifest.json").is_file():
        return json.loads((folder / "manifest.json").read_text())
    problems: dict[str, str] = {}
    started = time.monotonic()
    progress = Progress("saliency", len(source))

    def record(i: int) -> tuple[np.ndarray, str | None]:
        reason = problem(source, i)
        if reason:
            return np.zeros((), RECORD), reason
        saliency = detector.detect(i)
        return make_record(saliency, float(saliency.max()), threshold), None

    with ThreadPoolExecutor() as pool:
        for k, path in enumerate(shard_paths(folder, len(source))):
            if path.exists():
                continue
            members = range(k * SHARD_SIZE, min((k + 1) * SHARD_SIZE, len(source)))
            rows, bad = [], {}
            for i, (row, reason) in zip(members, pool.map(record, members), strict=True):
                rows.append(row)
                if reason:
                    bad[source.names[i]] = reason
                progress.update(i + 1)
            problems |= bad
            if not bad or on_bad_image == "skip":
                write_atomically(path, lambda file, rows=rows: np.save(file, np.stack(rows)))
    if problems and on_bad_image == "stop":
        raise unreadable_error(source, problems)
    shards = [np.load(p, mmap_mode="r") for p in shard_paths(folder, len(source))]
    usable, areas = (np.concatenate([s[field] for s in shards]) for field in ("usable", "area"))
    manifest = identity | {
        "unreadable": [source.names[i] for i in np.flatnonzero(~usable)],
        "blank": int((areas[usable] < BLANK).sum()),
        "full": int((areas[usable] > FULL).sum()),
        "fallback": int((areas[usable] == 0).sum()),
        "mean_area": float(areas[usable].mean()) if usable.any() else 0.0,
        "ms_per_image": 1000 * (time.monotonic() - started) / max(len(source), 1),
    }
    text = json.dumps(manifest, indent=2) + "\n"
    write_atomically(folder / "manifest.json", lambda file: file.write(text.encode()))
    return manifest


def _claim(folder: Path, identity: dict, source: Source) -> None:
    """Makes the folder this pass's own, or raises UserError where it holds something else's maps."""
    claim = folder / "identity.json"
    if claim.is_file():
        before = json.loads(claim.read_text())
        if before != identity:
            differing = [f"{k}: {before.get(k)} there, {v} now" for k, v in identity.items() if before.get(k) != v]
            raise UserError(
                f"{folder} holds another saliency store ({'; '.join(differing)}). Delete it, or choose another folder "
                "with --config.saliency.store"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    names = "".join(f"{name}\n" for name in source.names)
    write_atomically(folder / "names.txt", lambda file: file.write(names.encode()))
    text = json.dumps(identity, indent=2) + "\n"
    write_atomically(claim, lambda file: file.write(text.encode()))
