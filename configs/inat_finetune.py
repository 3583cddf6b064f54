"""Fine-tuning on iNaturalist 2018 (8,142 species; `:2021` and `:mini` are those of 2021).

python -m cvsa_jax.main --config=configs/inat_finetune.py --config.init_from=runs/inat --workdir=runs/tuned

Trains the whole network at 224 px (`:448` px) for 100 epochs in batches of 64, on one or more accelerators, after a
sweep of five learning rates. Time and accuracy: not measured.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("inat", arg)
