"""Stage 2 on Oxford Flowers-102, trained on train and val together.

python -m cvsa_jax.saliency --config=configs/flowers.py --detector=masks
python -m cvsa_jax.main --config=configs/flowers.py --workdir=runs/flowers --config.init_from=runs/stage1

Trains a ResNet-50 at 224 px for 100 epochs in batches of 256, on one or more accelerators; `:gpu24gb` and `:gpu8gb`
need less memory. Time and accuracy: not measured.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("flowers", arg)
