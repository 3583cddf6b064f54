"""Stage 2 on CUB-200-2011 (200 kinds of birds).

python -m cvsa_jax.saliency --config=configs/cub.py --detector=masks
python -m cvsa_jax.main --config=configs/cub.py --workdir=runs/cub --config.init_from=runs/stage1
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("cub", arg)
