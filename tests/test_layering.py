import ast
from pathlib import Path

import pytest

import cvsa_jax

PACKAGE = Path(cvsa_jax.__file__).parent
# A room (a package, or a file at the top) imports from itself and from the floors below it, which come first.
FLOORS = (
    ("runtime",),
    ("models", "losses", "data"),
    ("training",),
    ("evaluation",),
    ("settings",),
    ("saliency", "weights"),
    ("report",),
    ("runs",),
    (
        "main",
        "demo",
        "evaluate",
        "api",
        "saliency.__main__",
        "data.__main__",
        "weights.__main__",
        "embed",
        "look",
        "search",
    ),
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
# Host and device: neither side imports the other, or what the other is made of.
HOST = ("data",)
DEVICE = (
    "models",
    "losses",
    "training.step",
    "training.accumulation",
    "training.finetune_step",
    "training.state",
    "training.optim",
)
DEVICE = (*DEVICE, "training.photometric", "training.health", "training.negatives", "saliency.unet.step")
FORBIDDEN = {
    HOST: ("jax", "flax", "optax", "orbax", "cvsa_jax.models", "cvsa_jax.losses", "cvsa_jax.runtime.distributed"),
    DEVICE: ("tensorflow", "clu", "ml_collections"),
    ("runtime.errors", "runtime.files"): ("jax", "tensorflow"),
}
HOST_VIEWS = ("data.pixels", "data.pictures", "data.views", "data.pipeline")
WITH_TENSORFLOW = (*HOST_VIEWS, "runs.feed", "api", "training.log")
# Everything else takes plain arguments.
WITH_CONFIGS = ("settings", "runs", "weights", "runtime.cli", "runtime.config_files", "training.resume", "api")


def module_name(path: Path) -> str:
    """`data.views` for cvsa_jax/data/views.py, `data` for cvsa_jax/data/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def within(name: str, parents) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def room(name: str) -> str | None:
    """The room of a module: the longest name in FLOORS which it is, or is in."""
    return max((known for known in FLOOR_OF if within(name, [known])), key=len, default=None)


def imported(tree: ast.Module, module: str, is_package: bool = False) -> set[str]:
    """Dotted names of all that a module imports, inside functions too; names taken `from` a module are appended."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                here = ["cvsa_jax", *module.split(".")]
                base = here[: len(here) - node.level + is_package] + base
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module does against the rules, in words."""
    tree = ast.parse(source)
    found = []
    for name in sorted(imported(tree, module, is_package)):
        for modules, forbidden in FORBIDDEN.items():
            if within(module, modules) and within(name, forbidden):
                found.append(f"{module} must not import {name}")
        if within(name, ["ml_collections"]) and not within(module, WITH_CONFIGS):
            found.append(f"{module} is not one of those which take configs")
        if within(name, ["tensorflow"]) and not within(module, WITH_TENSORFLOW):
            found.append(f"{module} imports TensorFlow, which takes seconds, and makes none of the host's views")
        if within(name, ["importlib"]) and name != "importlib.util.find_spec":  # which imports nothing
            found.append(f"{module} imports by name")
        if within(name, ["cvsa_jax"]):
            there, here = room(name.removeprefix("cvsa_jax").removeprefix(".")), room(module)
            if there not in (None, here) and FLOOR_OF[there] >= FLOOR_OF[here]:
                found.append(f"{module} imports {name}, which is not on a lower floor")
    if any(isinstance(node, ast.Name) and node.id == "__import__" for node in ast.walk(tree)):
        found.append(f"{module} imports by name")
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_module_imports_downwards(module):
    assert room(module) is not None, f"add the room of {module} to FLOORS"
    path = MODULES[module]
    assert violations(path.read_text(), module, path.name == "__init__.py") == []


def test_package_itself_imports_only_the_standard_library_until_it_is_asked():
    tree = ast.parse(MODULES[""].read_text())
    tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    assert imported(tree, "") == {"os", "platform", "importlib.metadata", "importlib.util"}


def test_floors_name_existing_modules():
    for name in (*FLOOR_OF, *HOST, *DEVICE, *WITH_CONFIGS, *WITH_TENSORFLOW):
        assert name in MODULES, name


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("data.views", "import jax.numpy as jnp"),
        ("data.sources.cub", "def load():\n    from jax import numpy"),
        ("data.index", "if True:\n    import os, optax"),
        ("data.index", "from cvsa_jax.models import resnet"),
        ("data.pipeline", "from cvsa_jax import losses"),
        ("data.sources.cub", "from ...models import heads"),
        ("data.sources.cub", "from ... import losses"),
        ("losses", "import tensorflow as tf"),
        ("training.step", "from clu.metrics import Metric"),
        ("training.monitor", "def f():\n    import tensorflow"),
        ("data.reading", "import tensorflow as tf"),
        ("runtime.errors", "import ml_collections"),
        ("runtime.files", "import jax"),
        ("training.checkpoint", "from ml_collections import ConfigDict"),
        ("evaluation.knn", "import ml_collections.config_dict"),
        ("models.resnet", "from cvsa_jax.data.sources import Source"),
        ("models.resnet", "from cvsa_jax import losses"),
        ("data.plan", "import cvsa_jax.training.step"),
        ("models.heads", "from cvsa_jax.training import step"),
        ("models.heads", "from ..training.step import make_train_step"),
        ("training.step", "def f():\n    from cvsa_jax.evaluation.knn import knn_predict"),
        ("training.monitor", "import cvsa_jax.settings"),
        ("settings", "from cvsa_jax.runs import linear"),
        ("weights.backbones", "from cvsa_jax.saliency import store"),
        ("saliency.compute", "from cvsa_jax.report import html"),
        ("saliency.compute", "from cvsa_jax.saliency import __main__"),
        ("runs.linear", "from cvsa_jax.main import main"),
        ("runs.pretrain", "import importlib"),
        ("demo", "from importlib import import_module"),
        ("demo", "jax = __import__('jax')"),
    ],
)
def test_checker_finds_a_violation(module, source):
    assert module in MODULES
    assert len(violations(f"import math\n{source}\n", module)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("data.views", "import PIL\nfrom cvsa_jax.runtime.errors import UserError"),
        ("data.sources", "from .source import Source\nfrom . import cub"),
        ("models.heads", "import jax, flax.linen, jaxtyping\nfrom .normalization import BatchNorm"),
        ("training.state", "from cvsa_jax.models.siamese import Siamese"),
        ("saliency.__main__", "from cvsa_jax import settings\nfrom cvsa_jax.runtime import cli"),
        ("runs.pretrain", "from ml_collections import ConfigDict\nfrom cvsa_jax import __version__, settings"),
    ],
)
def test_checker_accepts_what_is_allowed(module, source):
    assert violations(source, module, is_package=module == "data.sources") == []
