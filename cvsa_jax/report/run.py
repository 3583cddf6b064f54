"""The figures and the page of one pre-training run."""

import traceback

import jax
import jax.numpy as jnp
import numpy as np

from cvsa_jax import settings
from cvsa_jax.data.reading import load_image
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.comparison import reading_prefix
from cvsa_jax.evaluation.evaluator import Evaluator, center_prior, chance
from cvsa_jax.evaluation.features import evenly
from cvsa_jax.report import html, pictures
from cvsa_jax.report.columns import GUESSES, PANELS, SUMMARY, TITLES, percent, table
from cvsa_jax.runtime.distributed import is_first
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import AnyPath, write_json_atomically
from cvsa_jax.saliency.detector import squeezed
from cvsa_jax.training import photometric
from cvsa_jax.training.log import log_pictures, read_metrics
from cvsa_jax.training.resume import Run
from cvsa_jax.training.state import Network

_PICTURED = 10  # images in each picture
_LOOKED_AT = 256  # images whose attention is read where it cannot be measured, or there is no test split


def report_run(
    run: Run,
    network: Network,
    evaluator: Evaluator,
    train: np.ndarray,
    test: np.ndarray | None,
    batch: dict[str, np.ndarray],
) -> dict[str, float]:
    """Evaluates the online network and writes `workdir/report/`; returns the figures of its `results.json`, {} where
    that fails: the run has ended well, and what went wrong is printed.

    Args:
        train, test: indices of the images trained on and of those held out; None where there is no test split. kNN
            needs labels and a test split, the figures of the attention masks or boxes.
        batch: a training batch, for the picture of the views.
    """
    try:
        return _report(run, network, evaluator, train, test, batch)
    except Exception as error:
        if jax.process_count() > 1:
            raise  # the others would wait for this one
        if not isinstance(error, UserError):
            traceback.print_exc()
        print(
            f"warning: the run has ended at step {run.total} and is kept, but its report could not be made: {error}. "
            "The same command makes it again"
        )
        return {}


def _report(run: Run, network: Network, evaluator: Evaluator, train, test, batch) -> dict[str, float]:
    source, config, folder = evaluator.source, run.config, run.workdir / "report"
    figures: dict[str, float] = {}
    # An image that was trained on is no neighbour of itself.
    others = train if test is None else np.setdiff1d(train, test)
    if test is not None and source.labels is not None and config.eval.knn and len(others) > 1:
        figures |= evaluator.recognition(network, others, test, knn=settings.knn(config.eval)).figures
    measured = test is not None and not (source.mask is None and source.box is None)
    images = test if measured else evenly(train if test is None else test, _LOOKED_AT)
    masks = None if source.mask is None else evaluator.masks(images)
    attention = None
    if len(images) > 1:  # one has no others to attend to
        name = "predicted_mask" if evaluator.shown == "predicted_mask" else "attention"
        attention = evaluator.maps(network, images)[name]
        scores = evaluator.localization(attention, images, masks)
        figures |= {reading_prefix(name) + key: value for key, value in scores.items()}
    if not is_first():
        return figures
    drawn = {"views": _draw_views(folder / "views.png", batch, config.augment)}
    if attention is not None:
        kind = "training" if test is None else "held-out" if len(others) == len(train) else "test"
        told = {"kind": kind, "map_name": evaluator.shown}
        drawn["attention"] = _draw_attention(folder / "attention.png", evaluator, images, attention, masks, **told)
    rows = [("this run", figures), (GUESSES["chance"], chance(source, images, masks))]
    rows += [] if masks is None else [(GUESSES["center_prior"], center_prior(source, images, masks))]
    _write_page(run, f"{source.name}, {len(source)} images.", rows, drawn)
    log_pictures(run.workdir, run.total, {name: p.path for name, p in drawn.items()}, config.wandb_project)
    return figures


def _draw_views(path: AnyPath, batch: dict, augment) -> pictures.Picture:
    views, augmented = [], []
    for v, strengths in enumerate((augment.view1, augment.view2)):
        images, masks = batch[f"view{v + 1}"][:_PICTURED], batch.get(f"mask{v + 1}")
        keys = jax.random.split(jax.random.key(v), len(images))
        augmented.append(np.asarray(_augmented(jnp.asarray(images), keys, settings.photometric(strengths))))
        views.append((images, masks))
    return pictures.views_picture(path, views, augmented)


@jax.jit
def _augmented(images: jax.Array, keys: jax.Array, strengths: photometric.Photometric) -> jax.Array:
    return photometric.apply(photometric.to_float(images), photometric.draw(keys, strengths))


def _draw_attention(
    path: AnyPath, evaluator: Evaluator, images, attention, masks, *, kind: str, map_name: str
) -> pictures.Picture:
    shown = evenly(np.arange(len(images)), _PICTURED)
    size = evaluator.size
    pixels = np.stack([squeezed(load_image(evaluator.source, int(images[k])), size) for k in shown])
    caption = f"Cross-view attention (against all other {kind} images) over evenly spaced {kind} images."
    if map_name == "predicted_mask":
        caption = f"The predicted mask over evenly spaced {kind} images."
    if masks is not None:
        caption += " The line is the true mask."
    if map_name == "component":
        caption += " Without the alignment loss the conv heads that it is read from are untrained."
    maps = np.stack([localization.upsample(attention[k], size) for k in shown])
    outlines = None if masks is None else masks[shown]
    return pictures.attention_picture(path, pixels, {"attention": maps}, outlines, caption)


def _write_page(run: Run, intro: str, rows: list, drawn: dict[str, pictures.Picture]) -> None:
    folder, figures = run.workdir / "report", rows[0][1]
    write_json_atomically(folder / "results.json", figures)
    caption = "The run, from metrics.jsonl."
    curves = pictures.curves_picture(folder / "curves.png", read_metrics(run.workdir), PANELS, caption)
    looks = ["# Where it looks", drawn["attention"]] if "attention" in drawn else []
    blocks = [intro, *looks, "# Figures", table(rows, SUMMARY[1:]), "# Views", drawn["views"], "# Curves", curves]
    page = html.write_page(folder / "index.html", f"Run {run.workdir.name}", blocks)
    if shares := [f"{TITLES[key]} {percent(figures[key])} %" for key in SUMMARY[1:] if key in figures]:
        print(", ".join(shares))
    print(f"report: {page}")
