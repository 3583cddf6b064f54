"""Stage 2 on FGVC-Aircraft 2013b (100 variants; `:family`, `:manufacturer`), trained on train and val together.

python -m cvsa_jax.saliency --config=configs/aircraft.py --detector=boxes
python -m cvsa_jax.main --config=configs/aircraft.py --workdir=runs/aircraft --config.init_from=runs/stage1
"""

from configs import sets


def get_config(arg: str = ""):
    return sets.pretrain("aircraft", arg)
