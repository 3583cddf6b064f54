import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_go_one_way():
    # The contracts are in pyproject.toml.
    checked = subprocess.run(
        (Path(sys.executable).parent / "lint-imports", "--no-cache"), cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


def test_importing_the_package_imports_neither_jax_nor_tensorflow():
    code = "import sys, cvsa_jax; print({'jax', 'tensorflow', 'numpy'} & set(sys.modules))"
    assert subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"
