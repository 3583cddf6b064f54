"""Linear probe and kNN of one of the demo's runs.

python -m cvsa_jax.main --config=configs/demo_linear.py --config.init_from=runs/demo/cvsa
"""

from configs import common, demo


def get_config(arg: str = ""):
    common.options(arg)
    return demo.get_probe_config()
