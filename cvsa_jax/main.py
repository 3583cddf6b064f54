"""`python -m cvsa_jax.main --config=… --workdir=…`: a training or an evaluation, as `config.mode` says."""

import os
import sys

from absl import flags

from cvsa_jax.runs import finetune, pretrain
from cvsa_jax.runs import linear as classify
from cvsa_jax.runs.saliency_unet import train_unet
from cvsa_jax.runtime import cli, distributed
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import as_path
from cvsa_jax.saliency.detectors.network import UNET_MODE

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; the same again continues it.")

_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where no launcher tells it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0, with --coordinator.")

_TRAINING = {"pretrain": pretrain.train, "finetune": finetune.finetune, UNET_MODE: train_unet}


def main() -> None:
    config = cli.config()
    distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if not distributed.is_first():  # one process speaks; errors go to another stream
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  open to the end
    if config.mode in _TRAINING:
        if not _WORKDIR.value:
            raise UserError("--workdir is missing, e.g. --workdir=runs/mine")
        _TRAINING[config.mode](config, as_path(_WORKDIR.value))
    elif config.mode == "linear":
        # The probe's figures belong to the run it probes.
        classify.linear_probe(config, as_path(_WORKDIR.value or f"{config.init_from}/linear"))
    else:
        raise UserError(f"config.mode={config.mode!r} is unknown; take {', '.join(_TRAINING)} or linear")


if __name__ == "__main__":
    cli.run(main)
