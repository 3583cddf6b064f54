"""Linear probe and kNN on Stanford Dogs (120 breeds, all images of ImageNet).

python -m cvsa_jax.main --config=configs/dogs_linear.py --config.init_from=runs/dogs
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.linear("dogs", arg)
