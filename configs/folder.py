"""Your own images: `my_images/*.jpg` without labels, or `my_images/<class>/*.jpg`.

    python -m cvsa_jax.saliency --config=configs/folder.py --config.data.root=my_images --detector=rbd
    python -m cvsa_jax.main --config=configs/folder.py --config.data.root=my_images --workdir=runs/mine \
      --config.saliency.detector=rbd

`configs/folder.py:small` is a recipe for a laptop: 48 px views, a small network, Adam. `:byol` is stage 1 (Random
Resized Crop, no alignment, needs no saliency maps), and so are `:moco`, `:simclr` and `:simsiam` for these objectives;
`:moco,cvsa` is MoCo with Saliency Swap and the alignment. `:scratch` is a recipe for a few thousand images without a
stage 1. `:gpu8gb`, `:gpu24gb` and `:tpu_v4_32` fit ResNet-50 at 224 px into such a device. Options are joined:
`:small,byol`.

Without options it trains a ResNet-50 for 100 epochs in batches of 256, on one or more accelerators; time and
accuracy: not measured. 1,600 steps of `:small` on 557 butterflies took 15 min 40 s on two busy CPU cores; pooled by
attention, the linear probe then had 70.5 % and kNN 61.5 % (chance 10.9, one seed, standard error 3).
"""

from configs import common, recipes


def get_config(arg: str = ""):
    config = common.pretrain()
    options = common.options(arg, "small", "scratch", "cvsa", "same", *recipes.RECIPES, *common.HARDWARE)
    recipes.objective(config, options)
    if "scratch" in options:
        common.scratch(config)
    common.hardware(config, options)
    if "small" in options:
        common.small(config)
    return config
