"""A home that is not there, and a project with a package of the name `configs`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cvsa_jax
from cvsa_jax.data import stored
from cvsa_jax.runtime import files
from cvsa_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
HELP = (sys.executable, "-m", "cvsa_jax.main", "--help")


def test_cache_folder_without_a_home_is_temporary(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where no home can be told
    folder = files.cache_folder()
    assert not str(folder).startswith("~") and str(os.getuid()) in str(folder)


@pytest.mark.parametrize("home", ["/nonexistent/home", "/dev/null", ""], ids=["missing", "no folder", "empty"])
def test_help_needs_no_home(home):
    environment = {key: value for key, value in os.environ.items() if key not in ("XDG_CACHE_HOME", "HOME")}
    ended = subprocess.run(HELP, cwd=ROOT, env=environment | {"HOME": home}, capture_output=True, text=True)
    assert "--workdir" in ended.stdout and "Traceback" not in ended.stderr


def test_unusable_cache_folder_is_one_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = cvsa_jax.load_source(cvsa_jax.load_config("configs/demo.py"))
    with pytest.raises(UserError, match=r"the cache folder .* cannot be made .*XDG_CACHE_HOME"):
        stored.stored_squares(source, source.split("train")[:2], 8)


def test_configs_package_of_another_project_is_left_alone(tmp_path, monkeypatch):
    other = tmp_path / "configs"
    other.mkdir()
    (other / "__init__.py").write_text("")
    (other / "folder.py").write_text("raise SystemExit('the wrong package')")
    (other / "sets.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "configs", raising=False)
    import configs as theirs

    assert Path(theirs.__file__).parent == other
    assert cvsa_jax.load_config(f"{ROOT}/configs/cub.py").data.kind == "cub"
    assert sys.modules["configs"] is theirs
    command = (sys.executable, "-m", "cvsa_jax.main", f"--config={ROOT}/configs/cub.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.stderr == "error: --workdir is missing, e.g. --workdir=runs/mine\n"
