"""Stage 2 on Oxford Flowers-102 (with masks), trained on train and val together.

python -m cvsa_jax.saliency --config=configs/flowers.py --detector=masks
python -m cvsa_jax.main --config=configs/flowers.py --workdir=runs/flowers --config.init_from=runs/stage1
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("flowers", arg)
