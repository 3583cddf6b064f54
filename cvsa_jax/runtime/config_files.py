"""A config by its name, by its file, or by the file that a run wrote.

`folder:small` is the config `folder` of this package with the option `small`. `configs/folder.py:small` is a file, or,
where there is no such file, the package's own. `runs/mine/config.json` has the settings of that run.
"""

import contextlib
import difflib
import runpy
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cvsa_jax.runtime import formats
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath, as_path, read_json, write_json_atomically

_PACKAGE = Path(__file__).parents[1]
# The wheel has the configs inside the package; a checkout has them at its top.
FOLDER = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """The configs of this package; the other files of the folder are what these share."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if "\ndef get_config(" in file.read_text())


def load(reference: str) -> ConfigDict:
    """The config that a reference names, locked.

    Raises:
        UserError: there is no such config, or the file does not make one.
        Exception: whatever the file raises; of an unknown option, ValueError.
    """
    if reference.endswith(".json"):
        return _of_run(reference).lock()
    file, _, options = reference.partition(":")
    path = _find(file)
    with _neighbours(path):
        make = runpy.run_path(str(path)).get("get_config")
        if make is None:
            raise UserError(f"{path} defines no function get_config, which returns the config")
        config = make(options) if options else make()
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {path} returns {type(config).__name__} and no ConfigDict")
    return config.lock()


def write_settings(config: ConfigDict, file: AnyPath) -> None:
    """Writes the `config.json` of a run."""
    write_json_atomically(file, {formats.KEY: formats.RUN} | config.to_dict())


def read_settings(file: AnyPath) -> dict[str, Any]:
    """What `write_settings` wrote; UserError where another version did."""
    settings = read_json(file)
    formats.check(str(file), settings, formats.RUN, "use this run with the version that wrote it, or train it again")
    del settings[formats.KEY]
    return settings


def change(config: ConfigDict, changes: dict, name: str) -> None:
    """Gives keys of a config other values: dotted key -> value, or sections of such. UserError at a key that the
    config, which goes by this name, does not have; TypeError at a value of another type."""
    flat, known = dict(flattened(changes)), dict(flattened(config))
    if unknown := [key for key in flat if key not in known]:
        close = difflib.get_close_matches(unknown[0], known)
        raise UserError(f"{name} has no key {unknown[0]!r}{(close and f'; did you mean {close[0]}?') or ''}")
    config.update_from_flattened_dict(flat)


def flattened(config: ConfigDict | dict) -> Iterator[tuple[str, Any]]:
    """The dotted keys of a config and their values."""
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from ((f"{key}.{inner}", one) for inner, one in flattened(value))
        else:
            yield key, value


def _of_run(reference: str) -> ConfigDict:
    """The settings that a run wrote, as values of the config of its mode: JSON tells no types of what is not set."""
    file = as_path(reference)
    if not file.is_file():
        raise UserError(f"there is no file {reference}: give the config.json of the workdir of a run")
    settings = read_settings(file)
    modes = runpy.run_path(str(FOLDER / "common.py"))["MODES"]
    if settings.get("mode") not in modes:
        raise UserError(f"{reference} is not the config.json of a run: its mode is {settings.get('mode')!r}")
    config = modes[settings["mode"]]()
    change(config, settings, f"{reference}: mode {config.mode!r}")
    return config


def _find(file: str) -> Path:
    known, path = names(), Path(file).expanduser()
    if file in known:
        return FOLDER / f"{file}.py"
    if path.is_file():
        return path
    if path.parent == Path("configs") and path.suffix == ".py" and path.stem in known:
        return FOLDER / path.name
    raise UserError(f"there is no config {file!r}: give the path of a file, or one of {', '.join(known)}")


@contextlib.contextmanager
def _neighbours(file: Path) -> Iterator[None]:
    """Inside, `configs` is the folder of this name around a config file, completed by the package's own. A package of
    the user's project may have that name too; it is put back."""
    others = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "configs"}
    for name in others:
        del sys.modules[name]
    package = types.ModuleType("configs")
    package.__path__ = [str(folder / "configs") for folder in file.absolute().parents[:2]] + [str(FOLDER)]
    sys.modules["configs"] = package
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
            del sys.modules[name]
        sys.modules.update(others)
