"""Fine-tuning on CUB-200-2011 (200 kinds of birds).

python -m cvsa_jax.main --config=configs/cub_finetune.py --config.init_from=runs/cub --workdir=runs/tuned
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("cub", arg)
