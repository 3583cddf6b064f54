"""`python -m cvsa_jax.main --config=… --workdir=…`: pre-training or evaluation, as `config.mode` says."""

from pathlib import Path

from absl import flags

from cvsa_jax import classify, cli, pretrain
from cvsa_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; the same again continues it.")


def main() -> None:
    config = cli.config()
    if config.mode == "pretrain":
        if not _WORKDIR.value:
            raise UserError("--workdir is missing, e.g. --workdir=runs/mine")
        pretrain.train(config, Path(_WORKDIR.value))
    elif config.mode == "linear":
        # The probe's figures belong to the run it probes.
        classify.linear_probe(config, Path(_WORKDIR.value or f"{config.init_from}/linear"))
    else:
        raise UserError(f"config.mode={config.mode!r} is unknown; take pretrain or linear")


if __name__ == "__main__":
    cli.run(main)
