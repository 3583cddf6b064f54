"""Writes the pages of docs/reference that follow from the code: `config.md`, `commands.md` and `python.md`.

python -m docs.make_reference           # writes them
python -m docs.make_reference --check   # names those that are out of date, and ends with code 1
"""

import ast
import dataclasses
import importlib
import inspect
import io
import pkgutil
import re
import sys
import textwrap
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference"

NOTE = "<!-- Written by docs/make_reference.py from the code: change that, and run it again. -->\n"
COMMANDS = ("main", "evaluate", "saliency", "look", "embed", "search", "data", "weights", "demo")
# Functions of configs/common.py -> the title of the keys that they define.
MODES = {
    "pretrain": "Pre-training",
    "linear": "Linear probe and kNN",
    "finetune": "Fine-tuning",
    "saliency_unet": "Training of the saliency detector",
}
SHARED = {
    "_data": "The data set",
    "_eval": "Evaluation",
    "_model": "The network",
    "_optim": "The optimiser",
    "_photometric": "Augmentation of a view",
    "_loop": "Log and checkpoints",
}


# --- config.md


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a config: the function of configs/common.py that defines it, and its name there."""

    owner: str
    name: str


def keys_of(text: str) -> dict[str, dict[str, Key]]:
    """Mode -> dotted key of its config -> where it is defined, from the text of configs/common.py."""
    functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}

    def keys(owner: str) -> Iterator[tuple[str, Key]]:
        for node in functions[owner].body:
            call = getattr(node, "value", None)
            called = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
            target = ".".join(_path(node.targets[0])) if isinstance(node, ast.Assign) else ""
            if called in SHARED:
                yield from ((f"{target}.{name}".lstrip("."), key) for name, key in keys(called))
            elif target and called != "ConfigDict":
                yield target, Key(owner, target)

    found: dict[str, dict[str, Key]] = {}
    for mode in MODES:
        found[mode] = {}
        for name, key in keys(mode):
            # What a mode changes of a shared section keeps the section's meaning.
            found[mode].setdefault(name, key)
    return found


def meanings(text: str) -> dict[Key, str]:
    """The comment of each key in the text of configs/common.py: that of its line, or the lines of comment before it."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for function in ast.parse(text).body:
        if not isinstance(function, ast.FunctionDef) or function.name not in MODES | SHARED:
            continue
        for node in function.body:
            if not isinstance(node, ast.Assign) or not (path := _path(node.targets[0])):
                continue
            lines, above = [node.end_lineno], node.lineno - 1
            if node.end_lineno not in comments:
                while above in comments and comments[above].start[1] == node.col_offset:
                    lines.insert(0, above)
                    above -= 1
            words = [comments[line].string.lstrip("# ") for line in lines if line in comments]
            found.setdefault(Key(function.name, ".".join(path)), " ".join(words))
    return found


def _flat(config: Any) -> dict[str, Any]:
    """The dotted keys of a config and their values."""
    from flax.traverse_util import flatten_dict

    return flatten_dict(config.to_dict(), sep=".")


def without_meaning(text: str) -> list[str]:
    """The keys in the text of configs/common.py that no comment explains."""
    said = meanings(text)
    keys = dict.fromkeys(key for mode in keys_of(text).values() for key in mode.values() if key.name != "mode")
    return [f"{key.owner}: {key.name}" for key in keys if not said.get(key)]


def _path(node: ast.AST) -> list[str]:
    """`config.views.size` -> ["views", "size"]; of a plain name nothing."""
    return [*_path(node.value), node.attr] if isinstance(node, ast.Attribute) else []


def choices() -> dict[str, str]:
    """Key -> the values that it may have, from the package's calls of `checks.choice` and `checks.share`."""
    import cvsa_jax

    found = {}
    for info in pkgutil.walk_packages(cvsa_jax.__path__, "cvsa_jax."):
        tree = ast.parse(Path(info.module_finder.find_spec(info.name).origin).read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                check = ast.unparse(call.func)
                if check not in ("checks.choice", "checks.share") or not isinstance(call.args[0], ast.Constant):
                    continue
                key = call.args[0].value
                if not re.fullmatch(r"config\.[\w.]+", key):  # a flag, or a key under a condition
                    continue
                found[key.removeprefix("config.")] = (
                    "number in (0, 1)" if check == "checks.share" else _choices(info.name, function, call)
                )
    return found


def _choices(module: str, function: ast.FunctionDef, call: ast.Call) -> str:
    """The third argument of a call of `checks.choice`, whose names the module or the function imports."""
    names = dict(vars(importlib.import_module(module)))
    imports = [node for node in function.body if isinstance(node, ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), module, "exec"), names)
    return ", ".join(f"`{value}`" for value in eval(ast.unparse(call.args[2]), names))


def allowed(key: str, default: Any, chosen: dict[str, str]) -> str:
    """The values that a key may have, in words; `default` may be the type of a key without a value."""
    from cvsa_jax.runtime import ranges

    if key in chosen:
        return chosen[key]
    kind = default if isinstance(default, type) else type(default)
    if kind is bool:
        return "`True`, `False`"
    if kind is str:
        return "text"
    low, high = ranges.range_of(key)
    whole = {type(one) for one in default} == {int} if kind is tuple else kind is int
    noun = "whole number" if whole or (kind is tuple and not default and isinstance(low, int)) else "number"
    if kind is tuple:
        noun = f"two {noun}s" if key.endswith(("_area", "scale", "side")) else f"{noun}s"
    # Bounds far from all that is of use only keep typing errors out; those next to 0 and 1 leave 0 and 1 out.
    no_end, open_low, open_high = high >= 10**4, 0 < low < 1e-3, 0.999 < high < 1
    if no_end:
        return f"{noun} > 0" if open_low else f"{noun} ≥ {low:g}"
    low, high = (0 if open_low else low), (1 if open_high else high)
    return f"{noun} in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"


def config_page() -> str:
    from ml_collections.config_dict import FieldReference

    from configs import common

    text = (ROOT / "configs" / "common.py").read_text()
    if silent := without_meaning(text):
        sys.exit(f"keys of configs/common.py without a comment: {', '.join(silent)}")
    said, chosen, kinds = meanings(text), choices(), keys_of(text)
    # Key of the table -> full key in each mode -> default there.
    rows: dict[Key, dict[str, dict[str, Any]]] = {}
    for mode in MODES:
        config = getattr(common, mode)()
        values = _flat(config)
        assert values.keys() == kinds[mode].keys(), values.keys() ^ kinds[mode].keys()
        for name, key in kinds[mode].items():
            if name == "mode":  # the heading says it
                continue
            value = values[name]
            if value is None:
                section = config
                for part in name.split(".")[:-1]:
                    section = section[part]
                reference: FieldReference = section.get_ref(name.split(".")[-1])
                value = reference.get_type()
            rows.setdefault(key, {}).setdefault(mode, {})[name] = value
    parts = [NOTE, "# Configuration keys\n", CONFIG_INTRODUCTION]
    for owner, title in (MODES | SHARED).items():
        own = {key: modes for key, modes in rows.items() if key.owner == owner}
        shared = owner in SHARED
        parts.append(f"## {title}\n")
        parts.append(_sections(own) if shared else f"`config.mode` is `{owner}`.\n")
        groups: dict[str, list[str]] = {}
        for key, modes in own.items():
            full = next(iter(next(iter(modes.values()))))
            name = key.name if shared else full
            line = f"| `{name}` | {_defaults(modes)} | {allowed(full, next(iter(modes.values()))[full], chosen)} |"
            group = "" if shared or "." not in name else name.rpartition(".")[0]
            groups.setdefault(group, []).append(f"{line} {_sentence(said[key])} |")
        for group, lines in groups.items():
            parts += [f"### `{group}`\n"] if group else []
            parts.append("\n".join(["| key | default | allowed | meaning |", "|---|---|---|---|", *lines]) + "\n")
    return "\n".join([*parts, config_files(), recipes_table()])


CONFIG_INTRODUCTION = """\
Every key of every config, with its default, the values that it may have, and its meaning. The source is
[configs/common.py](../../configs/common.py); a config file changes what differs. Any key can be changed on the command
line, behind `--config`: `--config=configs/folder.py --config.batch_size=64 --config.views.source_area="(0.1,0.5)"`.
An unknown key, a value of another type and a number out of its range end the command at once.

`config.mode` says what a config is for; each mode has its own keys, and some sections are shared. A key whose default
is *not set* takes the value that its meaning names. Areas are fractions of the image's area, as (low, high).
"""


def _sections(own: dict[Key, dict[str, dict[str, Any]]]) -> str:
    """Where a shared section is found in the configs of each mode."""
    places: dict[str, list[str]] = {}
    for key, modes in own.items():
        for mode, names in modes.items():
            for name in names:
                prefix = name.removesuffix(key.name).rstrip(".")
                place = f"`{prefix}`" if prefix else "the top level"
                if mode not in places.setdefault(place, []):
                    places[place].append(mode)
    return "; ".join(f"{place} of {', '.join(modes)}" for place, modes in places.items()).capitalize() + ".\n"


def _defaults(modes: dict[str, dict[str, Any]]) -> str:
    """The default, and where it differs the ones of other modes and sections."""
    values = {(mode, name): value for mode, names in modes.items() for name, value in names.items()}
    first = next(iter(values.values()))
    shown = [_value(first)]
    for (mode, name), value in values.items():
        if value != first:
            several = len(modes[mode]) > 1
            place = f"{mode}'s `{name.rpartition('.')[0]}`" if several else mode
            shown.append(f"{_value(value)} in {place}")
    return "; ".join(shown)


def _value(value: Any) -> str:
    if isinstance(value, type):
        return "*not set*"
    return "*empty*" if value in ("", ()) else f"`{value}`"


def _sentence(text: str) -> str:
    """The comment as a sentence of a table."""
    text = text.replace(" (docs/study/README.md)", " ([README of the study](../study/README.md))")
    text = text if text.startswith("tau") else text[0].upper() + text[1:]
    parts = text.replace("|", r"\|").rstrip(".").split("`")
    # Names of keys and values are code, also where the comment does not mark them as such.
    parts[::2] = [re.sub(r"(?<![/\w])(config\.[\w.]*\w|[a-z]+_[a-z_]+)", r"`\1`", part) for part in parts[::2]]
    parts[::2] = [re.sub(r"(?=<)", r"\\", part) for part in parts[::2]]
    return "`".join(parts) + "."


def options_of(get_config) -> tuple[str, ...]:
    """The options behind the colon of a config file, as its error for an unknown one lists them."""
    try:
        get_config("?")
    except ValueError as error:
        known = str(error).partition("known: ")[2]
    return tuple(option for option in known.split(", ") if option != "none")


def config_files() -> str:
    """A table of the config files: those of a set's evaluations share a line with its pre-training."""
    stems = [file.stem for file in sorted((ROOT / "configs").glob("*.py"))]
    lines = ["## Config files\n", CONFIG_FILES_INTRODUCTION, "| file | what it is | besides |", "|---|---|---|"]
    for stem in stems:
        module = importlib.import_module(f"configs.{stem}")
        if not hasattr(module, "get_config") or stem.endswith(("_linear", "_finetune")):
            continue
        first = " ".join(inspect.getdoc(module).partition("\n\n")[0].split()).replace("|", r"\|")
        others = [_link(other) for other in (f"{stem}_linear", f"{stem}_finetune") if other in stems]
        lines.append(f"| {_link(stem)} | {first} | {', '.join(others)} |")
    return "\n".join(lines) + "\n"


def _link(stem: str) -> str:
    return f"[{stem}.py](../../configs/{stem}.py)"


CONFIG_FILES_INTRODUCTION = """\
Each file changes what differs from the defaults above. The configs of a set, `configs/<set>.py`,
`configs/<set>_linear.py` and `configs/<set>_finetune.py`, take the options of `folder.py`, `folder_linear.py` and
`folder_finetune.py`, which the next section lists.
"""


def recipes_table() -> str:
    """What each option of the configs of a folder changes."""

    lines = ["## Options\n", OPTIONS_INTRODUCTION]
    for stem in ("folder", "folder_linear", "folder_finetune"):
        module = importlib.import_module(f"configs.{stem}")
        plain = _flat(module.get_config())
        lines += [f"### `configs/{stem}.py`\n", "| option | changes |", "|---|---|"]
        for option in options_of(module.get_config):
            changed = _flat(module.get_config(option))
            changes = ", ".join(f"`{key}={value}`" for key, value in changed.items() if value != plain[key])
            lines.append(f"| `{option}` | {changes or OPTIONS_OF_OTHERS[option]} |")
        lines.append("")
    return "\n".join(lines)


OPTIONS_INTRODUCTION = """\
Options follow a colon and are joined with commas: `--config=configs/folder.py:small,byol`.
"""
# What changes nothing by itself.
OPTIONS_OF_OTHERS = {
    "cvsa": "with an objective's option: keeps Saliency Swap and the alignment loss",
    "same": "with an objective's option: keeps BYOL's augmentation, batch size and number of epochs",
}


# --- commands.md


def commands_page() -> str:
    from absl import flags

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("scripts", {})
    parts = [NOTE, "# Commands\n", COMMANDS_INTRODUCTION]
    for name in COMMANDS:
        module = f"cvsa_jax.{name}"
        package = (ROOT / "cvsa_jax" / name / "__main__.py").exists()
        imported = importlib.import_module(f"{module}.__main__" if package else module)
        own = list(flags.FLAGS.flags_by_module_dict()[imported.__name__])
        first, _, rest = inspect.getdoc(imported).partition("\n\n")
        _, _, first = first.partition(": ")
        parts += [f"## `python -m {module}`\n", f"{first[0].upper()}{first[1:]}\n".replace("\n", " ").strip() + "\n"]
        if script := [script for script, target in scripts.items() if target.partition(":")[0] == imported.__name__]:
            parts.append(f"As a console command: `{script[0]}`.\n")
        examples = [line for line in textwrap.dedent(rest).splitlines() if line.startswith(("python", "  "))]
        if examples:
            parts += ["```console", *examples, "```\n"]
        parts.append(_flags(own))
        # The next command has flags of the same names.
        for flag in own:
            delattr(flags.FLAGS, flag.name)
    parts += ["## Flags of every command\n", SHARED_FLAGS]
    parts.append(_flags(flags.FLAGS.flags_by_module_dict()["cvsa_jax.runtime.cli"]))
    return "\n".join(parts)


COMMANDS_INTRODUCTION = """\
Flags are written `--name=value`. A command that cannot do what it was asked says why in one line and ends with code 2;
an interrupted one ends with code 42, and the same command continues it.
"""
SHARED_FLAGS = """\
`--config` takes a config by name (`folder:small,byol`), a config file and its options (`configs/folder.py:small,byol`),
or the `config.json` of a run, whose settings it takes over. `--config.KEY=VALUE` changes one of its [keys](config.md).
`embed`, `search`, `weights` and `demo` take no config. The other three flags are for clusters whose launcher does not
say by itself which processes there are.
"""


def _flags(own: list) -> str:
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    for flag in (flag for flag in own if flag.name != "config"):
        default = flag.default
        if isinstance(default, list):
            default = ",".join(default)
        shown = "" if default in (None, "") else f"`{default}`"
        text = flag.help
        if values := getattr(flag.parser, "enum_values", None):
            text = f"{text.partition('>: ')[2]} One of {', '.join(f'`{value}`' for value in values)}."
        lines.append(f"| `--{flag.name}` | {shown} | {text} |")
    return "\n".join(lines) + "\n"


# --- python.md


def python_page() -> str:
    import cvsa_jax
    from cvsa_jax.data.sources import Source

    names = [f"cvsa_jax.{name}" for name in cvsa_jax.__all__]
    things = dict(zip(names, (getattr(cvsa_jax, name) for name in cvsa_jax.__all__), strict=True))
    things["cvsa_jax.data.sources.Source"] = Source
    parts = [NOTE, "# Python\n", PYTHON_INTRODUCTION]
    for full, thing in sorted(things.items(), key=lambda item: inspect.isclass(item[1])):
        name = full.rpartition(".")[2]
        parts.append(f"## `{full}`\n")
        if not inspect.isclass(thing):
            parts += [_signature(thing, name), _text(thing)]
            continue
        if not dataclasses.is_dataclass(thing) and "__init__" in vars(thing):
            parts.append(_signature(vars(thing)["__init__"], name))
        parts.append(_text(thing))
        for member, value in vars(thing).items():
            value = getattr(value, "fget", getattr(value, "func", value))  # of a property, of a cached one
            if inspect.isfunction(value) and value.__doc__ and (not member.startswith("_") or member == "__getitem__"):
                attribute = not inspect.isfunction(vars(thing)[member])
                parts += [f"### `{name}.{member}`\n", _signature(value, member, attribute), _text(value)]
    return "\n".join(parts)


PYTHON_INTRODUCTION = """\
`import cvsa_jax` offers these names; everything else may change without notice. Shapes are written in the notation of
[jaxtyping](https://docs.kidger.site/jaxtyping/): `Float[np.ndarray, "n c"]` is an array of floats with `n` rows and `c`
columns. `Images` are an array `(n, h, w, 3)` uint8, or a list of arrays `(h, w, 3)` of any sizes.
"""


def _signature(function, name: str, attribute: bool = False) -> str:
    """The head of a function as its file has it; of an attribute its type."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    bare = ast.FunctionDef(name, node.args, [ast.Expr(ast.Constant(...))], [], node.returns, type_params=[])
    if bare.args.args[:1] and bare.args.args[0].arg == "self":
        bare.args.args.pop(0)
    if attribute:
        return f"```python\n{name}: {ast.unparse(node.returns)}\n```\n"
    text = ast.unparse(ast.fix_missing_locations(bare)).removesuffix("\n    ...").rstrip(":").removeprefix("def ")
    if len(text) > 100:
        head, _, tail = text.partition("(")
        inner, _, after = tail.rpartition(")")
        text = f"{head}(\n" + "".join(f"    {one},\n" for one in _split(inner)) + f"){after}"
    return f"```python\n{text}\n```\n"


def _split(arguments: str) -> list[str]:
    """The arguments of a signature; commas within brackets and quotes belong to them."""
    parts, depth, quoted = [""], 0, False
    for letter in arguments:
        quoted ^= letter == "'"
        depth += (letter in "[({") - (letter in "])}")
        if letter == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _text(thing) -> str:
    """A docstring as Markdown: `Args:`, `Attributes:` and `Raises:` become lists."""
    blocks = []
    for block in inspect.getdoc(thing).split("\n\n"):
        first, _, rest = block.partition("\n")
        if first in ("Args:", "Attributes:", "Raises:"):
            items = re.split(r"\n(?=\S)", textwrap.dedent(rest))
            entries = [" ".join(item.split()).partition(": ") for item in items]
            block = f"{first}\n\n" + "\n".join(f"- `{name}`: {text}" for name, _, text in entries)
        blocks.append(block)
    return "\n\n".join(blocks) + "\n"


def pages() -> dict[Path, str]:
    """The file of each page -> what it must hold."""
    made = {"config.md": config_page, "commands.md": commands_page, "python.md": python_page}
    return {PAGES / name: make() for name, make in made.items()}


def main() -> None:
    made = pages()
    if sys.argv[1:] == ["--check"]:
        stale = [path.name for path, text in made.items() if not path.exists() or path.read_text() != text]
        if stale:
            sys.exit(f"out of date: {', '.join(stale)}; run python -m docs.make_reference")
        return
    PAGES.mkdir(exist_ok=True)
    for path, text in made.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
