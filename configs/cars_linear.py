"""Linear probe and kNN on Stanford Cars (196 models).

python -m cvsa_jax.main --config=configs/cars_linear.py --config.init_from=runs/cars

Passes each image once through the frozen network, best on an accelerator, and fits the probe to the features; `:full`
fits it to augmented crops. Time and accuracy: not measured.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.linear("cars", arg)
