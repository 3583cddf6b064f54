"""The demo's runs: a procedural set of birds, a small network, minutes on two CPU cores. `make demo` runs them all.

`configs/demo.py` is stage 2 (CVSA), `configs/demo.py:byol` stage 1, `configs/demo.py:mask_head` the control; the other
objectives are options too, as in `configs/folder.py`.

The demo trains stage 1, then continues with BYOL and with CVSA, so that both share their first half. All of it took 4.8
minutes on two CPU cores; `configs/demo_linear.py` has the figures.
"""

from configs import common, recipes


def get_config(arg: str = ""):
    options = common.options(arg, "mask_head", "cvsa", "same", *recipes.RECIPES)
    config = common.pretrain()
    recipes.objective(config, options)
    common.small(config)
    config.data.kind = "procedural"
    config.total_steps = 180
    config.model.width = 16
    # Its birds are small: the boxes hold one without much of its surroundings.
    config.views.source_area = (0.08, 0.5)
    config.views.paste_area = (0.2, 0.6)
    config.eval.pooling = "attention"
    if "mask_head" in options:
        config.align.form = "mask_head"
    return config


def get_probe_config():
    """The demo's linear probe."""
    config = common.linear()
    config.data.kind = "procedural"
    config.eval.pooling = "attention"
    return config
