"""Linear probe and kNN on Oxford-IIIT Pet (37 breeds, with masks).

python -m cvsa_jax.main --config=configs/pets_linear.py --config.init_from=runs/pets
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.linear("pets", arg)
