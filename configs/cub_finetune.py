"""Fine-tuning of a pre-trained run on CUB-200-2011, at 224 px; options as in `configs/folder_finetune.py`.

python -m cvsa_jax.main --config=configs/cub_finetune.py --config.init_from=runs/cub --workdir=runs/cub_finetuned
"""

from configs import common


def get_config(arg: str = ""):
    config = common.finetune()
    common.finetune_options(config, arg)
    common.cub(config)
    return config
