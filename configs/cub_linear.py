"""Linear probe and kNN of a pre-trained run on CUB-200-2011.

python -m cvsa_jax.main --config=configs/cub_linear.py --config.init_from=runs/cub

`configs/cub_linear.py:full` is the protocol for papers: augmented crops, three seeds.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.linear()
    common.full_protocol(config, common.options(arg, "full"))
    common.cub(config)
    return config
