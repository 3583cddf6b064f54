"""Fine-tuning on Stanford Cars (196 models).

python -m cvsa_jax.main --config=configs/cars_finetune.py --config.init_from=runs/cars --workdir=runs/tuned
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.finetune("cars", arg)
