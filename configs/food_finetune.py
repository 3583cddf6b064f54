"""Fine-tuning on Food-101 (101 dishes).

python -m cvsa_jax.main --config=configs/food_finetune.py --config.init_from=runs/food --workdir=runs/tuned
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("food", arg)
