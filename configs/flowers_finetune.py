"""Fine-tuning on Oxford Flowers-102.

python -m cvsa_jax.main --config=configs/flowers_finetune.py --config.init_from=runs/flowers --workdir=runs/tuned

Trains the whole network at 224 px (`:448` px) for 100 epochs in batches of 64, on one or more accelerators, after a
sweep of five learning rates. Time and accuracy: not measured.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("flowers", arg)
