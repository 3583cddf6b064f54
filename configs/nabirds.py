"""Stage 2 on NABirds (555 kinds of birds).

python -m cvsa_jax.saliency --config=configs/nabirds.py --detector=boxes
python -m cvsa_jax.main --config=configs/nabirds.py --workdir=runs/nabirds --config.init_from=runs/stage1
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("nabirds", arg)
