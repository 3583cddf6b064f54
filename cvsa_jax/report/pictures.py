"""The pictures of the pages: each function draws one, writes it as PNG and gives it its caption."""

import dataclasses
import textwrap

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.text import Text

from cvsa_jax.runtime.files import AnyPath, write_atomically

_DPI = 110
PER_CLASS = 3  # images of a class, beside a confusion
_TITLE = 110  # characters in a line of a title


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file and its caption."""

    path: AnyPath
    caption: str


@dataclasses.dataclass(frozen=True)
class MapSheet:
    """k images (S, S, 3) uint8, their maps (G, G) uint8, boxes (y0, x0, y1, x1) in fractions, confidences, and true
    masks (S, S) bool or None."""

    images: np.ndarray
    maps: np.ndarray
    boxes: np.ndarray
    confidences: np.ndarray
    masks: np.ndarray | None


def views_picture(path: AnyPath, views: list[tuple[np.ndarray, np.ndarray | None]], augmented: list) -> Picture:
    """Both views of a few images, as made by the host with the mask's outline, and as the network sees them.

    Args:
        views: for each of the two views (k, S, S, 3) uint8 and its masks (k, M, M) uint8 or None.
        augmented: for each of the two, (k, S, S, 3) float in [0, 1] after the photometric part.
    """
    columns = len(views[0][0])
    figure, axes = _grid(4, columns)
    for v, (images, masks) in enumerate(views):
        for k in range(columns):
            axes[2 * v, k].imshow(images[k])
            if masks is not None:
                _outline(axes[2 * v, k], masks[k] > 127, images.shape[1])
            axes[2 * v + 1, k].imshow(augmented[v][k])
        _row_title(axes[2 * v, 0], f"view {v + 1}")
        _row_title(axes[2 * v + 1, 0], "as trained on")
    outlined = " The line is the border of the view's saliency mask." if views[0][1] is not None else ""
    return _save(figure, path, f"Two views of each image, before and after colour, blur and solarize.{outlined}")


def attention_picture(
    path: AnyPath, images: np.ndarray, rows: dict[str, np.ndarray], masks: np.ndarray | None, caption: str
) -> Picture:
    """Held-out images over their attention maps, one row for each entry of `rows`.

    Args:
        images: (k, S, S, 3) uint8.
        rows: title -> (k, S, S) maps in [0, 1].
        masks: (k, S, S) bool, drawn as outlines over everything, or None.
    """
    figure, axes = _grid(1 + len(rows), len(images))
    for k, image in enumerate(images):
        axes[0, k].imshow(image)
        for r, maps in enumerate(rows.values(), start=1):
            axes[r, k].imshow(image.mean(-1), cmap="gray", vmin=0, vmax=255)
            axes[r, k].imshow(maps[k], cmap="inferno", alpha=0.65, vmin=0, vmax=1)
        if masks is not None:
            for r in range(axes.shape[0]):
                _outline(axes[r, k], masks[k], image.shape[0])
    for r, title in enumerate(("image", *rows)):
        _row_title(axes[r, 0], title)
    return _save(figure, path, caption)


def saliency_picture(path: AnyPath, groups: dict[str, MapSheet], caption: str) -> Picture:
    """Images with their boxes over their saliency maps, two rows for each group of images."""
    columns = max(len(sheet.images) for sheet in groups.values())
    figure, axes = _grid(2 * len(groups), columns)
    for g, (title, sheet) in enumerate(groups.items()):
        upper, lower = axes[2 * g], axes[2 * g + 1]
        for axis in (*upper[len(sheet.images) :], *lower[len(sheet.images) :]):
            axis.set_axis_off()
        for k, image in enumerate(sheet.images):
            size = image.shape[0]
            upper[k].imshow(image)
            _box(upper[k], sheet.boxes[k], size)
            lower[k].imshow(sheet.maps[k], cmap="gray", vmin=0, vmax=255, extent=(-0.5, size - 0.5, size - 0.5, -0.5))
            lower[k].set_xlabel(f"{sheet.confidences[k]:.2f}", fontsize=7, labelpad=1)
            if sheet.masks is not None:
                _outline(lower[k], sheet.masks[k], size)
        _row_title(upper[0], title)
        _row_title(lower[0], "map")
    return _save(figure, path, caption)


def contact_sheet(
    path: AnyPath,
    images: np.ndarray,
    masks: np.ndarray | None,
    boxes: np.ndarray | None,
    titles: list[str],
    caption: str,
) -> Picture:
    """Images (k, s, s, 3) in rows of 8, each under its title, with the outline of its mask and its box."""
    figure, axes = _grid(-(-len(images) // 8), 8)
    for k, axis in enumerate(axes.flat):
        if k >= len(images):
            axis.set_axis_off()
            continue
        axis.imshow(images[k])
        axis.set_title(titles[k] if len(titles[k]) <= 18 else f"{titles[k][:17]}…", fontsize=6, pad=2)
        if masks is not None:
            _outline(axis, masks[k], images.shape[1])
        if boxes is not None:
            _box(axis, boxes[k], images.shape[1])
    return _save(figure, path, caption)


def histograms_picture(path: AnyPath, values: dict[str, np.ndarray], caption: str) -> Picture:
    """One histogram over [0, 1] for each entry title -> values."""
    figure = Figure(figsize=(3.4 * len(values), 2.4), layout="constrained")
    for axis, (title, sample) in zip(np.atleast_1d(figure.subplots(1, len(values))), values.items(), strict=True):
        axis.hist(sample, bins=np.linspace(0, 1, 41))
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=7)
    return _save(figure, path, caption)


def curves_picture(path: AnyPath, rows: list[dict], panels: dict[str, tuple[str, ...]], caption: str) -> Picture:
    """Metrics over steps, one panel for each entry title -> metric names; what no row has is left out."""
    logged = {name for row in rows for name in row}
    panels = {title: names for title, names in panels.items() if logged & set(names)} or panels
    figure = Figure(figsize=(3.4 * len(panels), 2.8), layout="constrained")
    for axis, (title, names) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    return _save(figure, path, caption)


def confusion_picture(path: AnyPath, rows: list[tuple[str, np.ndarray, np.ndarray]], caption: str) -> Picture:
    """The most confused classes, a row for each pair: images that were taken for another class, and that class.

    Args:
        rows: title, (a, S, S, 3) uint8 images that were confused, (b, S, S, 3) of the class they were taken for.
    """
    figure = Figure(figsize=(1.15 * (2 * PER_CLASS + 1) + 0.3, 1.4 * len(rows)), layout="constrained")
    parts = np.atleast_1d(figure.subfigures(len(rows), 1))
    for part, (title, confused, taken_for) in zip(parts, rows, strict=True):
        part.suptitle(textwrap.fill(title, _TITLE), fontsize=8, x=0.01, ha="left")
        line = part.subplots(1, 2 * PER_CLASS + 1)
        for axis in line:
            axis.set_axis_off()
        for shift, images in ((0, confused), (PER_CLASS + 1, taken_for)):
            for k, image in enumerate(images[:PER_CLASS]):
                line[shift + k].imshow(image)
        line[PER_CLASS].text(0.5, 0.5, "→", fontsize=16, ha="center", va="center")
    return _save(figure, path, caption)


def scatter_picture(
    path: AnyPath, panels: dict[str, np.ndarray], labels: np.ndarray, classes: tuple[str, ...], caption: str
) -> Picture:
    """One panel for each entry title -> (m, 2) points, coloured by their class; a legend up to 12 classes."""
    figure = Figure(figsize=(3.4 * len(panels), 3.4), layout="constrained")
    colours = colormaps["turbo"](np.linspace(0.02, 0.98, len(classes)))
    few = len(classes) <= 12
    for axis, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for label, name in enumerate(classes):
            axis.scatter(*points[labels == label].T, s=7, color=colours[label], label=_legend(name) if few else None)
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    if few:
        handles, names = axis.get_legend_handles_labels()
        figure.legend(handles, names, fontsize=7, loc="outside lower center", ncols=4, markerscale=2)
    return _save(figure, path, caption)


def background_picture(
    path: AnyPath, examples: dict[str, np.ndarray], bars: dict[str, dict[str, float]], caption: str
) -> Picture:
    """Example images under each change of their background, and each run's accuracy under it.

    Args:
        examples: title of a change -> (k, S, S, 3) uint8.
        bars: title of a run, or of what it is compared with -> title of a change -> share in [0, 1].
    """
    columns = len(next(iter(examples.values())))
    figure = Figure(figsize=(1.15 * columns + 4.2, 1.15 * len(examples) + 0.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15 * columns, 4.2))
    axes = left.subplots(len(examples), columns, squeeze=False)
    for line, (title, images) in zip(axes, examples.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
        _row_title(line[0], title.replace("background ", "background\n"))
    axis = right.subplots()
    height = 0.8 / len(bars)
    for r, (run, shares) in enumerate(bars.items()):
        places = np.arange(len(examples)) + (r - (len(bars) - 1) / 2) * height
        axis.barh(places, [100 * shares.get(title, 0) for title in examples], height, label=_legend(run))
    axis.set_yticks(range(len(examples)), examples, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("linear top-1, %", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=7)
    return _save(figure, path, caption)


def _grid(rows: int, columns: int):
    figure = Figure(figsize=(1.15 * columns + 0.3, 1.15 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def _outline(axis, mask: np.ndarray, size: int) -> None:
    if mask.any() and not mask.all():
        centres = (np.arange(len(mask)) + 0.5) * size / len(mask) - 0.5
        axis.contour(centres, centres, mask.astype(float), [0.5], colors="cyan", linewidths=1.0)


def _box(axis, box: np.ndarray, size: int) -> None:
    """The outline of a box in fractions over an image of `size` px."""
    y0, x0, y1, x1 = box * size - 0.5
    axis.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="orange", linewidth=1.2)
    axis.set_xlim(-0.5, size - 0.5)
    axis.set_ylim(size - 0.5, -0.5)


def _row_title(axis, title: str) -> None:
    axis.set_ylabel(title, fontsize=8)


def _legend(name: str) -> str:
    """The name; matplotlib leaves out of a legend what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _save(figure: Figure, path: AnyPath, caption: str) -> Picture:
    path.parent.mkdir(parents=True, exist_ok=True)
    for text in figure.findobj(Text):  # names of classes and runs are no formulas, whatever dollars are in them
        text.set_parse_math(False)
    # Whole or not at all: the same command in another shell may be reading it.
    write_atomically(path, lambda file: figure.savefig(file, dpi=_DPI, format="png"))
    return Picture(path, caption)
