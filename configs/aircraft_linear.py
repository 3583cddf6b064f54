"""Linear probe and kNN on FGVC-Aircraft 2013b (100 variants; `:family`, `:manufacturer`).

python -m cvsa_jax.main --config=configs/aircraft_linear.py --config.init_from=runs/aircraft
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.linear("aircraft", arg)
