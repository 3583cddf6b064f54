"""Stage 2 on Stanford Cars (196 models).

python -m cvsa_jax.saliency --config=configs/cars.py --detector=boxes
python -m cvsa_jax.main --config=configs/cars.py --workdir=runs/cars --config.init_from=runs/stage1

Trains a ResNet-50 at 224 px for 100 epochs in batches of 256, on one or more accelerators; `:gpu24gb` and `:gpu8gb`
need less memory. Time and accuracy: not measured.

The paper reports 89.76 % after stage 1 on ImageNet, CVSA and fine-tuning.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("cars", arg)
