"""`python -m cvsa_jax.evaluate`: puts networks side by side on one data set, in one page.

python -m cvsa_jax.evaluate --config=configs/folder_linear.py --config.data.root=my_images --runs=runs/byol,runs/cvsa
python -m cvsa_jax.evaluate … --runs=cvsa=runs/cvsa,start=resnet50.pth,dinov2=dinov2.npz
"""

from absl import flags

from cvsa_jax.runtime import cli
from cvsa_jax.runtime.errors import UserError

flags.adopt_module_key_flags(cli)
_RUNS = flags.DEFINE_list(
    "runs",
    None,
    "Runs, files of weights, .npz of features, comma-separated; name=path names one, path@pooling pools it.",
)
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


def command() -> None:
    """The console command `cvsa-evaluate`."""
    cli.run(main)


if __name__ == "__main__":
    command()
