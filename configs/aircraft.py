"""Stage 2 on FGVC-Aircraft 2013b (100 variants; `:family`, `:manufacturer`), trained on train and val together.

python -m cvsa_jax.saliency --config=configs/aircraft.py --detector=boxes
python -m cvsa_jax.main --config=configs/aircraft.py --workdir=runs/aircraft --config.init_from=runs/stage1

Trains a ResNet-50 at 224 px for 100 epochs in batches of 256, on one or more accelerators; `:gpu24gb` and `:gpu8gb`
need less memory. Time and accuracy: not measured.

The paper reports 87.27 % after stage 1 on ImageNet, CVSA and fine-tuning.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("aircraft", arg)
