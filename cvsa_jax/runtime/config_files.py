"""A config by its name, by its file, or by the file that a run wrote.

`folder:small` is the config `folder` of this package with the option `small`. `configs/folder.py:small` is a file, or,
where there is no such file, the package's own. `runs/mine/config.json` has the settings of that run.
"""

import contextlib
import difflib
import inspect
import os
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
    texts = {file.stem: file.read_text(encoding="utf-8") for file in FOLDER.glob("*.py")}
    return sorted(name for name, text in texts.items() if "\ndef get_config(" in text)


def load(reference: str | Path) -> ConfigDict:
    """The config that a reference names, locked.

    Raises:
        UserError: there is no such config, or the file does not make one.
        Exception: whatever the file raises; of an unknown option, ValueError.
    """
    reference = str(reference)
    if reference.lower().endswith(".json"):
        return _of_run(reference).lock()
    file, _, options = reference.partition(":")
    if file.lower().endswith(".json"):
        raise UserError(f"{reference}: the config.json of a run takes no options; change keys with --config.key=value")
    path = _find(file)
    with _neighbours(path):
        make = runpy.run_path(str(path)).get("get_config")
        if make is None:
            raise UserError(f"{path} defines no function get_config, which returns the config")
        if options and not inspect.signature(make).parameters:
            raise UserError(f"{path} takes no options, and {options!r} follows its colon")
        config = make(options) if options else make()
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {path} returns {type(config).__name__} and no ConfigDict")
    return config.lock()


def write_settings(config: ConfigDict, file: AnyPath) -> None:
    """Writes the `config.json` of a run."""
    write_json_atomically(file, {formats.KEY: formats.RUN} | config.to_dict())


def read_settings(file: AnyPath) -> dict[str, Any]:
    """What `write_settings` wrote; UserError where another version, or another program, did."""
    settings = read_json(file)
    if not isinstance(settings, dict) or not isinstance(settings.get("mode"), str):
        raise UserError(f"{file} is not the config.json of a run: it names no mode")
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
    if settings["mode"] not in modes:
        raise UserError(f"{reference} is not the config.json of a run: its mode is {settings['mode']!r}")
    config = modes[settings["mode"]]()
    try:
        change(config, settings, f"{reference}: mode {config.mode!r}")
    except (TypeError, ValueError) as error:
        raise UserError(f"{reference} has a value of another type: {' '.join(str(error).split())}") from None
    return config


def _find(file: str) -> Path:
    known, path = names(), Path(file).expanduser()
    if file in known:
        return FOLDER / f"{file}.py"
    try:
        if path.is_file():
            return path
        run = (path / "config.json").is_file()
    except OSError:  # a name that no file can have
        run = False
    if path.parent == Path("configs") and path.suffix == ".py" and path.stem in known:
        return FOLDER / path.name
    if run:
        raise UserError(f"{file} is the workdir of a run: its settings are {path / 'config.json'}")
    close = difflib.get_close_matches(path.stem, known)
    hint = f"; did you mean {close[0]}?" if close else f", or one of {', '.join(known)}"
    raise UserError(f"there is no config {file!r}: give the path of a file{hint}")


@contextlib.contextmanager
def _neighbours(file: Path) -> Iterator[None]:
    """Inside, a config file can import what lies around its folder, and `configs` is the folder of this name there,
    completed by the package's own. A package of the user's project may have that name too; it is put back."""
    others = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "configs"}
    for name in others:
        del sys.modules[name]
    package = types.ModuleType("configs")
    around = file.absolute().parents[:2]
    package.__path__ = [str(folder / "configs") for folder in around] + [str(FOLDER)]
    sys.modules["configs"] = package
    path = list(sys.path)
    if file.absolute().parent != FOLDER:
        sys.path[:] = [str(around[-1]), *path, os.getcwd()]
    try:
        for own in (folder / "configs" / "__init__.py" for folder in around):
            if own.is_file() and own.parent != FOLDER:
                vars(package).update({k: v for k, v in runpy.run_path(str(own)).items() if not k.startswith("__")})
                break
        yield
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
            del sys.modules[name]
        sys.modules.update(others)
