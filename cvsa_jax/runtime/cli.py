"""What the commands share: the `--config` flag, the place in a cluster, and an end without a traceback.

Imports neither JAX nor TensorFlow, so that `--help` and a wrong flag are answered at once.
"""

import difflib
import hashlib
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from cvsa_jax.runtime import config_files, interruption, ranges
from cvsa_jax.runtime.errors import USER_ERROR, Interrupted, UserError
from cvsa_jax.runtime.files import cache_folder
from cvsa_jax.runtime.output import Output


class _ConfigParser(flags.ArgumentParser):
    """Loads configs by name as well, and puts the reason why one does not load into one line."""

    def parse(self, reference: str) -> ConfigDict:
        try:
            return config_files.load(reference)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a file of the user's raises anything
            raise UserError(f"--config={reference}: {_reason(error, reference.partition(':')[0])}") from error

    def flag_type(self) -> str:
        return "config"


_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A config by name, e.g. --config=folder:small, or a file, e.g. --config=configs/folder.py:small, where options "
    "follow the colon; or the settings of a run, e.g. --config=runs/mine/config.json. --config.key=value changes a "
    f"value. Names: {', '.join(config_files.names())}.",
)
flags.FLAGS["config"].parser = _ConfigParser()
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where no launcher tells it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0, with --coordinator.")
_NO_CONFIG = "--config is missing, e.g. --config=folder or --config=configs/folder.py"
_NO_MEMORY = (
    "the memory of a device is too small: take a smaller config.batch_size or config.eval.batch_size, smaller images, "
    "or in training config.accumulate_steps=2, config.model.remat=True, config.model.dtype=bfloat16 "
    "(docs/how-to/clusters.md)"
)
_processes: list[int] = []  # of the run, where they are several


def config() -> ConfigDict:
    """The config of `--config`; UserError where it is not given, or a number is out of its range."""
    if _CONFIG.value is None:
        raise UserError(_NO_CONFIG)
    ranges.check(config_files.flattened(_CONFIG.value))
    return _CONFIG.value


def join_cluster() -> None:
    """Joins the other processes of the run, as the flags or the launcher say; from now on the first one alone prints
    (errors go to another stream)."""
    from cvsa_jax.runtime import distributed

    distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    import jax

    if jax.process_count() > 1:
        _processes.append(jax.process_count())
    if not distributed.is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  open to the end


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; what the user can put right is printed as one error with exit code 2, and an
    interruption leads to exit code 42."""

    def start(words: list[str]) -> None:
        if words:
            raise UserError(f"unexpected arguments {' '.join(words)}: flags are written --name=value")
        main()

    _run(start, main.__module__)


def run_one_of(mains: dict[str, Callable[[], None]]) -> None:
    """As `run`, with what the first word of the command line names."""

    def start(words: list[str]) -> None:
        if len(words) != 1 or words[0] not in mains:
            raise UserError(f"give {' or '.join(mains)}, then flags, written --name=value; not {' '.join(words)!r}")
        mains[words[0]]()

    _run(start, next(iter(mains.values())).__module__)


def _run(start: Callable[[list[str]], None], module: str) -> None:
    _document(module)
    logging.set_verbosity(logging.FATAL)  # what libraries log as errors, they also raise
    interruption.listen()
    interruption.guard()
    _keep_compiled_programs()
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)
    try:
        app.run(lambda argv: start(argv[1:]), flags_parser=_parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or "out of memory" not in str(error).lower():
            raise
        print(f"error: {_NO_MEMORY}; {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Interrupted as notice:
        text = f"interrupted: {notice} The same command goes on from there."
        if not _processes:
            interruption.leave(notice.code, text)
        interruption.ends()
        print(text, file=sys.stderr)
        sys.exit(notice.code)  # of several processes each tells the others


def _document(module: str) -> None:
    """`--help` is about the main module; a console command is made in another one."""
    if module != "__main__":
        sys.modules["__main__"].__doc__ = sys.modules[module].__doc__
        for flag in flags.FLAGS.get_key_flags_for_module(module):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _keep_compiled_programs() -> None:
    """What JAX compiles in more than 0.2 s is kept for the commands that follow, where the environment names no place
    for it. Each kind of processor has a folder of its own: what was compiled for another may not run."""
    cpu = Path("/proc/cpuinfo")
    flags_of_cpu = [line for line in cpu.read_text().splitlines() if line.startswith("flags")] if cpu.exists() else []
    kind = hashlib.sha256("".join([platform.machine(), *flags_of_cpu[:1]]).encode()).hexdigest()[:12]
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / f"compiled-{kind}"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(_last_of_each(argv))
    except UserError:
        raise
    except Exception as error:
        # A wrong key or type surfaces here as whatever the config's own assignment raises.
        given = any(word.partition("=")[0] in ("--config", "-config") for word in argv)
        missing = "flag 'config." in str(error) and not given
        raise UserError(_NO_CONFIG if missing else _unknown_key(argv) or _one_line(error)) from error


def _unknown_key(argv: list[str]) -> str:
    """What to say of the first `--config.key` that the config does not have; "": there is none."""
    config = flags.FLAGS["config"].value
    if not isinstance(config, ConfigDict):
        return ""
    known = dict(config_files.flattened(config))
    keys = [word.partition("=")[0].removeprefix("--config.") for word in argv if word.startswith("--config.")]
    unknown = [key for key in keys if key not in known and not any(one.startswith(f"{key}.") for one in known)]
    close = difflib.get_close_matches(unknown[0], known) if unknown else []
    hint = f"; did you mean config.{close[0]}?" if close else ""
    return f"the config has no key config.{unknown[0]}{hint}" if unknown else ""


def _last_of_each(argv: list[str]) -> list[str]:
    """The arguments, of a config key that is given twice the last: the flags' own library would join two tuples."""
    last = {argument.partition("=")[0]: k for k, argument in enumerate(argv)}
    return [
        argument
        for k, argument in enumerate(argv)
        if not argument.startswith("--config.") or "=" not in argument or last[argument.partition("=")[0]] == k
    ]


def _one_line(error: Exception) -> str:
    """The reason in an error of the command line; an unknown key is inside another exception."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    return text if isinstance(error, flags.Error) else f"--config: {text}"


def _reason(error: BaseException, file: str) -> str:
    """Why a config file does not load. A ValueError is meant for the user; of all else the place in the file, or in
    its neighbours, helps."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}: " if error.lineno else "it is no Python file: "
        return f"{place}{error.msg}"
    if isinstance(error, ValueError):
        return text
    around = Path(file).absolute().parent
    places = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).absolute().is_relative_to(around)
        and not re.search("site-packages|<frozen|cvsa_jax.runtime", frame.filename)
    ]
    kind = type(error).__name__
    said = text if text and not isinstance(error, SystemExit) else f"{kind} {text}".strip()
    return "".join(f"{place}, line {line}: " for place, line in places[-1:]) + said
