"""The recipe of each objective: what differs from `common.pretrain()`, which is BYOL's."""

from ml_collections import ConfigDict

# Objective -> config key -> value. SGD's momentum is Nesterov's here.
RECIPES = {
    "byol": {},
    # MoCo v2: facebookresearch/moco, README and main_moco.py
    "moco": {
        "optim.name": "sgd",
        "optim.lr": 0.03,
        "optim.weight_decay": 1e-4,
        "optim.warmup_epochs": 0.0,
        "target.tau": 0.999,
        "target.cosine": False,
    },
    # arXiv 2002.05709, B.6
    "simclr": {"optim.lr": 0.3, "contrast.temperature": 0.1},
    # arXiv 2011.10566, section 3
    "simsiam": {"optim.name": "sgd", "optim.lr": 0.05, "optim.weight_decay": 1e-4, "optim.warmup_epochs": 0.0},
}


def objective(config: ConfigDict, options: set[str]) -> None:
    """Applies the option that names an objective: the plain objective on Random Resized Crops, which needs no saliency
    maps, with its recipe; with `cvsa` besides, Saliency Swap and the alignment stay."""
    chosen = options & set(RECIPES)
    if len(chosen) > 1:
        raise ValueError(f"options {', '.join(sorted(chosen))}: one objective at a time")
    for name in chosen:
        config.objective = name
        config.update_from_flattened_dict(RECIPES[name])
        if "cvsa" not in options:
            config.views.kind = "random_resized_crop"
            config.align.weight = 0.0
