"""Fine-tuning on FGVC-Aircraft 2013b (100 variants; `:family`, `:manufacturer`).

python -m cvsa_jax.main --config=configs/aircraft_finetune.py --config.init_from=runs/aircraft --workdir=runs/tuned

Trains the whole network at 224 px (`:448` px) for 100 epochs in batches of 64, on one or more accelerators, after a
sweep of five learning rates. Time and accuracy: not measured.

The paper reports 87.27 % after stage 1 on ImageNet, CVSA and fine-tuning.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("aircraft", arg)
