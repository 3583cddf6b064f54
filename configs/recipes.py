"""The recipe of each objective: what differs from `common.pretrain()`, which is BYOL's."""

from ml_collections import ConfigDict


def _views(**strengths: float) -> dict[str, float]:
    """The same photometric strengths for both views."""
    return {f"augment.{view}.{key}": value for view in ("view1", "view2") for key, value in strengths.items()}


# What MoCo v2 and SimSiam share: facebookresearch/moco at 010242b, main_moco.py, the branch `args.aug_plus`;
# facebookresearch/simsiam at 39ac33e, main_simsiam.py, `augmentation`. Both optimise with torch's SGD, whose momentum
# is not Nesterov's and whose weight decay is on all parameters, along a cosine without warm-up.
_MOCO_AND_SIMSIAM = {
    "views.crop_area": (0.2, 1.0),
    **_views(saturation=0.4, blur_prob=0.5, solarize_prob=0.0),
    "optim.name": "sgd",
    "optim.nesterov": False,
    "optim.decay": "all",
    "optim.weight_decay": 1e-4,
    "optim.warmup_epochs": 0.0,
}
# Objective -> config key -> value.
RECIPES = {
    "byol": {},
    # The same file's flags: --lr 0.03 at --batch-size 256, --epochs 200, --moco-m 0.999; README: --moco-t 0.2 of v2.
    "moco": _MOCO_AND_SIMSIAM
    | {
        "optim.lr": 0.03,
        "batch_size": 256,
        "total_epochs": 200.0,
        "target.tau": 0.999,
        "target.reference_batch": 256,
        "target.cosine": False,
    },
    # arXiv 2002.05709, B.6 (LARS, .3 per 256 images, 1e-6, 10 epochs of warm-up, 100 epochs, batch 4096), appendix A;
    # google-research/simclr at 244e712, data_util.py: color_jitter (strength 1), batch_random_blur.
    "simclr": {
        **_views(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur_prob=0.5, solarize_prob=0.0),
        "optim.lr": 0.3,
        "batch_size": 4096,
        "contrast.temperature": 0.1,
    },
    # The same file's flags: --lr 0.05 per 256 images, --batch-size 512, --epochs 100, --fix-pred-lr.
    "simsiam": _MOCO_AND_SIMSIAM | {"optim.lr": 0.05, "batch_size": 512, "optim.predictor": "fixed"},
}
_VIEWS = ("augment.", "views.crop_area")  # what `same` leaves as BYOL has it


def objective(config: ConfigDict, options: set[str]) -> None:
    """Applies the option that names an objective: the plain objective on Random Resized Crops, which needs no saliency
    maps, with its authors' recipe; with `cvsa` besides, Saliency Swap and the alignment stay, and with `same` BYOL's
    augmentation, batch and epochs, for comparisons in which only the objective and its optimiser differ."""
    chosen = options & set(RECIPES)
    if len(chosen) > 1:
        raise ValueError(f"options {', '.join(sorted(chosen))}: one objective at a time")
    for name in chosen:
        recipe = RECIPES[name]
        if "same" in options:
            left = (*_VIEWS, "batch_size", "total_epochs")
            recipe = {key: value for key, value in recipe.items() if not key.startswith(left)}
        config.objective = name
        config.update_from_flattened_dict(recipe)
        if "cvsa" not in options:
            config.views.kind = "random_resized_crop"
            config.align.weight = 0.0
