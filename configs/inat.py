"""Stage 2 on iNaturalist 2021 (2.7 million images of 10,000 species), ResNet-50 at 224 px, read from TFDS's files.

    tfds build i_naturalist2021 --file_format=array_record
    python -m cvsa_jax.saliency --config=configs/inat.py --detector=rbd --shard=0/64     and 1/64, … on other machines
    python -m cvsa_jax.main --config=configs/inat.py:tpu_v4_32 --workdir=runs/inat --config.init_from=runs/stage1

`--config.data.train_split=mini` takes the 500,000 images of the smaller train set. The options are those of
`configs/folder.py`.
"""

from configs import common, folder


def get_config(arg: str = ""):
    config = folder.get_config(arg)
    common.tfds(config, "i_naturalist2021", test_split="val")
    return config
