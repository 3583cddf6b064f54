"""The figures and the page of one pre-training run."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data.pipeline import image_batches
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.evaluator import Evaluator, center_prior, chance
from cvsa_jax.report import html as report
from cvsa_jax.report import pictures
from cvsa_jax.runtime.distributed import is_first
from cvsa_jax.runtime.files import AnyPath
from cvsa_jax.training import photometric
from cvsa_jax.training.monitor import read_metrics
from cvsa_jax.training.state import Network

_PICTURED = 10  # images in each picture
_SOME = 256  # images whose attention is looked at where it cannot be measured, or there is no test split
PANELS = {
    "loss": ("train/loss", "train/contrastive", "train/align"),
    "collapse to a point: std falls to 0": ("health/projection_std", "health/target_cosine"),
    "collapse to a line: rank falls to 1": ("health/effective_rank",),
    "attention on the object": ("health/align_hit", "health/usable_pairs"),
    "labels, watched only": ("train/online_top1", "eval/knn_top1"),
    "learning rate": ("train/learning_rate",),
    "target decay tau": ("train/tau",),
}


def report_run(
    config: ConfigDict,
    workdir: AnyPath,
    network: Network,
    evaluator: Evaluator,
    *,
    train: np.ndarray,
    test: np.ndarray | None,
    batch: dict[str, np.ndarray],
) -> dict[str, float]:
    """Evaluates the online network and writes `workdir/report/`; returns the figures of its `results.json`.

    Args:
        train, test: indices of the images trained on and of those held out; None where there is no test split. kNN
            needs labels and a test split, the figures of the attention masks or boxes.
        batch: a training batch, for the picture of the views.
    """
    source = evaluator.source
    figures: dict[str, float] = {}
    if test is not None and source.labels is not None and config.eval.knn:
        figures |= evaluator.recognition(network, train, test, knn=settings.knn(config.eval)).figures
    measured = test is not None and not (source.mask is None and source.box is None)
    looked_at = test if measured else evenly(train if test is None else test, _SOME)
    masks = None if source.mask is None else evaluator.masks(looked_at)
    attention = None
    # The mask_head control trains no attention, and one image has no others to attend to.
    if config.align.form != "mask_head" and len(looked_at) > 1:
        attention = evaluator.maps(network, looked_at)["attention"]
        figures |= evaluator.localization(attention, looked_at, masks)
    if not is_first():
        return figures
    augment = [settings.photometric(config.augment[view]) for view in ("view1", "view2")]
    drawn = [_draw_views(workdir, batch, augment)]
    if attention is not None:
        trained = config.align.weight > 0
        drawn.append(_draw_attention(workdir, evaluator, source, looked_at, attention, masks, trained))
    _write_page(workdir, source, figures, chance(source, looked_at, masks), masks, drawn)
    return figures


def evenly(indices: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the indices, evenly spaced."""
    return indices[np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(int)]


def _draw_views(workdir: AnyPath, batch: dict, augment: list[photometric.Photometric]) -> pictures.Picture:
    views, seen = [], []
    for v in (0, 1):
        images, masks = batch[f"view{v + 1}"][:_PICTURED], batch.get(f"mask{v + 1}")
        keys = jax.random.split(jax.random.key(v), len(images))
        seen.append(np.asarray(_augmented(jnp.asarray(images), keys, augment[v])))
        views.append((images, masks))
    return pictures.views_picture(workdir / "report" / "views.png", views, seen)


@jax.jit
def _augmented(images: jax.Array, keys: jax.Array, strengths: photometric.Photometric) -> jax.Array:
    return photometric.apply(photometric.to_float(images), photometric.draw(keys, strengths))


def _draw_attention(workdir, evaluator, source, test, attention, masks, trained: bool) -> pictures.Picture:
    shown = evenly(np.arange(len(test)), _PICTURED)
    loaded = image_batches(source, test[shown], resize=0, size=evaluator.size, batch_size=len(shown))
    images, _ = next(loaded)
    caption = "Cross-view attention (against all other held-out images) over evenly spaced held-out images."
    if masks is not None:
        caption += " The line is the true mask."
    if not trained:
        caption += " Without the alignment loss the conv heads that it is read from are untrained."
    maps = np.stack([localization.upsample(attention[k], evaluator.size) for k in shown])
    path = workdir / "report" / "attention.png"
    outlines = None if masks is None else masks[shown]
    return pictures.attention_picture(path, images, {"attention": maps}, outlines, caption)


def _write_page(workdir: AnyPath, source: Source, figures: dict, guess: dict, masks, drawn: list) -> None:
    folder = workdir / "report"
    caption = "The run, from metrics.jsonl."
    curves = pictures.curves_picture(folder / "curves.png", read_metrics(workdir), PANELS, caption)
    report.write_json(folder / "results.json", figures)
    columns = {"knn_top1": "kNN top-1", "pointing_game": "pointing game", "mask_iou": "mask IoU"}
    rows = [("this run", figures), ("chance", guess)]
    if masks is not None:
        rows.append(("centre prior", center_prior(masks)))
    table = report.Table(
        ("%", *columns.values()),
        [(name, *(report.percent(row.get(key)) for key in columns)) for name, row in rows],
    )
    blocks = [f"{source.name}, {len(source)} images.", table, "# Views", drawn[0]]
    blocks += ["# Attention", *drawn[1:], "# Curves", curves]
    page = report.write_page(folder / "index.html", f"Run {workdir.name}", blocks)
    if known := [f"{title} {report.percent(figures[key])} %" for key, title in columns.items() if key in figures]:
        print(", ".join(known))
    print(f"report: {page}")
