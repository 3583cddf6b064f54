"""Stage 2 on Oxford-IIIT Pet (37 breeds, with masks).

python -m cvsa_jax.saliency --config=configs/pets.py --detector=masks
python -m cvsa_jax.main --config=configs/pets.py --workdir=runs/pets --config.init_from=runs/stage1
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("pets", arg)
