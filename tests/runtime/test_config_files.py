import os
import sys
import tomllib
import types
from pathlib import Path

import pytest

import cvsa_jax
from cvsa_jax.runtime import config_files
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training.resume import write_config

ROOT = Path(__file__).parents[2]
MINE = "from configs import common\n\ndef get_config(options=''):\n    config = common.linear()\n"


def test_names_lists_configs_without_shared_modules():
    names = set(config_files.names())
    assert {"folder", "cub", "cub_linear", "demo", "saliency_unet", "imagenet"} <= names
    assert not names & {"common", "recipes", "sets", "__init__"}
    for name in names:
        assert config_files.load(name).is_locked


def test_name_and_file_load_the_same_config_from_any_folder(tmp_path, monkeypatch):
    by_file = config_files.load(f"{ROOT}/configs/folder.py:small,moco").to_dict()
    monkeypatch.chdir(tmp_path)  # where there are no configs
    assert config_files.load("folder:small,moco").to_dict() == by_file
    assert config_files.load("configs/folder.py:small,moco").to_dict() == by_file
    assert by_file["objective"] == "moco" and by_file["views"]["size"] == 48


def test_local_file_overrides_the_packaged_config(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "cub.py").write_text(MINE + "    config.seed = 7\n    return config\n")
    monkeypatch.chdir(tmp_path)
    assert config_files.load("configs/cub.py").seed == 7
    assert config_files.load("cub").seed == 0


def test_file_imports_its_neighbours_and_the_packaged_configs(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "ours.py").write_text("SEED = 11\n")
    body = "    from configs.ours import SEED\n    config.seed = SEED + len(options)\n    return config\n"
    for file in (folder / "mine.py", tmp_path / "alone.py"):
        file.write_text(MINE + body)
        assert config_files.load(f"{file}:abc").seed == 14
    monkeypatch.chdir(tmp_path)
    assert config_files.load("alone.py").seed == 11


def test_load_restores_foreign_configs_modules_after_an_error(monkeypatch):
    theirs = types.ModuleType("configs")
    monkeypatch.setitem(sys.modules, "configs", theirs)
    with pytest.raises(ValueError, match="unknown option huge; known: small"):
        config_files.load("folder:huge")
    assert sys.modules["configs"] is theirs


@pytest.mark.parametrize("reference", ["nope", "nope:small", "configs/nope.py", ""])
def test_unknown_config_is_one_error_with_the_names(reference):
    with pytest.raises(
        UserError, match=r"^there is no config '.*': give .* one of aircraft, .*folder, .*saliency_unet$"
    ):
        config_files.load(reference)


@pytest.mark.parametrize(
    ("text", "said"),
    [("x = 3\n", "defines no function get_config"), ("def get_config():\n    return {}\n", "dict and no ConfigDict")],
)
def test_file_without_a_config_is_named(tmp_path, text, said):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=f"mine.py.*{said}"):
        config_files.load(str(file))


def test_wheel_lists_every_package():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        Path(folder).relative_to(ROOT) for folder, _, files in os.walk(ROOT / "cvsa_jax") if "__init__.py" in files
    }
    assert set(setuptools["packages"]) == {".".join(folder.parts) for folder in folders} | {"cvsa_jax.configs"}
    assert setuptools["package-dir"] == {"cvsa_jax.configs": config_files.FOLDER.name}


@pytest.mark.parametrize("reference", ["folder:small,moco", "folder_linear:few", "folder_finetune", "saliency_unet"])
def test_written_settings_load_as_the_same_config(tmp_path, reference):
    config = config_files.load(reference)
    write_config(config, tmp_path)
    again = config_files.load(str(tmp_path / "config.json"))
    assert again.to_dict() == config.to_dict()  # tuples and all
    types_of = [{key: value.get_type(key.rpartition(".")[2]) for key, value in places(one)} for one in (config, again)]
    assert types_of[0] == types_of[1]


def places(config, prefix=""):
    """Dotted key -> the section it is in."""
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from places(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", config


def test_loaded_settings_can_be_changed_with_type_checks(tmp_path):
    write_config(config_files.load("folder"), tmp_path)
    config = config_files.load(str(tmp_path / "config.json"))
    config.total_steps = 7
    with pytest.raises(TypeError):
        config.total_steps = "many"
    with pytest.raises(UserError, match=r"config\.json has no key 'batchsize'; did you mean batch_size\?"):
        cvsa_jax.load_config(f"{tmp_path}/config.json", {"batchsize": 1})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no file .*config.json: give the config.json of the workdir of a run"),
        ("{", "config.json is damaged"),
        ('{"format": 1}', "config.json is not the config.json of a run: it names no mode"),
        (
            '{"format": 1, "mode": "pretrain", "sed": 1}',
            r"config\.json: mode 'pretrain' has no key 'sed'; did you mean seed\?",
        ),
    ],
)
def test_invalid_settings_file_is_one_error(tmp_path, text, said):
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=said):
        config_files.load(str(file))


def test_file_imports_the_modules_of_its_project(tmp_path, monkeypatch):
    # As the commands of PATH do it: the working folder is not on the path of modules.
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    for name in ("mine_lib", "mine_experiments", "mine_experiments.base"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "mine_lib.py").write_text("SEED = 3\n")
    for folder in ("configs", "mine_experiments"):
        (tmp_path / folder).mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("EXTRA = 20\n")
    (tmp_path / "mine_experiments" / "base.py").write_text("MORE = 100\n")
    imports = "from mine_lib import SEED\n    from mine_experiments.base import MORE\n    from configs import EXTRA\n"
    body = f"    {imports}    config.seed = SEED + MORE + EXTRA\n    return config\n"
    for file in ("configs/one.py", "mine_experiments/two.py"):
        (tmp_path / file).write_text(MINE + body)
        before = list(sys.path)
        assert config_files.load(str(tmp_path / file)).seed == 123
        assert sys.path == before


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("config.json:small", "takes no options; change keys"),
        ("plain.py:small", "plain.py takes no options, and 'small' follows its colon"),
        ("workdir", "workdir is the workdir of a run: its settings are workdir/config.json"),
        ("foldr", "there is no config 'foldr': give the path of a file; did you mean folder"),
        ("x" * 300, "there is no config 'x"),
        ("wrong.json", "wrong.json has a value of another type: .*seed"),
        ("list.json", "list.json is not the config.json of a run: it names no mode"),
        ("others.json", "others.json is not the config.json of a run: it names no mode"),
        ("old.json", "old.json has no format version"),
    ],
)
def test_invalid_reference_is_one_sentence(tmp_path, monkeypatch, reference, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workdir").mkdir()
    texts = {
        "plain.py": MINE.replace("options=''", "") + "    return config\n",
        "workdir/config.json": "{}",
        "config.json": '{"format": 1, "mode": "pretrain"}',
        "wrong.json": '{"format": 1, "mode": "pretrain", "seed": "a"}',
        "list.json": '{"format": 1, "mode": ["pretrain"]}',
        "others.json": '{"model_type": "vit"}',
        "old.json": '{"format": true, "mode": "pretrain"}',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        config_files.load(Path(reference) if reference == "workdir" else reference)
    assert "\n" not in str(error.value)
