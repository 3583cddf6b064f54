"""Fine-tuning on Stanford Dogs (120 breeds, all images of ImageNet).

python -m cvsa_jax.main --config=configs/dogs_finetune.py --config.init_from=runs/dogs --workdir=runs/tuned

Trains the whole network at 224 px (`:448` px) for 100 epochs in batches of 64, on one or more accelerators, after a
sweep of five learning rates. Time and accuracy: not measured.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("dogs", arg)
