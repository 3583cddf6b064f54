"""`make demo`: the whole method on a procedural set, in minutes and without downloads; the story is `runs/demo.py`."""

from pathlib import Path

from absl import flags

from cvsa_jax.runtime import cli

_OUT = flags.DEFINE_string("out", "runs/demo", "Folder of the demo's runs and report.")


def main() -> None:
    from configs import demo  # a package of the working folder, which `cli.run` has put on the path
    from cvsa_jax.runs.demo import run_demo

    run_demo(Path(_OUT.value), demo.get_config, demo.get_probe_config())


if __name__ == "__main__":
    cli.run(main)
