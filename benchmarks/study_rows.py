"""What the study compares: the sets that are drawn, and the suites of rows, each row a run and what differs in it."""

import dataclasses

from ml_collections import ConfigDict

from configs import common, recipes

# Name of a drawn set -> keys of config.data.procedural. A bird covers 5 to 10 % of its image, 9 to 24 % (the demo's),
# 18 to 30 %.
DRAWN = {
    "small_objects": {"scale": (0.145, 0.19)},
    "procedural": {},
    "large_objects": {"scale": (0.275, 0.34)},
    "telling": {"background": "telling"},
    "coarse": {"bodies": "different"},
}

CROPS = {"views.kind": "random_resized_crop"}
PLAIN = {"align.weight": 0.0}


@dataclasses.dataclass(frozen=True)
class Row:
    """A run of the study.

    Attributes:
        changes: of the config of stage 2, by key.
        options: the objective, and whether it keeps the swap and the alignment, as the configs take them.
        start: `stage1`; `as_it_is`, which is stage 1 and no further step; `scratch`, of as many steps as stage 1 and
            stage 2; `supervised`, of as many steps with all labels of the train images; or `random`, which is not
            trained at all.
        maps: the detector of its maps; `args.detector` if not given; or `attention of <row>`, that of another row's
            network.
    """

    changes: dict = dataclasses.field(default_factory=dict)
    options: tuple[str, ...] = ()
    start: str = "stage1"
    maps: str | None = None


CVSA = Row()
BYOL = Row(CROPS | PLAIN)
SUITES = {
    "core": {
        "byol": BYOL,
        "cvsa": CVSA,
        "mask_head": Row({"align.form": "mask_head"}),
        "swap": Row(PLAIN),
        "align": Row(CROPS),
        "masked_dense": Row({"align.form": "masked_dense"}),
        # The box goes over the whole view, so nothing of a background is left.
        "saliency_crop": Row(PLAIN | {"views.paste_area": (1.0, 1.0), "views.hole": "size"}),
        "saliency_crop_align": Row({"views.paste_area": (1.0, 1.0), "views.hole": "size"}),
        "stage1": Row(start="as_it_is"),
        "random": Row(start="random"),
        "supervised": Row(start="supervised"),
        "cvsa_scratch": Row(start="scratch"),
        "byol_scratch": Row(CROPS | PLAIN, start="scratch"),
    },
    "objectives": {
        f"{name}{'_cvsa' * with_cvsa}": Row(options=(name, "cvsa") if with_cvsa else (name,))
        for name in ("byol", "moco", "simclr", "simsiam")
        for with_cvsa in (False, True)
    },
    "ablation": {
        "cvsa": CVSA,
        "hole_size": Row({"views.hole": "size"}),
        "stretch": Row({"views.paste": "stretch"}),
        "hole_size_stretch": Row({"views.hole": "size", "views.paste": "stretch"}),
        "keep_aspect": Row({"views.paste": "keep_aspect"}),
        "common_background": Row({"views.background": "common"}),
        "one_view": Row({"views.swapped_views": 1}),
        "swap_prob_half": Row({"views.swap_prob": 0.5}),
        "small_crops": Row({"views.source_area": (0.08, 0.4)}),
        "large_crops": Row({"views.source_area": (0.3, 0.9)}),
        "small_pastes": Row({"views.paste_area": (0.1, 0.5)}),
        "large_pastes": Row({"views.paste_area": (0.4, 1.0)}),
        "weight_0.3": Row({"align.weight": 0.3}),
        "weight_3": Row({"align.weight": 3.0}),
        **{form: Row({"align.form": form}) for form in ("contrast_bce", "propagate", "cosine", "minmax", "pairwise")},
    },
    # Forms at equal pull: at a constant that gives each the gradient of `kl` at weight 1 and random weights, on the
    # demo's network (docs/measurements/results.md), and held at a ratio.
    "balance": {
        "cvsa": CVSA,
        "kl_held": Row({"align.balance": "gradient"}),
        "cosine": Row({"align.form": "cosine"}),
        "cosine_constant": Row({"align.form": "cosine", "align.weight": 0.57}),
        "cosine_held": Row({"align.form": "cosine", "align.balance": "gradient"}),
        "pairwise": Row({"align.form": "pairwise"}),
        "pairwise_constant": Row({"align.form": "pairwise", "align.weight": 16.0}),
        "pairwise_held": Row({"align.form": "pairwise", "align.balance": "gradient"}),
    },
    "maps": {
        "byol": BYOL,
        "masks": Row(maps="masks"),
        "rbd": Row(maps="rbd"),
        "encoder": Row(maps="encoder"),
        "center": Row(maps="center"),
    },
    # Whose maps pay: detectors beside the true masks, from random weights; `byol_scratch` is what has none.
    "detectors": {
        "random": Row(start="random"),
        "byol_scratch": Row(CROPS | PLAIN, start="scratch"),
        **{maps: Row(maps=maps, start="scratch") for maps in ("rbd", "focus", "isnet", "masks")},
        "mask_head": Row({"align.form": "mask_head"}, maps="rbd", start="scratch"),
    },
    # No map from outside: those of stage 1's own features, then those of the attention that they taught.
    "loop": {
        "byol": BYOL,
        "rbd": Row(maps="rbd"),
        "loop_1": Row(maps="encoder"),
        "loop_2": Row(maps="attention of loop_1"),
        "loop_3": Row(maps="attention of loop_2"),
    },
}
# The row that the others are compared with.
BASES = {
    "core": "byol",
    "objectives": "byol",
    "ablation": "cvsa",
    "balance": "cvsa",
    "maps": "byol",
    "detectors": "byol_scratch",
    "loop": "byol",
}


def config_of(row: Row, name: str, root: str, seed: int, scale: str, where: str) -> ConfigDict:
    """The recipe of configs/folder.py:small, or of configs/folder_finetune.py:small, at a scale (`depth=8,width=32,…`;
    `rate`: Adam's learning rate, 1e-3 if not given; `stem=imagenet`), with what the row changes."""
    told = dict(part.split("=") for part in scale.split(","))
    stem, rate = told.pop("stem", "small"), float(told.pop("rate", 1e-3))
    sizes = {key: int(value) for key, value in told.items()}
    config = common.finetune() if row.start == "supervised" else common.pretrain()
    if row.start == "supervised":
        common.finetune_options(config, "small")
    else:
        recipes.objective(config, set(row.options))
        common.small(config)
        config.optim.lr = 8 * rate * 32 / sizes["batch"]  # which is per 256 images
        config.views.where, config.watch.knn_steps = where, 0
    config.seed, config.batch_size = seed, sizes["batch"]
    config.total_steps = sizes["steps"] * (2 if row.start in ("scratch", "supervised") else 1)
    config.checkpoint_steps, config.log_steps = config.total_steps, 50
    config.model.depth, config.model.width, config.model.stem = sizes["depth"], sizes["width"], stem
    config.views.size = sizes["size"]
    config.eval.size = config.eval.resize = sizes["size"] * 4 // 3
    config.data.kind, config.data.root = ("procedural", "") if name in DRAWN else ("folder", root)
    config.data.procedural.seed = seed
    config.data.procedural.update(DRAWN.get(name, {}))
    config.update_from_flattened_dict(row.changes)
    if row.start == "random":
        config.total_steps, config.optim.warmup_steps, config.optim.lr = 1, 0, 0.0
        config.update_from_flattened_dict(CROPS | PLAIN)
    return config
