import os
import sys
import tomllib
import types
from pathlib import Path

import pytest

from cvsa_jax.runtime import config_files
from cvsa_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
MINE = "from configs import common\n\ndef get_config(options=''):\n    config = common.linear()\n"


def test_names_are_those_of_the_configs_and_not_of_what_they_share():
    names = set(config_files.names())
    assert {"folder", "cub", "cub_linear", "demo", "saliency_unet", "imagenet"} <= names
    assert not names & {"common", "recipes", "sets", "__init__"}
    for name in names:
        assert config_files.load(name).is_locked


def test_a_name_and_its_file_are_the_same_config_wherever_they_are_asked_for(tmp_path, monkeypatch):
    by_file = config_files.load(f"{ROOT}/configs/folder.py:small,moco").to_dict()
    monkeypatch.chdir(tmp_path)  # where there are no configs
    assert config_files.load("folder:small,moco").to_dict() == by_file
    assert config_files.load("configs/folder.py:small,moco").to_dict() == by_file
    assert by_file["objective"] == "moco" and by_file["views"]["size"] == 48


def test_a_file_of_that_name_comes_before_the_packages_own(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "cub.py").write_text(MINE + "    config.seed = 7\n    return config\n")
    monkeypatch.chdir(tmp_path)
    assert config_files.load("configs/cub.py").seed == 7
    assert config_files.load("cub").seed == 0


def test_a_file_imports_what_lies_next_to_it_and_else_what_the_package_has(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "ours.py").write_text("SEED = 11\n")
    body = "    from configs.ours import SEED\n    config.seed = SEED + len(options)\n    return config\n"
    for file in (folder / "mine.py", tmp_path / "alone.py"):
        file.write_text(MINE + body)
        assert config_files.load(f"{file}:abc").seed == 14
    monkeypatch.chdir(tmp_path)
    assert config_files.load("alone.py").seed == 11


def test_modules_called_configs_are_as_they_were_also_after_an_error(monkeypatch):
    theirs = types.ModuleType("configs")
    monkeypatch.setitem(sys.modules, "configs", theirs)
    with pytest.raises(ValueError, match="unknown option huge; known: small"):
        config_files.load("folder:huge")
    assert sys.modules["configs"] is theirs


@pytest.mark.parametrize(
    "reference", ["nope", "nope:small", "configs/nope.py", "other/cub.py", "configs", "", "common"]
)
def test_an_unknown_config_is_one_error_with_the_names(reference):
    with pytest.raises(
        UserError, match=r"^there is no config '.*': give .* one of aircraft, .*folder, .*saliency_unet$"
    ):
        config_files.load(reference)


@pytest.mark.parametrize(
    ("text", "said"),
    [("x = 3\n", "defines no function get_config"), ("def get_config():\n    return {}\n", "dict and no ConfigDict")],
)
def test_a_file_that_makes_no_config_is_named(tmp_path, text, said):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=f"mine.py.*{said}"):
        config_files.load(str(file))


def test_every_package_is_in_the_wheel():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        Path(folder).relative_to(ROOT) for folder, _, files in os.walk(ROOT / "cvsa_jax") if "__init__.py" in files
    }
    assert set(setuptools["packages"]) == {".".join(folder.parts) for folder in folders} | {"cvsa_jax.configs"}
    assert setuptools["package-dir"] == {"cvsa_jax.configs": config_files.FOLDER.name}
