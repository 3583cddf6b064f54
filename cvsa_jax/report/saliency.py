"""The page that shows whether saliency maps can be trusted, for one store or for several side by side."""

from pathlib import Path

import numpy as np

from cvsa_jax.data.reading import load_image
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.localization import square_masks
from cvsa_jax.report import html, pictures
from cvsa_jax.report.columns import COUNTS, QUALITY, quality, table
from cvsa_jax.runtime.files import AnyPath, read_json, write_json_atomically
from cvsa_jax.saliency.compute import BLANK, FULL, TIMING
from cvsa_jax.saliency.detector import squeezed
from cvsa_jax.saliency.quality import measure
from cvsa_jax.saliency.store import GRID, REPORT_PAGE, SaliencyStore
from cvsa_jax.training.log import read_metrics

_SIZE = 128  # px of the pictured images
_PICTURED = 10
_MEANING = (
    f"Blank: less than {BLANK:.0%} of the map is at or above the threshold; full: more than {FULL:.0%}; fallback: "
    "nothing is, and the box is the centre's. MAE, maximal F-measure (β² = 0.3), IoU and box IoU at the threshold, "
    "and the pointing game are against the data set's own masks or boxes"
)


def figures_of(store: SaliencyStore, source: Source, measured: np.ndarray) -> dict[str, float]:
    """The figures of `report/saliency.json`: quality on the images `measured` (where the source can tell), counts over
    all images, and milliseconds per image of the last pass that made maps."""
    measured = measured[store.usable[measured]]
    figures = measure(source, measured, store.record, store.threshold)
    timing = store.folder / TIMING
    if timing.is_file():
        figures["ms_per_image"] = read_json(timing)["ms_per_image"]
    return figures | {name: store.manifest[name] for name in COUNTS}


def write_store_page(store: SaliencyStore, source: Source, measured: np.ndarray, about: str) -> html.Table:
    """Writes `report/saliency.{html,png,json}` of one store and returns the table of its figures.

    Args:
        measured: indices of the images with which the maps are compared; `about`: what these are, for the reader.
    """
    figures = figures_of(store, source, measured)
    page = store.folder / REPORT_PAGE
    write_json_atomically(page.with_suffix(".json"), figures)
    manifest = store.manifest
    shown = _table({manifest["detector"]: figures})
    # Equal confidences are put in a random order, so that they do not show the first class only.
    usable = np.random.default_rng(0).permutation(np.flatnonzero(store.usable))
    order = usable[np.argsort(-store.confidences[usable], kind="stable")]
    k = min(_PICTURED, len(order))
    middle = (len(order) - k) // 2
    groups = {"best": order[:k], "median": order[middle : middle + k], "worst": order[len(order) - k :]}
    caption = "Images with the highest, median and lowest confidence (the number below each map) and their boxes."
    if source.mask is not None:
        caption += " The line is the true mask."
    sheets = {title: _sheet(store, source, rows) for title, rows in groups.items()}
    histograms = pictures.histograms_picture(
        page.with_name("histograms.png"),
        {"area at the threshold": store.areas[usable], "confidence": store.confidences[usable]},
        f"Of {len(usable)} images.",
    )
    facts = ", ".join(f"{name} {value}" for name, value in manifest["settings"].items())
    blocks = [
        f"{source.name}: {len(source)} images, {len(manifest['unreadable'])} of them unreadable and left out. Detector "
        f"{manifest['detector']}, supervision: {manifest['supervision']}. {facts}. Mean area "
        f"{manifest['mean_area']:.0%}.",
        shown,
        f"{_MEANING}: {about}.",
        "# Maps",
        pictures.saliency_picture(page.with_suffix(".png"), sheets, caption),
        "# Area and confidence",
        histograms,
    ]
    html.write_page(page, f"Saliency maps: {source.name}, {manifest['detector']}", blocks)
    return shown


def write_comparison(
    stores: dict[str, SaliencyStore], source: Source, measured: np.ndarray, about: str, folder: Path
) -> html.Table:
    """Writes `saliency.{html,png,json}` of several stores side by side into `folder` and returns the table."""
    figures = {name: figures_of(store, source, measured) for name, store in stores.items()}
    page = folder / REPORT_PAGE.name
    write_json_atomically(page.with_suffix(".json"), figures)
    shown = _table(figures)
    usable = measured[np.all([store.usable[measured] for store in stores.values()], axis=0)]
    examples = usable[np.linspace(0, len(usable) - 1, min(_PICTURED, len(usable))).astype(int)]
    images = np.stack([squeezed(load_image(source, int(i)), _SIZE) for i in examples])
    rows = {
        name: np.stack([squeezed(saliency, _SIZE) for saliency in store[examples]]) / 255
        for name, store in stores.items()
    }
    caption = "Evenly spaced images." + (" The line is the true mask." if source.mask is not None else "")
    picture = pictures.attention_picture(page.with_suffix(".png"), images, rows, _masks(source, examples), caption)
    supervision = ", ".join(f"{name}: {store.manifest['supervision']}" for name, store in stores.items())
    blocks = [f"{source.name}. Supervision: {supervision}.", shown, f"{_MEANING}: {about}.", "# Maps", picture]
    html.write_page(page, f"Saliency maps compared: {source.name}", blocks)
    return shown


def write_detector_page(workdir: AnyPath, figures: dict[str, float], title: str) -> None:
    """Writes `workdir/report/` of a trained detector and prints its table; `title`: what the figures are of."""
    folder = workdir / "report"
    write_json_atomically(folder / "results.json", figures)
    panels = {"loss": ("train/loss",), "gradient": ("health/grad_norm",), "learning rate": ("train/learning_rate",)}
    caption = "The run, from metrics.jsonl."
    curves = pictures.curves_picture(folder / "curves.png", read_metrics(workdir), panels, caption)
    shown = _table({title: figures}, "")
    page = html.write_page(folder / "index.html", f"Detector {workdir.name}", [shown, "# Curves", curves])
    print(shown.as_text() + f"\nreport: {page}")


def _table(figures: dict[str, dict[str, float]], corner: str = "detector") -> html.Table:
    return table(list(figures.items()), QUALITY, corner=corner, cell=quality)


def _sheet(store: SaliencyStore, source: Source, rows: np.ndarray) -> pictures.MapSheet:
    images = [squeezed(load_image(source, int(i)), _SIZE) for i in rows]
    return pictures.MapSheet(
        np.array(images).reshape(-1, _SIZE, _SIZE, 3),
        store[rows] if len(rows) else np.zeros((0, GRID, GRID), np.uint8),
        store.boxes[rows],
        store.confidences[rows],
        _masks(source, rows),
    )


def _masks(source: Source, rows: np.ndarray) -> np.ndarray | None:
    return None if source.mask is None else square_masks(source, rows, _SIZE)
