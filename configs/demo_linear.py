"""Linear probe and kNN of one of the demo's runs.

python -m cvsa_jax.main --config=configs/demo_linear.py --config.init_from=runs/demo/cvsa

Runs on a CPU; its time is part of the demo's. It gave CVSA 47.8 % and BYOL 23.3 % (chance 8.3, one seed, standard error
2; kNN 33.3 and 17.8 %).
"""

from configs import common, demo


def get_config(arg: str = ""):
    common.options(arg)
    return demo.get_probe_config()
