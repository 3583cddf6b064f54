"""Every command in README and docs is run here, in its order, on a small folder of images – or says why it is not."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.torch_files import torch_save, torch_weights

from cvsa_jax.data import sources
from cvsa_jax.data.sources import procedural

ROOT = Path(__file__).parents[1]
# Readers begin with README and the tutorials, whose runs the other pages use. docs/study has no commands, and the build
# of the site checks its links.
KINDS = ("tutorials", "how-to", "explanation", "reference", "measurements")
PAGES = [ROOT / "README.md", *(page for kind in KINDS for page in sorted((ROOT / "docs" / kind).rglob("*.md")))]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

# What a command begins with -> why it is not run.
NOT_RUN = {
    "make demo": "tests/runs/test_demo.py runs the demo in small",
    "make test": "is what runs this",
    "python -m cvsa_jax.saliency --config=configs/cub.py": "needs CUB-200-2011",
    "python -m cvsa_jax.data check --config=configs/cub.py": "needs CUB-200-2011",
    "python -m cvsa_jax.main --config=configs/cub": "needs CUB-200-2011",
    "tfds build": "needs the archives of ImageNet",
    "python -m cvsa_jax.main --config=configs/imagenet.py": "needs ImageNet",
    "python -m benchmarks.train_step": "measures a ResNet-50 for minutes",
}
# Config -> what makes a run of it short.
SMALL = {
    "folder.py": "batch_size=4 total_steps=2 optim.warmup_steps=1 model.width=4 log_steps=1 eval.batch_size=8",
    "folder_linear.py": "probe.total_epochs=2 probe.folds=1 eval.batch_size=8",
    "folder_finetune.py": "batch_size=4 total_steps=2 learning_rates=(0.1,) model.width=4 eval.batch_size=8",
    "saliency_unet.py": "batch_size=4 total_steps=2 optim.warmup_steps=1 size=32 model.channels=(8,8) "
    "with_procedural=False log_steps=1",
}


def commands_of(page: Path) -> list[str]:
    """The lines of a page's blocks of commands, continuation lines joined."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if not language for line in block.replace("\\\n", " ").splitlines()]
    starts = ("python ", "make ", "launch/", "sbatch ", "tfds ")
    return [line.split("  # ")[0].split("    #")[0].strip() for line in lines if line.startswith(starts)]


COMMANDS = [(page, command) for page in PAGES for command in commands_of(page)]
RUN = [(page, command) for page, command in COMMANDS if not command.startswith(tuple(NOT_RUN))]


def test_skipped_commands_all_occur_in_the_docs():
    commands = [command for _, command in COMMANDS]
    assert len(RUN) >= 8
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in commands), start


def test_readme_pictures_are_small():
    readme = (ROOT / "README.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", readme)
    assert len(pictures) >= 2 and sum((ROOT / path).stat().st_size for path in pictures) < 300_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    text = page.read_text()
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(#[^)\s]*)?\)", text):
        there = (page.parent / target) if target else page
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor[1:] in [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles], anchor


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder like the repository's, with images of two classes, a test split and masks."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    source = sources.load("procedural", "", procedural.Spec(0, 2, 6, 3, 32))
    for root in ("my_images", "with_masks"):
        rows = ["image,split,label"]
        for i, name in enumerate(source.names):
            file, label = f"{i:02d}.png", source.classes[source.labels[i]]
            path = folder / root / "images" / label / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read(i))
            mask = folder / root / "masks" / label / file
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source.mask(i)).save(mask)
            rows.append(f"{label}/{file},{name.split('/')[0]},{label}")
        (folder / root / "splits.csv").write_text("\n".join(rows) + "\n")
    # What others made: weights, features, images.
    torch_save(folder / "resnet50.pth", torch_weights(50, 4))
    sides = {"left": 0, "right": 1}
    nets = {f"module.{side}.{n}": a for side, seed in sides.items() for n, a in torch_weights(18, 4, seed=seed).items()}
    torch_save(folder / "FILE", {"state_dict": nets})
    names = [row.split(",")[0] for row in rows[1:]]
    np.savez(folder / "dinov2.npz", names=names, vectors=np.random.default_rng(0).normal(size=(len(names), 5)))
    shutil.copytree(folder / "my_images" / "images", folder / "new")
    Image.open(folder / "my_images" / "images" / names[0]).save(folder / "photo.jpg")
    return folder


def shortened(command: str) -> list[str]:
    """The command of this Python, with a budget of seconds."""
    _, *words = shlex.split(command)
    config = next((word for word in words if word.startswith("--config=")), "")
    if "cvsa_jax.main" in words or "cvsa_jax.evaluate" in words:
        name = config.removeprefix("--config=configs/").split(":")[0]
        words += [f"--config.{change}" for change in SMALL[name].split()]
    return [sys.executable, *words]


@pytest.mark.slow
def test_commands_of_readme_and_docs_run_in_order(folder, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XLA_FLAGS": ""}
    # The pages build on README and the tutorials, whose runs are theirs too; what makes something comes first.
    order = sorted(
        dict.fromkeys(command for _, command in RUN), key=lambda c: ("--detector=unet" in c, "benchmarks" in c)
    )
    for command in order:
        ended = subprocess.run(
            shortened(command), cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}{ended.stderr[-3000:]}"
        assert "Traceback" not in ended.stderr
