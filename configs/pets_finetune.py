"""Fine-tuning on Oxford-IIIT Pet (37 breeds, with masks).

python -m cvsa_jax.main --config=configs/pets_finetune.py --config.init_from=runs/pets --workdir=runs/tuned
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("pets", arg)
