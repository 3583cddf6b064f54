"""Fine-tuning on Food-101 (101 dishes).

python -m cvsa_jax.main --config=configs/food_finetune.py --config.init_from=runs/food --workdir=runs/tuned

Trains the whole network at 224 px (`:448` px) for 100 epochs in batches of 64, on one or more accelerators, after a
sweep of five learning rates. Time and accuracy: not measured.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("food", arg)
