"""Linear probe and kNN of a pre-trained run on a folder of images with classes and a test split.

python -m cvsa_jax.main --config=configs/folder_linear.py --config.data.root=my_images --config.init_from=runs/mine
"""

from configs import common


def get_config(arg: str = ""):
    common.options(arg)
    return common.linear()
