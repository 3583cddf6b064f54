"""Linear probe and kNN on NABirds (555 kinds of birds).

python -m cvsa_jax.main --config=configs/nabirds_linear.py --config.init_from=runs/nabirds
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.linear("nabirds", arg)
