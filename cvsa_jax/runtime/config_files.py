"""A config by its name or by its file.

`folder:small` is the config `folder` of this package with the option `small`. `configs/folder.py:small` is a file, or,
where there is no such file, the package's own.
"""

import contextlib
import runpy
import sys
import types
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from cvsa_jax.runtime.errors import UserError

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
