"""`python -m cvsa_jax.evaluate`: puts pre-training runs side by side on one data set, in one page.

python -m cvsa_jax.evaluate --config=configs/folder_linear.py --config.data.root=my_images --runs=runs/byol,runs/cvsa
"""

from absl import flags

from cvsa_jax.runtime import cli
from cvsa_jax.runtime.errors import UserError

_RUNS = flags.DEFINE_list("runs", None, "Workdirs of pre-training runs, comma-separated.")
_OUT = flags.DEFINE_string("out", "runs/evaluation", "Folder of the page.")


def main() -> None:
    config = cli.config()
    if not _RUNS.value:
        raise UserError("--runs is missing, e.g. --runs=runs/byol,runs/cvsa")

    # Now that the command line is right, what takes seconds to import.
    from cvsa_jax.runs.compare import compare_runs
    from cvsa_jax.runtime.files import as_path

    cli.join_cluster()
    compare_runs(config, _RUNS.value, as_path(_OUT.value))


if __name__ == "__main__":
    cli.run(main)
