"""Every figure's title, once, and the tables that are made of figures."""

from collections.abc import Callable, Iterable

from cvsa_jax.report.html import Table

TITLES = {
    "linear_top1": "linear top-1",
    "linear_mean_class": "mean per class",
    "linear_top5": "top-5",
    "knn_top1": "kNN top-1",
    "recall_at_1": "recall@1",
    "map_at_r": "mAP@R",
    "finetune_top1": "top-1",
    "finetune_top5": "top-5",
    "finetune_mean_class": "mean per class",
    "pointing_game": "pointing game",
    "mask_iou": "mask IoU",
    "mask_iou_best": "best IoU",
    "pixel_ap": "pixel AP",
    "max_box_acc_v2": "MaxBoxAccV2",
    "corloc": "CorLoc",
    "mae": "MAE",
    "max_f": "max F",
    "iou": "IoU",
    "box_iou": "box IoU",
    "ms_per_image": "ms/image",
    "blank": "blank",
    "full": "full",
    "fallback": "fallback",
}
RECOGNITION = ("linear_top1", "linear_mean_class", "linear_top5", "knn_top1", "recall_at_1", "map_at_r")
FINETUNED = ("finetune_top1", "finetune_top5", "finetune_mean_class")
LOCALIZATION = ("pointing_game", "mask_iou", "mask_iou_best", "pixel_ap", "max_box_acc_v2", "corloc")
SUMMARY = ("linear_top1", "knn_top1", "pointing_game", "mask_iou")
COUNTS = ("blank", "full", "fallback")
QUALITY = ("mae", "max_f", "iou", "box_iou", "pointing_game", "ms_per_image", *COUNTS)
# The probe's accuracy on images with other backgrounds.
BACKGROUND = {
    "as_it_is_top1": "as it is",
    "same_background_top1": "background of its class",
    "other_background_top1": "background of another",
    "background_only_top1": "background alone",
    "background_gap": "gap",
}
# What is read from a network -> how its maps are called.
READINGS = {
    "attention": "attention",
    "mean": "mean activation",
    "component": "first component",
    "predicted_mask": "predicted mask",
    "look": "look head",
    "cam": "CAM of the predicted class",
    "grad_cam": "Grad-CAM of the predicted class",
}
# Rows that no network gives.
GUESSES = {"chance": "chance", "center_prior": "centre prior"}
# Panels of a pre-training's curves -> names in the log.
PANELS = {
    "loss": ("train/loss", "train/contrastive", "train/align"),
    "collapse to a point: std falls to 0": ("health/projection_std", "health/target_cosine"),
    "collapse to a line: rank falls to 1": ("health/effective_rank",),
    "attention on the object": ("health/align_hit", "health/usable_pairs"),
    "labels, watched only": ("train/online_top1", "eval/knn_top1"),
    "learning rate": ("train/learning_rate",),
    "target decay tau": ("train/tau",),
}

Row = tuple[str, dict[str, float]]


def percent(value: float | None) -> str:
    """A share for a table: `61.5`, or a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def share(row: dict[str, float], key: str) -> str:
    """A share in percent, with `±` where it has a deviation over seeds."""
    deviation = f" ± {100 * row[f'{key}_std']:.1f}" if f"{key}_std" in row else ""
    return percent(row.get(key)) + deviation


def quality(row: dict[str, float], key: str) -> str:
    """A figure of saliency maps."""
    if key not in row:
        return "–"
    if key in COUNTS:
        return str(row[key])
    return f"{row[key]:.1f}" if key == "ms_per_image" else f"{row[key]:.3f}"


def table(
    rows: list[Row],
    keys: Iterable[str],
    *,
    corner: str = "%",
    titles: dict[str, str] = TITLES,
    cell: Callable[[dict[str, float], str], str] = share,
) -> Table:
    """A table of rows (title, figures), with the columns that any of them has; one without columns is empty."""
    present = [key for key in keys if any(key in figures for _, figures in rows)]
    cells = [(title, *(cell(figures, key) for key in present)) for title, figures in rows]
    return Table((corner, *(titles[key] for key in present)), cells)
