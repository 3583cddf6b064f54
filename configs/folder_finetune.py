"""Fine-tuning of a pre-trained run on a folder of images with classes and a test split, at 224 px.

python -m cvsa_jax.main --config=configs/folder_finetune.py --config.data.root=my_images \
  --config.init_from=runs/mine --workdir=runs/mine_finetuned

Options, joined with commas: `:448` px; `:scratch` is the supervised baseline without pre-training, where
--config.init_from stays out; `:small` is for runs of `configs/folder.py:small`. A file of weights in --config.init_from
gives the baseline from these.
`--config.label_fractions="(0.01,0.05,0.1,0.25,0.5,1.0)"` also trains with fewer labels.

Trains the whole network for 100 epochs in batches of 64 after a sweep of learning rates, on an accelerator; `:small`
runs on a CPU. 20 epochs of `:small` on butterflies reached 75.6 % after CVSA and 70.2 % from random weights
(docs/measurements/results.md). Time: not measured.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.finetune()
    common.finetune_options(config, arg)
    return config
