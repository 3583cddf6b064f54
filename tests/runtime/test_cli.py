import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = "--config=configs/folder.py"
# The command line of every command, in one that imports neither jax nor tensorflow, for what takes no more.
LIGHT = ("-c", "from cvsa_jax.runtime import cli; cli.run(lambda: print(cli.config().mode))")
# Name -> command, and what its error names.
WRONG = {
    "no workdir": (("-m", "cvsa_jax.main", CONFIG), "--workdir"),
    "file that is not there": ((*LIGHT, "--config=configs/nope.py"), "configs/nope.py"),
    "name that no config has": ((*LIGHT, "--config=nope:small"), "there is no config 'nope': give"),
    "argument that the file does not know": (
        (*LIGHT, f"{CONFIG}:huge"),
        "unknown option huge; known: small, scratch, cvsa, same, byol",
    ),
    "a key and no config": ((*LIGHT, "--config.seed=1"), "--config is missing"),
    "a file whose folder is no run's": (
        ("-m", "cvsa_jax.main", "--config=configs/folder_linear.py", "--config.init_from=README.md"),
        "--workdir is missing",
    ),
    "fewer than no classes": (
        ("-m", "cvsa_jax.embed", "--run=x", "--data=x", "--out=x.npz", "--predict=-1"),
        "predict=-1",
    ),
    "a command that is none": (("-m", "cvsa_jax.weights", "exprt"), "give import or export, then flags"),
    "key": ((*LIGHT, CONFIG, "--config.batchsize=3"), "'batchsize' Did you mean \"batch_size\""),
    "key of a part that is not there": ((*LIGHT, CONFIG, "--config.nosuch.lr=3"), "--config: 'nosuch'"),
    "type": ((*LIGHT, CONFIG, "--config.batch_size=many"), "--config.batch_size=many"),
    "type of a part": ((*LIGHT, CONFIG, "--config.views=3"), "--config.views=3"),
    "flag": ((*LIGHT, CONFIG, "--configs=3"), "'configs'"),
    "key before the config": ((*LIGHT, "--config.seed=1", CONFIG), "--config.seed=1"),
    "no number": ((*LIGHT, CONFIG, "--config.optim.lr=nan"), "config.optim.lr=nan is not a finite number"),
    "more than the memory holds": (
        ("-c", "import jax.numpy as jnp; from cvsa_jax.runtime import cli; cli.run(lambda: jnp.zeros((10**8, 10**8)))"),
        "config.accumulate_steps=2",
    ),
    "word without dashes": ((*LIGHT, CONFIG, "workdir=runs/mine"), "workdir=runs/mine"),
}
RIGHT = (*LIGHT, CONFIG, "--config.batch_size=3", "--config.views.source_area=(0.2, 0.3)")


def start(arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def commands():
    """All of them at once: each spends most of its time on imports."""
    started = {name: start(arguments) for name, (arguments, _) in WRONG.items()}
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_command_line_is_one_line_that_names_the_fault(commands, name):
    process = commands[name]
    out, error = process.communicate(timeout=120)
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    assert WRONG[name][1] in error
    assert "Traceback" not in error
    assert process.returncode == 2


def test_right_command_line_runs():
    process = start(RIGHT)
    assert process.communicate(timeout=120) == ("pretrain\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("command", ["main", "saliency"])
def test_help_shows_the_config_flag_and_the_names(command):
    out, error = start(("-m", f"cvsa_jax.{command}", "--help")).communicate(timeout=60)
    assert error == "" and "--config=folder:small" in out
    assert {"cub,", "folder_linear,", "saliency_unet."} <= set(out.split())


def test_compilation_cache_is_in_the_users_cache_unless_set(tmp_path):
    show = (
        "import os; from cvsa_jax.runtime import cli; cli.run(lambda: print(os.environ['JAX_COMPILATION_CACHE_DIR']))"
    )
    command = [sys.executable, "-c", show]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path)}
    usual, named = (
        subprocess.run(command, cwd=ROOT, env=environment | more, capture_output=True, text=True, check=True).stdout
        for more in ({}, {"JAX_COMPILATION_CACHE_DIR": "/elsewhere"})
    )
    assert Path(usual.strip()).parent == tmp_path / "cvsa_jax" and Path(usual.strip()).name.startswith("compiled-")
    assert named.strip() == "/elsewhere"


def test_last_value_of_a_repeated_key_counts():
    shown = ("-c", "from cvsa_jax.runtime import cli; cli.run(lambda: print(cli.config().views.crop_area))")
    process = start((*shown, CONFIG, "--config.views.crop_area=(0.1,0.2)", "--config.views.crop_area=(0.3,0.4)"))
    out, error = process.communicate(timeout=60)
    assert out == "(0.3, 0.4)\n" and error == ""


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("x = 1\nconfig = f(\n", 2, "'(' was never closed"),
        ("import nosuchmodule\n", 1, "No module named 'nosuchmodule'"),
        ("def get_config():\n    x = 1\n    return nosuchname\n", 3, "name 'nosuchname' is not defined"),
    ],
    ids=["syntax", "import", "call"],
)
def test_broken_config_file_is_one_line_with_its_place(tmp_path, content, line, reason):
    file = tmp_path / "broken.py"
    file.write_text(content)
    process = start((*LIGHT, f"--config={file}"))
    out, error = process.communicate(timeout=60)
    assert process.returncode == 2 and out == "" and error.count("\n") == 1
    assert f"{file}, line {line}: " in error and reason in error
