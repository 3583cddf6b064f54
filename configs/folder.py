"""Your own images: `my_images/*.jpg` without labels, or `my_images/<class>/*.jpg`.

    python -m cvsa_jax.saliency --config=configs/folder.py --config.data.root=my_images --detector=center
    python -m cvsa_jax.main --config=configs/folder.py --config.data.root=my_images --workdir=runs/mine

`configs/folder.py:small` is a recipe for a laptop: 48 px views, a small network, Adam. `:byol` is stage 1 (Random
Resized Crop, no alignment, needs no saliency maps); `:small,byol` is both.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.pretrain()
    options = common.options(arg, "small", "byol")
    if "small" in options:
        common.small(config)
    if "byol" in options:
        common.byol(config)
    return config
