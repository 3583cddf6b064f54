"""The supervised saliency detector, trained on any folder of images with masks.

python -m cvsa_jax.main --config=configs/saliency_unet.py --config.data.root=with_masks --workdir=runs/unet
python -m cvsa_jax.saliency --config=configs/folder.py --config.data.root=my_images --detector=unet --run=runs/unet
"""

from configs import common


def get_config(arg: str = ""):
    common.options(arg)
    return common.saliency_unet()
