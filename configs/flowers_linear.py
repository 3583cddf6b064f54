"""Linear probe and kNN on Oxford Flowers-102 (with masks).

python -m cvsa_jax.main --config=configs/flowers_linear.py --config.init_from=runs/flowers
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.linear("flowers", arg)
