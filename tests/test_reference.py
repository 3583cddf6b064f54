"""The pages of docs/reference that are made from the code are those that the code makes now."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "make_reference.py"


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("make_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_pages_match_the_code():
    # In a process of its own: the commands' flags have the same names, and can be defined once in a process.
    check = [sys.executable, "-m", "docs.make_reference", "--check"]
    ended = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr


def test_config_keys_without_meaning_are_named(reference):
    text = (ROOT / "configs" / "common.py").read_text()
    assert reference.without_meaning(text) == []
    line = next(line for line in text.splitlines() if line.strip().startswith("config.views.group = "))
    added = text.replace(line, f"{line}\n    config.views.other = 1")
    assert reference.without_meaning(added) == ["pretrain: views.other"]
    lines = text.splitlines()
    bare = [*lines[: lines.index(line) - 1], *lines[lines.index(line) :]]  # without the comment above
    assert reference.without_meaning("\n".join(bare)) == ["pretrain: views.group"]


def test_shared_sections_are_found_in_each_mode(reference):
    keys = reference.keys_of((ROOT / "configs" / "common.py").read_text())
    assert keys["linear"]["eval.pooling"] == keys["pretrain"]["eval.pooling"] == reference.Key("_eval", "pooling")
    assert keys["saliency_unet"]["augment.colour.hue"] == keys["pretrain"]["augment.view2.hue"]
    assert keys["saliency_unet"]["checkpoint_steps"].owner == "_loop"  # which the mode changes
    assert "log_steps" not in keys["linear"]
