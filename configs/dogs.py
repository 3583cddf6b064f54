"""Stage 2 on Stanford Dogs (120 breeds, all images of ImageNet).

python -m cvsa_jax.saliency --config=configs/dogs.py --detector=boxes
python -m cvsa_jax.main --config=configs/dogs.py --workdir=runs/dogs --config.init_from=runs/stage1
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("dogs", arg)
