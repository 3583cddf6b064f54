"""Linear probe and kNN on Stanford Cars (196 models).

python -m cvsa_jax.main --config=configs/cars_linear.py --config.init_from=runs/cars
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.linear("cars", arg)
