"""Stage 2 on Food-101 (101 dishes).

python -m cvsa_jax.saliency --config=configs/food.py --detector=rbd
python -m cvsa_jax.main --config=configs/food.py --workdir=runs/food --config.init_from=runs/stage1
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("food", arg)
