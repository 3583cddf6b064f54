"""What it costs to recognise a set by what its images hold: the first time, later, and by times of change alone.

    python -m benchmarks.fingerprint                           # and to try it:
    python -m benchmarks.fingerprint --images=1000 --bytes=1000

The script has just written the files, so they are in the page cache. On a disk that is slower than the hashing, the
first time takes as long as reading all. Writes benchmarks/results/fingerprint.json.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.common import write_results
from cvsa_jax.data.sources import contents
from cvsa_jax.data.sources.source import CONTENTS, TIMES

FOLDER = 1000  # files


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--images", type=int, default=1_000_000)
    asked.add_argument("--bytes", type=int, default=1000, help="of each")
    given = asked.parse_args()
    place = Path(tempfile.mkdtemp(prefix="cvsa_jax-"))
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    try:
        names = write_files(place / "images", given.images, given.bytes)
        time.sleep(3)  # younger files are not kept
        figures = {}
        for title, kind in (("first", CONTENTS), ("later", CONTENTS), ("again", CONTENTS), ("times", TIMES)):
            began = time.monotonic()
            contents.identity(kind, place / "images", names)
            figures[f"{title}_seconds"] = time.monotonic() - began
        (kept,) = (place / "cache" / "cvsa_jax").glob("contents-*.npz")
        figures["cache_mb"] = kept.stat().st_size / 1e6
    finally:
        shutil.rmtree(place, ignore_errors=True)
    figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    for name, value in figures.items():
        print(f"{name:16} {value:8.2f}")
    write_results("fingerprint", {"images": given.images, "bytes": given.bytes} | figures)


def write_files(root: Path, count: int, size: int) -> list[str]:
    """So many files of random bytes, in folders of FOLDER; their names."""
    names = [f"{k // FOLDER:05d}/{k % FOLDER:04d}.jpg" for k in range(count)]
    for k, name in enumerate(names):
        if k % FOLDER == 0:
            (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(os.urandom(size))
    return names


if __name__ == "__main__":
    main()
