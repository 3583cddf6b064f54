"""Linear probe and kNN on FGVC-Aircraft 2013b (100 variants; `:family`, `:manufacturer`).

python -m cvsa_jax.main --config=configs/aircraft_linear.py --config.init_from=runs/aircraft

Passes each image once through the frozen network, best on an accelerator, and fits the probe to the features; `:full`
fits it to augmented crops. Time and accuracy: not measured.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.linear("aircraft", arg)
