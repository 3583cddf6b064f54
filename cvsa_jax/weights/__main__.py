"""`python -m cvsa_jax.weights`: anybody's ResNet in, ours out.

python -m cvsa_jax.weights import --from=moco_v2_800ep_pretrain.pth.tar --out=moco.safetensors
python -m cvsa_jax.weights export --run=runs/cvsa --out=exported
"""

from absl import flags

from cvsa_jax.runtime import cli
from cvsa_jax.runtime.errors import UserError

_FROM = flags.DEFINE_string("from", None, "import: a file of weights, of any kind.")
_NET = flags.DEFINE_string("net", "", "import: of several networks the one of this name, as the error lists them.")
_RUN = flags.DEFINE_string("run", None, "export: workdir of a run, or a file of weights.")
_OUT = flags.DEFINE_string("out", None, "import: the .safetensors file; export: the folder.")
_FORMATS = flags.DEFINE_list("formats", ["safetensors"], "export: of safetensors, npz, stablehlo, onnx.")
_LOOK = flags.DEFINE_string("look", "", "export: file of a look head, which then pools the features.")
_LICENCE = flags.DEFINE_string("licence", "not stated", "export: of the weights, for the model card.")


def import_weights() -> None:
    _need(_FROM, "resnet50.pth")
    _need(_OUT, "x.safetensors")

    # Now that the command line is right, what takes seconds to import.
    from cvsa_jax.runs import weights

    weights.import_file(_FROM.value, _OUT.value, _NET.value)


def export_weights() -> None:
    _need(_RUN, "runs/cvsa")
    _need(_OUT, "exported")

    from cvsa_jax.runs import weights
    from cvsa_jax.runtime.files import as_path

    weights.export_run(_RUN.value, as_path(_OUT.value), tuple(_FORMATS.value), _LICENCE.value, _LOOK.value)


def _need(flag: flags.FlagHolder, example: str) -> None:
    if not flag.value:
        raise UserError(f"--{flag.name} is missing, e.g. --{flag.name}={example}")


def command() -> None:
    """The console command `cvsa-weights`."""
    cli.run_one_of({"import": import_weights, "export": export_weights})


if __name__ == "__main__":
    command()
