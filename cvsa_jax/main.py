"""`python -m cvsa_jax.main --config=… --workdir=…`: a training or an evaluation, as `config.mode` says."""

from pathlib import Path

from absl import flags

from cvsa_jax import classify, cli, finetune, pretrain
from cvsa_jax.errors import UserError
from cvsa_jax.saliency.network import UNET_MODE
from cvsa_jax.saliency.train_unet import train_unet

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; the same again continues it.")

_TRAINING = {"pretrain": pretrain.train, "finetune": finetune.finetune, UNET_MODE: train_unet}


def main() -> None:
    config = cli.config()
    if config.mode in _TRAINING:
        if not _WORKDIR.value:
            raise UserError("--workdir is missing, e.g. --workdir=runs/mine")
        _TRAINING[config.mode](config, Path(_WORKDIR.value))
    elif config.mode == "linear":
        # The probe's figures belong to the run it probes.
        classify.linear_probe(config, Path(_WORKDIR.value or f"{config.init_from}/linear"))
    else:
        raise UserError(f"config.mode={config.mode!r} is unknown; take {', '.join(_TRAINING)} or linear")


if __name__ == "__main__":
    cli.run(main)
