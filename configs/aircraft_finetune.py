"""Fine-tuning on FGVC-Aircraft 2013b (100 variants; `:family`, `:manufacturer`).

python -m cvsa_jax.main --config=configs/aircraft_finetune.py --config.init_from=runs/aircraft --workdir=runs/tuned
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("aircraft", arg)
