"""`python -m cvsa_jax.data check`: looks at a data set before anything is trained on it.

python -m cvsa_jax.data check --config=configs/folder.py --config.data.root=my_images --out=runs/my_images

Ends with code 2 where a training would be refused.
"""

from absl import flags

from cvsa_jax.runtime import cli

flags.adopt_module_key_flags(cli)
_OUT = flags.DEFINE_string("out", "runs/data", "Folder of the page.")
_IMAGES = flags.DEFINE_integer(
    "images", None, "Inspect only this many evenly spaced images instead of all; 0: only count."
)
_NEAR = flags.DEFINE_bool("near", False, "Also look for images that are nearly equal.")


def check() -> None:
    config = cli.config()

    # Now that the command line is right, what takes seconds to import.
    from cvsa_jax.runs import data_check
    from cvsa_jax.runtime.files import as_path

    data_check.check(config, as_path(_OUT.value), _IMAGES.value, _NEAR.value)


def command() -> None:
    """The console command `cvsa-data`."""
    cli.run_one_of({"check": check})


if __name__ == "__main__":
    command()
