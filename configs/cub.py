"""Stage 2 on CUB-200-2011 with ResNet-50 at 224 px: BYOL's 100-epoch recipe.

    python -m cvsa_jax.saliency --config=configs/cub.py --detector=masks
    python -m cvsa_jax.main --config=configs/cub.py --workdir=runs/cub --config.init_from=runs/stage1

Masks need the `segmentations` archive; `--detector=center` needs nothing but says little.
"""

from configs import common


def get_config(arg: str = ""):
    common.options(arg)
    config = common.pretrain()
    config.data.kind = "cub"
    config.data.root = "data/CUB_200_2011"
    return config
