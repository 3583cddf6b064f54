"""Stage 1 on ImageNet-1k: BYOL's 100-epoch recipe, ResNet-50 at 224 px, read at random from TFDS's ArrayRecord files.

    tfds build imagenet2012 --file_format=array_record
    python -m cvsa_jax.main --config=configs/imagenet.py:tpu_v4_32 --workdir=runs/stage1

The archives must be got from image-net.org first; `tfds build` says where it wants them. The options are those of
`configs/folder.py`; without one of an objective it is `:byol`. At the end the kNN holds the features of all images in
the host's memory, 10 GB; --config.eval.knn="()" leaves it out.

Trains a ResNet-50 for 100 epochs in batches of 4096 on a pod, or of 256 without `:tpu_v4_32`. Time and accuracy: not
measured.
"""

from configs import common, folder, recipes


def get_config(arg: str = ""):
    chosen = [option for option in arg.split(",") if option]
    config = folder.get_config(",".join(chosen if set(chosen) & set(recipes.RECIPES) else [*chosen, "byol"]))
    common.tfds(config, "imagenet2012", test_split="validation")
    return config
