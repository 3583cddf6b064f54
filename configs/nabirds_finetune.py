"""Fine-tuning on NABirds (555 kinds of birds).

python -m cvsa_jax.main --config=configs/nabirds_finetune.py --config.init_from=runs/nabirds --workdir=runs/tuned
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("nabirds", arg)
