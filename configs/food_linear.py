"""Linear probe and kNN on Food-101 (101 dishes).

python -m cvsa_jax.main --config=configs/food_linear.py --config.init_from=runs/food
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.linear("food", arg)
