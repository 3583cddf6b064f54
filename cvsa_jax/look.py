"""`python -m cvsa_jax.look`: where the object is, read off the cells of a frozen network by a head fitted in one pass.

python -m cvsa_jax.look fit --run=resnet50.pth --config=configs/folder.py --config.data.root=my_images --detector=rbd \\
  --out=look.safetensors
python -m cvsa_jax.look show --run=resnet50.pth --config=configs/folder.py --config.data.root=my_images \\
  --look=look.safetensors
"""

from absl import flags

from cvsa_jax.runtime import cli
from cvsa_jax.runtime.errors import UserError

flags.adopt_module_key_flags(cli)
_RUN = flags.DEFINE_string("run", None, "Workdir of a run, a file of weights, or an .npz of features with patches.")
_DETECTOR = flags.DEFINE_string(
    "detector", None, "fit: whose maps teach it, or a store's folder. Default: the config's store."
)
_IMAGES = flags.DEFINE_integer("images", 0, "fit: this many train images, at random; 0: all.", lower_bound=0)
_LOOK = flags.DEFINE_string("look", None, "show: the file of the head.")
_OUT = flags.DEFINE_string("out", None, "fit: the .safetensors file; show: folder of the page, runs/look by default.")


def fit() -> None:
    config = _config()
    if not _OUT.value:
        raise UserError("--out is missing, e.g. --out=look.safetensors")

    # Now that the command line is right, what takes seconds to import.
    from cvsa_jax.runs import look

    cli.join_cluster()
    look.fit(config, _RUN.value, _DETECTOR.value or "", _OUT.value, _IMAGES.value)


def show() -> None:
    config = _config()
    if not _LOOK.value:
        raise UserError("--look is missing, e.g. --look=look.safetensors")

    from cvsa_jax.runs import look
    from cvsa_jax.runtime.files import as_path

    cli.join_cluster()
    look.show(config, _RUN.value, _LOOK.value, as_path(_OUT.value or "runs/look"))


def _config():
    config = cli.config()
    if config.mode != "pretrain":
        raise UserError(f"--config is one of mode {config.mode!r}: give the config of the pre-training run")
    if not _RUN.value:
        raise UserError("--run is missing, e.g. --run=runs/cvsa or --run=resnet50.pth")
    return config


def command() -> None:
    """The console command `cvsa-look`."""
    cli.run_one_of({"fit": fit, "show": show})


if __name__ == "__main__":
    command()
