"""Stage 2 on iNaturalist 2018 (8,142 species; `:2021` and `:mini` are those of 2021).

python -m cvsa_jax.saliency --config=configs/inat.py --detector=rbd
python -m cvsa_jax.main --config=configs/inat.py --workdir=runs/inat --config.init_from=runs/stage1
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("inat", arg)
