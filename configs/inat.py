"""Stage 2 on iNaturalist 2018 (8,142 species; `:2021` and `:mini` are those of 2021).

python -m cvsa_jax.saliency --config=configs/inat.py --detector=rbd
python -m cvsa_jax.main --config=configs/inat.py --workdir=runs/inat --config.init_from=runs/stage1

Trains a ResNet-50 at 224 px for 100 epochs in batches of 256, on one or more accelerators; `:gpu24gb` and `:gpu8gb`
need less memory. Time and accuracy: not measured.
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("inat", arg)
