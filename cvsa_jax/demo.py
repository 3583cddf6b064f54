"""`make demo`: the whole method on a procedural set, in minutes and without downloads; the story is `runs/demo.py`."""

from pathlib import Path

from absl import flags

from cvsa_jax.runtime import cli
from cvsa_jax.runtime.config_files import load

_OUT = flags.DEFINE_string("out", "runs/demo", "Folder of the demo's runs and report.")


def main() -> None:
    from cvsa_jax.runs.demo import run_demo

    run_demo(Path(_OUT.value), lambda options: load(f"demo:{options}"), load("demo_linear"))


def command() -> None:
    """The console command `cvsa-demo`."""
    cli.run(main)


if __name__ == "__main__":
    command()
