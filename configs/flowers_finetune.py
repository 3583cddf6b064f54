"""Fine-tuning on Oxford Flowers-102 (with masks).

python -m cvsa_jax.main --config=configs/flowers_finetune.py --config.init_from=runs/flowers --workdir=runs/tuned
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("flowers", arg)
