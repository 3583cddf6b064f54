"""Stage 2 on NABirds (555 kinds of birds).

python -m cvsa_jax.saliency --config=configs/nabirds.py --detector=boxes
python -m cvsa_jax.main --config=configs/nabirds.py --workdir=runs/nabirds --config.init_from=runs/stage1

Trains a ResNet-50 at 224 px for 100 epochs in batches of 256, on one or more accelerators; `:gpu24gb` and `:gpu8gb`
need less memory. Time and accuracy: not measured.

The paper reports 79.64 % after stage 1 on ImageNet, CVSA and fine-tuning.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("nabirds", arg)
