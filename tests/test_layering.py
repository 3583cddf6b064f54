import ast
from pathlib import Path

import pytest

import cvsa_jax

PACKAGE = Path(cvsa_jax.__file__).parent
# A module imports from its own layer and from those before it. A package's name stands for what is in it.
LAYERS = (
    ("errors",),
    ("files",),
    ("data", "models", "losses", "optim", "state", "photometric", "distributed"),
    ("steps", "classifier_step", "checkpoint", "monitor", "perf", "interruption"),
    ("pictures", "report", "interop", "saliency.unet_step"),
    ("loop",),
    ("evaluation", "saliency", "settings"),
    ("run_report", "backbones"),
    ("pretrain", "classify", "finetune", "saliency.train_unet"),
    ("compare",),
    ("comparison_page",),
    ("main", "demo", "evaluate", "cli", "saliency.__main__"),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
# Host and device: neither side imports the other, or what the other is made of.
HOST = ("data",)
DEVICE = ("models", "losses", "optim", "state", "steps", "classifier_step", "photometric", "distributed")
DEVICE = (*DEVICE, "saliency.unet_step")
FORBIDDEN = {
    HOST: ("jax", "flax", "optax", "orbax", *(f"cvsa_jax.{name}" for name in DEVICE)),
    (*DEVICE, "errors", "files"): ("tensorflow", "clu", "ml_collections", "cvsa_jax.data"),
}
# Everything else takes plain arguments.
WITH_CONFIGS = ("settings", "cli", "comparison_page", "loop", "pretrain", "classify", "finetune", "run_report")
WITH_CONFIGS = (*WITH_CONFIGS, "backbones", "saliency.train_unet")


def module_name(path: Path) -> str:
    """`data.views` for cvsa_jax/data/views.py, `data` for cvsa_jax/data/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def within(name: str, parents) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def layer(name: str) -> int | None:
    """The layer of a module of the package; that of the longest name in LAYERS which it is, or is in."""
    names = [known for known in LAYER_OF if within(name, [known])]
    return LAYER_OF[max(names, key=len)] if names else None


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
        if within(name, ["ml_collections"]) and module not in WITH_CONFIGS:
            found.append(f"{module} is not one of those which take configs")
        if within(name, ["importlib"]):
            found.append(f"{module} imports by name")
        if within(name, ["cvsa_jax"]):
            above = layer(name.removeprefix("cvsa_jax").removeprefix("."))
            if above is not None and above > layer(module):
                found.append(f"{module} imports {name} of a higher layer")
    if any(isinstance(node, ast.Name) and node.id == "__import__" for node in ast.walk(tree)):
        found.append(f"{module} imports by name")
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_module_imports_downwards(module):
    assert layer(module) is not None, f"add {module} to LAYERS"
    path = MODULES[module]
    assert violations(path.read_text(), module, path.name == "__init__.py") == []


def test_package_itself_imports_only_the_standard_library():
    assert imported(ast.parse(MODULES[""].read_text()), "") == {"os"}


def test_layers_name_existing_modules():
    for name in (*LAYER_OF, *HOST, *DEVICE, *WITH_CONFIGS):
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
        ("steps", "from clu.metrics import Metric"),
        ("errors", "import ml_collections"),
        ("checkpoint", "from ml_collections import ConfigDict"),
        ("evaluation.knn", "import ml_collections.config_dict"),
        ("models.resnet", "from cvsa_jax.data.sources import Source"),
        ("steps", "import cvsa_jax.data.pipeline"),
        ("models.heads", "from cvsa_jax import steps"),
        ("models.heads", "from ..steps import make_train_step"),
        ("steps", "def f():\n    from cvsa_jax.evaluation.knn import knn_predict"),
        ("monitor", "import cvsa_jax.settings"),
        ("settings", "from cvsa_jax import classify, errors"),
        ("saliency.compute", "from cvsa_jax import cli"),
        ("saliency.compute", "from cvsa_jax.saliency import __main__"),
        ("classify", "from cvsa_jax.main import main"),
        ("pretrain", "import importlib"),
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
        ("data.views", "import tensorflow as tf\nfrom cvsa_jax.errors import UserError"),
        ("data.sources", "from .source import Source\nfrom . import cub"),
        ("models.heads", "import jax, flax.linen, jaxtyping\nfrom .resnet import batch_norm"),
        ("state", "from cvsa_jax.models.siamese import Siamese"),
        ("saliency.__main__", "from cvsa_jax import cli, settings"),
        ("pretrain", "from ml_collections import ConfigDict\nfrom cvsa_jax import __version__, steps"),
    ],
)
def test_checker_accepts_what_is_allowed(module, source):
    assert violations(source, module, is_package=module == "data.sources") == []
