"""Linear probe and kNN of a pre-trained run on a folder of images with classes and a test split.

python -m cvsa_jax.main --config=configs/folder_linear.py --config.data.root=my_images --config.init_from=runs/mine

`configs/folder_linear.py:full` is the protocol for papers: augmented crops, three seeds. `--config.label_fractions=
"(0.01,0.05,0.1,0.25,0.5,1.0)"` also probes with fewer labels, and `:few` with 1, 2, 4, 8 and 16 images of each class
and with 15, 30 and 50 %, three lists of each.

Passes each image once through the frozen network and fits the probe. `:full` took 20 minutes on two busy CPU cores for
a small network and 557 train images.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.linear()
    options = common.options(arg, "full", "few")
    common.full_protocol(config, options)
    common.few_labels(config, options)
    return config
