"""The supervised saliency detector, trained on any folder of images with masks.

python -m cvsa_jax.main --config=configs/saliency_unet.py --config.data.root=with_masks --workdir=runs/unet
python -m cvsa_jax.saliency --config=configs/folder.py --config.data.root=my_images --detector=unet --run=runs/unet

Trains a small U-Net at 128 px for 62 epochs in batches of 16. On two busy CPU cores 2,400 steps on the butterflies took
26 minutes; the recipe then reached an IoU of .862 on their test images (docs/measurements/maps.md). It transfers poorly
to other objects.
"""

from configs import common


def get_config(arg: str = ""):
    common.options(arg)
    return common.saliency_unet()
