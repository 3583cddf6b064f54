"""The benchmarks run on small inputs, as their own texts show, except those that need PyTorch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "convolution": "--rounds=1",
    "device_views": "--batch=8 --depth=8 --stem=small --size=32 --images=32 --dtype=float32 --steps=1 --rounds=1",
    "evaluation": "--train=200 --test=300 --classes=10 --channels=64 --maps=1",
    "fingerprint": "--images=50 --bytes=100",
    "growth": "--galleries=1000 --queries=256 --batches=8 --sizes=32 --devices=2 --rounds=1",
    "input_pipeline": "--images=8 --seconds=0.2 --rounds=1",
    "main_road": "--scale=tiny",
    "memory": "--images=200",
    "peers_rbd": "--images=2 --rounds=1",
    "train_step": "--batch_sizes=8 --depth=8 --stem=small --size=32 --rounds=1 --steps=1 --dtype=float32",
}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SMALL)
def test_benchmark_runs_and_writes_its_figures(name, tmp_path):
    for package in ("benchmarks", "configs"):  # so that no figure of a real measurement is written over
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("results", "__pycache__"))
    plain = {"XLA_FLAGS": "", "PYTHONPATH": f"{tmp_path}:{ROOT}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", f"benchmarks.{name}", *SMALL[name].split()]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "benchmarks" / "results" / f"{name}.json").read_text())
    assert figures["machine"] and len(figures) > 6
