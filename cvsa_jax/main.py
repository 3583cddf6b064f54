"""`python -m cvsa_jax.main --config=… --workdir=…`: a training or an evaluation, as `config.mode` says."""

import os

from absl import flags

from cvsa_jax.runtime import cli
from cvsa_jax.runtime.errors import UserError

flags.adopt_module_key_flags(cli)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; the same again continues it.")
_MODES = ("pretrain", "finetune", "linear", "saliency_unet")


def main() -> None:
    config, workdir = cli.config(), _WORKDIR.value
    if config.mode not in _MODES:
        raise UserError(f"config.mode={config.mode!r} is unknown; take one of {', '.join(_MODES)}")
    if config.mode == "linear":
        # The probe's figures belong to the run it probes; a file has no room for them.
        start = os.path.expanduser(config.init_from)
        workdir = workdir or ("" if os.path.isfile(start) else f"{start}/linear")
    if not workdir:
        raise UserError("--workdir is missing, e.g. --workdir=runs/mine")

    # Now that the command line is right, what takes seconds to import.
    from cvsa_jax.runs import finetune, linear, pretrain, saliency_unet
    from cvsa_jax.runtime.files import as_path
    from cvsa_jax.training.resume import check_mode

    cli.join_cluster()
    check_mode(config, as_path(workdir))
    stories = {
        "pretrain": pretrain.train,
        "finetune": finetune.finetune,
        "linear": linear.linear_probe,
        "saliency_unet": saliency_unet.train_unet,
    }
    stories[config.mode](config, as_path(workdir))


def command() -> None:
    """The console command `cvsa-train`."""
    cli.run(main)


if __name__ == "__main__":
    command()
