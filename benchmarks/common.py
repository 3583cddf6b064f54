"""What the benchmarks share."""

import datetime
import importlib.metadata
import io
import json
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

HEIGHT, WIDTH, QUALITY = 500, 689, 90  # of `photographs`


def commit() -> str:
    """The commit that is measured, with `-dirty` where files differ from it, other than results."""

    def git(*command: str) -> str:
        return subprocess.run(("git", *command), capture_output=True, text=True, check=False).stdout.strip()

    measured = git("rev-parse", "--short=7", "HEAD") or "unknown"
    return measured + "-dirty" * bool(git("status", "--porcelain", "-uno", ":/", ":(exclude,top)benchmarks/results"))


def write_results(name: str, figures: dict) -> None:
    """benchmarks/results/<name>.json: the figures, with the day, commit, versions and machine that they belong to."""
    about = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "jax": importlib.metadata.version("jax"),
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, {_processor()}",
    }
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(about | figures, indent=2) + "\n")
    print(f"results: {path}")


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def synthetic_batch(batch_size: int, size: int) -> dict[str, np.ndarray]:
    """Random views and masks in the shapes that the input pipeline gives."""
    rng = np.random.default_rng(0)
    shapes = dict.fromkeys(("view1", "view2"), (size, size, 3)) | dict.fromkeys(
        ("mask1", "mask2"), (size // 4, size // 4)
    )
    batch = {name: rng.integers(0, 256, (batch_size, *shape), dtype=np.uint8) for name, shape in shapes.items()}
    places = np.arange(batch_size, dtype=np.uint32)
    return batch | {"position": np.stack([np.zeros_like(places), places], 1)}


def asked(worker: subprocess.Popen, task: dict) -> dict[str, float]:
    """What a process that answers tasks, both a line of JSON, answers to one."""
    worker.stdin.write(json.dumps(task) + "\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def photographs(count: int) -> list[bytes]:
    """JPEGs: pieces of one photograph at several scales."""
    photograph = Image.fromarray(data.chelsea())
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        side = rng.uniform(0.5, 1)
        w, h = side * photograph.width, side * photograph.height
        x, y = rng.uniform(0, photograph.width - w), rng.uniform(0, photograph.height - h)
        piece = photograph.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, (x, y, x + w, y + h))
        file = io.BytesIO()
        piece.save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return files
