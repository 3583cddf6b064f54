"""Fine-tuning on Stanford Cars (196 models).

python -m cvsa_jax.main --config=configs/cars_finetune.py --config.init_from=runs/cars --workdir=runs/tuned

Trains the whole network at 224 px (`:448` px) for 100 epochs in batches of 64, on one or more accelerators, after a
sweep of five learning rates. Time and accuracy: not measured.

The paper reports 89.76 % after stage 1 on ImageNet, CVSA and fine-tuning.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("cars", arg)
