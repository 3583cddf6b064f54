"""Linear probe and kNN on CUB-200-2011 (200 kinds of birds).

python -m cvsa_jax.main --config=configs/cub_linear.py --config.init_from=runs/cub

Passes each image once through the frozen network, best on an accelerator, and fits the probe to the features; `:full`
fits it to augmented crops. Time and accuracy: not measured.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.linear("cub", arg)
