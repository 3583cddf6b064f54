"""Stage 2 on Oxford-IIIT Pet (3,680 train images of 37 breeds, with masks), ResNet-50 at 224 px, from TFDS's files.

    tfds build oxford_iiit_pet --file_format=array_record
    python -m cvsa_jax.saliency --config=configs/pets.py --detector=masks
    python -m cvsa_jax.main --config=configs/pets.py --workdir=runs/pets --config.init_from=runs/stage1

The options are those of `configs/folder.py` but for `:tpu_v4_32`, whose batch is more than all images. The pattern for
any other set of TFDS is the last line but one.
"""

from configs import common, folder


def get_config(arg: str = ""):
    config = folder.get_config(arg)
    common.check_large(arg, 3680)
    common.tfds(config, "oxford_iiit_pet", test_split="test")
    return config
