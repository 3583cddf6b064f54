"""The package as others install it: a wheel, in an environment and a folder that know nothing of the checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from cvsa_jax.data import sources
from cvsa_jax.data.sources import procedural

ROOT = Path(__file__).parents[1]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
TAKE_NO_CONFIG = {"cvsa-embed", "cvsa-search", "cvsa-weights", "cvsa-demo"}
DATA = "--config.data.root=my_images"
TINY = "batch_size=4 total_steps=2 optim.warmup_steps=1 model.width=4 log_steps=1 eval.batch_size=8"
TINY_PROBE = "probe.total_epochs=2 probe.folds=1 eval.batch_size=8"
QUICK_START = {
    f"cvsa-saliency --config=folder:small {DATA} --detector=rbd": "",
    f"cvsa-train --config=folder:small {DATA} --config.saliency.detector=rbd --workdir=runs/cvsa": TINY,
    f"cvsa-evaluate --config=configs/folder_linear.py {DATA} --runs=runs/cvsa": TINY_PROBE,
    "cvsa-train --config=runs/cvsa/config.json --workdir=runs/again": "total_steps=3",
}


class Installed:
    """An environment with the wheel, and an empty folder."""

    def __init__(self, place: Path):
        self.folder, self.bin = place / "empty", place / "env" / "bin"
        self.folder.mkdir()
        # A build would also pack what an earlier one left in the checkout.
        for name in ("cvsa_jax", "configs"):
            shutil.copytree(ROOT / name, place / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, place / "source")
        venv.create(place / "env", with_pip=True)
        # The dependencies are those of this environment, so that nothing is downloaded.
        (site_packages,) = (place / "env").glob("lib/python*/site-packages")
        there = [path for path in sys.path if path.endswith("site-packages")]
        (site_packages / "dependencies.pth").write_text("\n".join(there) + "\n")
        self.environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
        build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
        subprocess.run([sys.executable, "-c", build, place], cwd=place / "source", check=True)
        (wheel,) = place.glob("*.whl")
        self.run("pip", "install", "--no-deps", "--ignore-installed", str(wheel))

    def run(self, command: str, *arguments: str, code: int = 0) -> str:
        """What a command of the environment prints in the empty folder."""
        ended = subprocess.run(
            [self.bin / command, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert ended.returncode == code and "Traceback" not in ended.stderr, f"{command}\n{ended.stdout}{ended.stderr}"
        return ended.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_wheel_contains_only_the_package_and_the_configs(installed):
    (wheel,) = installed.folder.parent.glob("*.whl")
    listed = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True)
    held = {line.split()[0] for line in listed.stdout.splitlines()[1:]}
    held = {name for name in held if ".dist-info/" not in name}
    package = {str(file.relative_to(ROOT)) for file in (ROOT / "cvsa_jax").rglob("*.py")}
    assert held == package | {f"cvsa_jax/configs/{file.name}" for file in (ROOT / "configs").glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_command_prints_help(installed, command):
    explained = installed.run(command, "--help", code=1)  # as absl ends
    assert explained.startswith(("`python -m cvsa_jax.", "`make demo`"))
    assert ("--config=folder:small" in explained) == (command not in TAKE_NO_CONFIG)
    assert "--out" in explained or "--workdir" in explained or "--detector" in explained


@pytest.mark.slow
def test_quick_start_runs_in_an_empty_folder(installed):
    source = sources.load("procedural", "", procedural.Spec(0, 2, 8, 4, 32))
    for i, name in enumerate(source.names):
        path = installed.folder / "my_images" / name.split("/")[0] / source.classes[source.labels[i]] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read(i))
    where = installed.run("python", "-c", "import cvsa_jax; print(cvsa_jax.__file__)")
    assert Path(where.strip()).is_relative_to(installed.folder.parent / "env")
    assert len(list(installed.folder.rglob("*.png"))) == 24
    for command, changes in QUICK_START.items():
        installed.run(*command.split(), *(f"--config.{change}" for change in changes.split()))
    for run in ("cvsa", "again"):
        assert (installed.folder / "runs" / run / "report" / "index.html").is_file()
    assert "linear_top1" in (installed.folder / "runs/evaluation/report/results.json").read_text()
    loaded = "import cvsa_jax; print(cvsa_jax.load_config('folder:small', {'seed': 5}).seed)"
    assert installed.run("python", "-c", loaded) == "5\n"
