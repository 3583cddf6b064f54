"""Stage 2 on CUB-200-2011 (200 kinds of birds).

python -m cvsa_jax.saliency --config=configs/cub.py --detector=masks
python -m cvsa_jax.main --config=configs/cub.py --workdir=runs/cub --config.init_from=runs/stage1

Trains a ResNet-50 at 224 px for 100 epochs in batches of 256, on one or more accelerators; `:gpu24gb` and `:gpu8gb`
need less memory. Time and accuracy: not measured.

The paper reports 77.10 % after stage 1 on ImageNet, CVSA and fine-tuning.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("cub", arg)
