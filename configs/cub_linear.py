"""Linear probe and kNN of a pre-trained run on CUB-200-2011.

python -m cvsa_jax.main --config=configs/cub_linear.py --config.init_from=runs/cub
"""

from configs import common


def get_config(arg: str = ""):
    common.options(arg)
    config = common.linear()
    config.data.kind = "cub"
    config.data.root = "data/CUB_200_2011"
    return config
