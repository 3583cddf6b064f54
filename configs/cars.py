"""Stage 2 on Stanford Cars (196 models).

python -m cvsa_jax.saliency --config=configs/cars.py --detector=boxes
python -m cvsa_jax.main --config=configs/cars.py --workdir=runs/cars --config.init_from=runs/stage1
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("cars", arg)
