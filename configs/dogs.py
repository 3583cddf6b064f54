"""Stage 2 on Stanford Dogs (120 breeds, all images of ImageNet).

python -m cvsa_jax.saliency --config=configs/dogs.py --detector=boxes
python -m cvsa_jax.main --config=configs/dogs.py --workdir=runs/dogs --config.init_from=runs/stage1

Trains a ResNet-50 at 224 px for 100 epochs in batches of 256, on one or more accelerators; `:gpu24gb` and `:gpu8gb`
need less memory. Time and accuracy: not measured.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("dogs", arg)
