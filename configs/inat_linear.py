"""Linear probe and kNN on iNaturalist 2018 (8,142 species; `:2021` and `:mini` are those of 2021).

python -m cvsa_jax.main --config=configs/inat_linear.py --config.init_from=runs/inat

Passes each image once through the frozen network, best on an accelerator, and fits the probe to the features; `:full`
fits it to augmented crops. Time and accuracy: not measured.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.linear("inat", arg)
