"""Stage 2 on CUB-200-2011 with ResNet-50 at 224 px: BYOL's 100-epoch recipe.

    python -m cvsa_jax.saliency --config=configs/cub.py --detector=masks
    python -m cvsa_jax.main --config=configs/cub.py --workdir=runs/cub --config.init_from=runs/stage1

Masks need the `segmentations` archive; `--detector=center` needs nothing but says little. The options are those of
`configs/folder.py`: `:small`, `:byol`, `:moco`, `:simclr`, `:simsiam`, `:cvsa`, `:gpu8gb`, `:gpu24gb`; and `:scratch`
where there is no stage 1. `:tpu_v4_32` is not among them: its batch would make 146 steps of the whole run.
"""

from configs import common, folder


def get_config(arg: str = ""):
    config = folder.get_config(arg)
    common.check_large(arg, 5994)
    common.cub(config)
    return config
