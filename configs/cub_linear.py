"""Linear probe and kNN on CUB-200-2011 (200 kinds of birds).

python -m cvsa_jax.main --config=configs/cub_linear.py --config.init_from=runs/cub
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.linear("cub", arg)
