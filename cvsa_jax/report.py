"""Pictures and one self-contained page for each run."""

import base64
import dataclasses
import html
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

_DPI = 110
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; } table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } figcaption, .note { color: #555; font-size: .9rem; }
figure { margin: 1.5rem 0; }
"""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file and its caption."""

    path: Path
    caption: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells; `rows[k][0]` names the row."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def as_text(self) -> str:
        """For the terminal: columns padded, the first to the left."""
        cells = [self.header, *self.rows]
        widths = [max(len(row[k]) for row in cells) for k in range(len(self.header))]
        lines = [
            "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in cells
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


@dataclasses.dataclass(frozen=True)
class MapSheet:
    """k images (S, S, 3) uint8, their maps (G, G) uint8, boxes (y0, x0, y1, x1) in fractions, confidences, and true
    masks (S, S) bool or None."""

    images: np.ndarray
    maps: np.ndarray
    boxes: np.ndarray
    confidences: np.ndarray
    masks: np.ndarray | None


def views_picture(path: Path, views: list[tuple[np.ndarray, np.ndarray | None]], seen: list[np.ndarray]) -> Picture:
    """Both views of a few images, as made by the host with the mask's outline, and as the network sees them.

    Args:
        views: for each of the two views (k, S, S, 3) uint8 and its masks (k, M, M) uint8 or None.
        seen: for each of the two, (k, S, S, 3) float in [0, 1] after the photometric part.
    """
    columns = len(views[0][0])
    figure, axes = _grid(4, columns)
    for v, (images, masks) in enumerate(views):
        for k in range(columns):
            axes[2 * v, k].imshow(images[k])
            if masks is not None:
                _outline(axes[2 * v, k], masks[k] > 127, images.shape[1])
            axes[2 * v + 1, k].imshow(seen[v][k])
        _row_title(axes[2 * v, 0], f"view {v + 1}")
        _row_title(axes[2 * v + 1, 0], "as trained on")
    outlined = " The line is the border of the view's saliency mask." if views[0][1] is not None else ""
    return _save(figure, path, f"Two views of each image, before and after colour, blur and solarize.{outlined}")


def attention_picture(
    path: Path, images: np.ndarray, rows: dict[str, np.ndarray], masks: np.ndarray | None, caption: str
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


def saliency_picture(path: Path, groups: dict[str, MapSheet], caption: str) -> Picture:
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
            y0, x0, y1, x1 = sheet.boxes[k] * size - 0.5
            upper[k].plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="orange", linewidth=1.2)
            upper[k].set_xlim(-0.5, size - 0.5)
            upper[k].set_ylim(size - 0.5, -0.5)
            lower[k].imshow(sheet.maps[k], cmap="gray", vmin=0, vmax=255, extent=(-0.5, size - 0.5, size - 0.5, -0.5))
            lower[k].set_xlabel(f"{sheet.confidences[k]:.2f}", fontsize=7, labelpad=1)
            if sheet.masks is not None:
                _outline(lower[k], sheet.masks[k], size)
        _row_title(upper[0], title)
        _row_title(lower[0], "map")
    return _save(figure, path, caption)


def histograms_picture(path: Path, values: dict[str, np.ndarray], caption: str) -> Picture:
    """One histogram over [0, 1] for each entry title -> values."""
    figure = Figure(figsize=(3.4 * len(values), 2.4), layout="constrained")
    for axis, (title, sample) in zip(np.atleast_1d(figure.subplots(1, len(values))), values.items(), strict=True):
        axis.hist(sample, bins=np.linspace(0, 1, 41))
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=7)
    return _save(figure, path, caption)


def curves_picture(path: Path, rows: list[dict], panels: dict[str, tuple[str, ...]], caption: str) -> Picture:
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


def write_page(page: Path, title: str, blocks: list[str | Picture | Table]) -> Path:
    """An HTML page with everything inside it; text blocks are paragraphs, `# text` a heading. Returns its path."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        if isinstance(block, Picture):
            data = base64.b64encode(block.path.read_bytes()).decode()
            caption = html.escape(block.caption)
            parts.append(
                f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
        elif isinstance(block, Table):
            row = lambda tag, cells: "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"  # noqa: E731
            parts.append(f"<table>{row('th', block.header)}{''.join(row('td', r) for r in block.rows)}</table>")
        elif block.startswith("# "):
            parts.append(f"<h2>{html.escape(block[2:])}</h2>")
        else:
            parts.append(f'<p class="note">{html.escape(block)}</p>')
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    page.write_text(f'<!doctype html><html lang="en">{head}<style>{_STYLE}</style>{"".join(parts)}</html>\n')
    return page


def write_json(path: Path, figures: dict) -> None:
    """Figures as JSON, for machines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")


def percent(value: float | None) -> str:
    """A share for a table: `61.5`, or a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


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


def _row_title(axis, title: str) -> None:
    axis.set_ylabel(title, fontsize=8)


def _save(figure: Figure, path: Path, caption: str) -> Picture:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    return Picture(path, caption)
