"""Fine-tuning on Oxford-IIIT Pet (37 breeds).

python -m cvsa_jax.main --config=configs/pets_finetune.py --config.init_from=runs/pets --workdir=runs/tuned

Trains the whole network at 224 px (`:448` px) for 100 epochs in batches of 64, on one or more accelerators, after a
sweep of five learning rates. Time and accuracy: not measured.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("pets", arg)
