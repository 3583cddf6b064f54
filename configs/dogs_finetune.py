"""Fine-tuning on Stanford Dogs (120 breeds, all images of ImageNet).

python -m cvsa_jax.main --config=configs/dogs_finetune.py --config.init_from=runs/dogs --workdir=runs/tuned
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("dogs", arg)
