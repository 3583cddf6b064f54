"""The package stays small: a newcomer finds any line's home, and no file must be scrolled for long."""

import ast
from pathlib import Path

import pytest

import cvsa_jax

PACKAGE = Path(cvsa_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
METHOD = ("runs/pretrain.py", "training/step.py", "losses.py", "data/saliency_swap.py")


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def parameters(function: ast.FunctionDef) -> int:
    """Of a function; what a method is called on does not count."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_functions_and_signatures_are_short(path):
    assert lines(path) <= 300
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 70, f"{node.name} is long"
            assert parameters(node) <= 8, f"{node.name} takes many parameters: a spec could hold some"


def test_the_package_as_a_whole():
    assert sum(map(lines, FILES)) <= 14860


def test_four_files_explain_the_method():
    assert sum(lines(PACKAGE / name) for name in METHOD) <= 650


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_test_files_are_short(path):
    assert lines(path) <= 400
