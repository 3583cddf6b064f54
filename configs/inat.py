"""Stage 2 on iNaturalist 2018 (437,513 train images of 8,142 species), ResNet-50 at 224 px, read from TFDS's files.

    tfds build i_naturalist2018 --file_format=array_record
    python -m cvsa_jax.saliency --config=configs/inat.py --detector=rbd --shard=0/64     and 1/64, … on other machines
    python -m cvsa_jax.main --config=configs/inat.py:tpu_v4_32 --workdir=runs/inat --config.init_from=runs/stage1

`:2021` is iNaturalist 2021 (`i_naturalist2021`: 2.7 million images of 10,000 species), `:mini` its smaller train set of
500,000 images. The other options are those of `configs/folder.py`.
"""

from configs import common, folder


def get_config(arg: str = ""):
    given = [option for option in arg.split(",") if option]
    years = {"2021", "mini"} & set(given)
    config = folder.get_config(",".join(option for option in given if option not in years))
    common.tfds(
        config, "i_naturalist2021" if years else "i_naturalist2018", test_split="val" if years else "validation"
    )
    if "mini" in years:
        config.data.train_split = "mini"
    return config
