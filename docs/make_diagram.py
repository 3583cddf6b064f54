"""Draws docs/images/method.png, the method in one picture, with the views, masks and attention of a real run.

python -m cvsa_jax.saliency --config=configs/demo.py --config.data.procedural.size=128 --detector=masks \\
  --config.saliency.store=runs/diagram/saliency
python -m cvsa_jax.main --config=configs/demo.py --config.data.procedural.size=128 --config.views.size=96 \\
  --config.eval.size=96 --config.eval.resize=96 --config.total_steps=600 \\
  --config.saliency.store=runs/diagram/saliency --workdir=runs/diagram/cvsa
python -m docs.make_diagram runs/diagram/cvsa
"""

import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image

from configs import demo
from cvsa_jax import losses, settings
from cvsa_jax.data.pixels import cut_out
from cvsa_jax.data.resample import with_masks
from cvsa_jax.data.views import Pairs
from cvsa_jax.models.siamese import TARGET_PARTS
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.runtime.files import as_path
from cvsa_jax.saliency.store import make_record
from cvsa_jax.training import checkpoint
from cvsa_jax.training.photometric import normalize, to_float
from cvsa_jax.training.state import empty_network
from cvsa_jax.weights import backbones

OUT = Path(__file__).resolve().parent / "images" / "method.png"
DRAWN = 384  # px, at which birds and views are drawn; the networks see the views at their run's own size
GROUP = (834, 406, 262, 794)  # the image, then those that can lend it a background
POSITION = 128  # of the group in the order of the data, which decides the boxes


class Parts(NamedTuple):
    """What the picture shows, of one image and the two that lend it their backgrounds.

    Attributes:
        images: (3, S, S, 3) uint8, the image first; `maps`: (3, G, G) uint8 of each.
        crops: of each view the box of the image that is cut out, (y0, x0, y1, x1) in fractions.
        holes: of each view the box of the background that it replaces.
        views: (2, S, S, 3) uint8; `outlines`: (2, M, M) uint8, the mask of each; `mirrored`: (2,) bool.
        mask: (n, n) float, of the cells of view 1; `attention`: the same, which the alignment loss compares with it.
        features: (2, n, n, 3) in [0, 1], the three main components of the feature maps of both networks as colours.
    """

    images: np.ndarray
    maps: np.ndarray
    crops: np.ndarray
    holes: np.ndarray
    views: np.ndarray
    outlines: np.ndarray
    mirrored: np.ndarray
    mask: np.ndarray
    attention: np.ndarray
    features: np.ndarray


def parts_of(workdir: str) -> Parts:
    """Two views of an image as the pipeline decides them, and what a run's networks make of them."""
    mesh = make_mesh()
    run, model, online, _ = backbones.load_run(workdir, mesh)
    target, _ = checkpoint.restore_item(as_path(workdir), "target", empty_network(model).only(TARGET_PARTS), mesh)

    config = demo.get_config()
    config.data.procedural.size = config.views.size = DRAWN
    source, spec = settings.load_source(config.data), settings.view_spec(config, model.stride)
    images = np.stack([np.asarray(Image.open(io.BytesIO(source.read(i))).convert("RGB")) for i in GROUP])
    saliency = [make_record(source.mask(i).astype(np.float32) / 255, 1.0, spec.threshold)["map"] for i in GROUP]
    maps, rows = np.stack(saliency), np.arange(len(GROUP))
    positions, shapes = POSITION * len(GROUP) + rows, np.full((len(GROUP), 2), DRAWN)
    _, needs, told = Pairs.of(maps, spec, run.seed).decide(rows, positions, shapes)
    outlines = with_masks(told, DRAWN, np)

    lent = needs["lent"].reshape(2, -1)[:, 0]
    crops, holes, flips = (np.stack([told[f"{name}{v}"][0] for v in (1, 2)]) for name in ("crop", "target", "flip"))
    views = []
    for v in range(2):
        y0, x0, y1, x1 = holes[v]
        view = images[lent[v]].copy()
        view[y0:y1, x0:x1] = cut_out(images[0], crops[v], (y1 - y0, x1 - x0))
        views.append(view[:, ::-1] if flips[v] else view)
    views = np.stack(views)
    outlines = np.stack([outlines[f"mask{v}"][0] for v in (1, 2)])

    small = np.stack([cut_out(view, np.array([0, 0, 1, 1]), (run.views.size,) * 2) for view in views])
    seen = normalize(to_float(small))
    queries = model.clone(axis_name=None).apply(online.variables, seen[:1], False).prediction_map
    project = model.clone(axis_name=None).apply
    keys = project(target.variables, seen[1:], False, method="project").projection_map
    side = queries.shape[1]
    cells = losses.cell_masks(_averaged(outlines, run.views.size // 4), side)
    similar = losses.foreground_similarity(losses.attention(queries, keys), cells[1:])[0]
    weights = np.exp(np.asarray(similar) / run.align.temperature)
    return Parts(
        images=images[[0, *lent]],
        maps=maps[[0, *lent]],
        crops=crops,
        holes=holes / DRAWN,
        views=views,
        outlines=outlines,
        mirrored=flips,
        mask=np.asarray(cells[0]).reshape(side, side),
        attention=(weights / weights.sum()).reshape(side, side),
        features=_coloured(np.concatenate([queries, keys])),
    )


def _averaged(masks: np.ndarray, side: int) -> np.ndarray:
    """Masks (n, M, M) uint8 as (n, side, side) float in [0, 1]."""
    resized = [Image.fromarray(mask).resize((side, side), Image.Resampling.BOX) for mask in masks]
    return np.stack([np.asarray(mask, np.float32) / 255 for mask in resized])


def _coloured(maps: np.ndarray) -> np.ndarray:
    """The three main components of unit vectors (k, n, n, d) as colours (k, n, n, 3)."""
    vectors = np.asarray(losses.unit(maps)).reshape(-1, maps.shape[-1])
    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    parts = centred @ axes[:3].T
    low, high = np.percentile(parts, (2, 98), axis=0)
    return np.clip((parts - low) / (high - low), 0, 1).reshape(*maps.shape[:3], 3)


# --- The drawing, in pixels of the picture from its top left corner.

WIDTH, HEIGHT = 1600, 860
TEXT, QUIET, ONLINE, TARGET, LOSS, CUT, HOLE = (
    "#111827",
    "#4b5563",
    "#1d4ed8",
    "#4b5563",
    "#b91c1c",
    "#f59e0b",
    "#ec4899",
)
QUIET_TEXT = {"fontsize": 16, "color": QUIET, "va": "center", "linespacing": 1.3}
VIEWS = ((500, 120), (500, 540))  # top left corners; view 1 is seen by the online network, view 2 by the target network
VIEW, IMAGE, MAP, CELLS = 220, 180, 120, 150  # sides of what is shown


def draw(parts: Parts) -> Figure:
    """The whole picture."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    for x, title in ((30, "Saliency Swap"), (800, "Two networks"), (1220, "Two losses")):
        axes.text(x, 40, title, fontsize=22, color=TEXT, weight="bold", va="center")
    _swap(axes, parts)
    _networks(axes, parts)
    _losses(axes, parts)
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(HEIGHT, 0)
    axes.set_axis_off()
    return figure


def _swap(axes: Axes, parts: Parts) -> None:
    titles = ("background of view 1", "image", "background of view 2")
    order = (1, 0, 2)
    for row, title, y in zip(order, titles, (110, 365, 620), strict=True):
        _label(axes, 30, y - 18, title)
        _picture(axes, parts.images[row], 30, y, IMAGE)
        _picture(axes, colormaps["gray"](parts.maps[row]), 230, y + (IMAGE - MAP) / 2, MAP)
        boxes = parts.crops if row == 0 else parts.holes[row - 1 : row]
        for box in boxes:
            y0, x0, y1, x1 = box * IMAGE
            style = (
                {"edgecolor": CUT, "linestyle": "-"} if row == 0 else {"edgecolor": HOLE, "linestyle": (0, (3, 1.5))}
            )
            axes.add_patch(Rectangle((30 + x0, y + y0), x1 - x0, y1 - y0, fill=False, linewidth=3.5, **style))
    _label(axes, 230, 110 + (IMAGE - MAP) / 2 - 18, "saliency")
    for v, (x, y) in enumerate(VIEWS):
        _label(axes, x, y - 18, f"view {v + 1}{', mirrored' if parts.mirrored[v] else ''}")
        _picture(axes, parts.views[v], x, y, VIEW)
        centres = (np.arange(len(parts.outlines[v])) + 0.5) * VIEW / len(parts.outlines[v])
        axes.contour(x + centres, y + centres, parts.outlines[v], [127], colors="cyan", linewidths=2.5)
    for start, end, colour in (
        ((360, 200), (492, 220), HOLE),
        ((360, 430), (492, 290), CUT),
        ((360, 480), (492, 610), CUT),
        ((360, 710), (492, 690), HOLE),
    ):
        _arrow(axes, start, end, colour)
    axes.text(500, 405, "most salient box", fontsize=16, color="#b45309", va="center")
    axes.text(500, 437, "over the object of", fontsize=16, color=TEXT, va="center")
    axes.text(500, 469, "another image", fontsize=16, color="#be185d", va="center")


def _networks(axes: Axes, parts: Parts) -> None:
    for (_, y), name, colour in zip(VIEWS, ("online", "target"), (ONLINE, TARGET), strict=True):
        middle = y + VIEW / 2
        _arrow(axes, (728, middle), (792, middle), colour)
        _block(axes, 800, middle - 70, 130, 140, f"{name}\nnetwork", colour)
    _arrow(axes, (865, 310), (865, 570), TARGET, linestyle=(0, (4, 3)))
    axes.text(852, 440, "moving\naverage", ha="right", **QUIET_TEXT)
    # The maps are outside, the vectors inside, where the two networks meet.
    for v, (y, vector_y, name) in enumerate(((110, 285, "prediction p"), (620, 571, "projection z"))):
        colour = (ONLINE, TARGET)[v]
        _picture(axes, parts.features[v], 1000, y, CELLS, edge=colour)
        middle = VIEWS[v][1] + VIEW / 2
        _arrow(axes, (936, middle), (992, y + CELLS / 2), colour)
        _arrow(axes, (936, middle), (992, vector_y + 14), colour)
        axes.add_patch(Rectangle((1000, vector_y), CELLS, 28, facecolor=colour, edgecolor="none", alpha=0.85))
        axes.text(1000 + CELLS / 2, vector_y + 14, name, fontsize=16, color="white", ha="center", va="center")
    _label(axes, 1000, 92, "prediction map P")
    _label(axes, 1000, 790, "projection map Z")


def _losses(axes: Axes, parts: Parts) -> None:
    _block(axes, 985, 397, 180, 90, "BYOL loss\n2 – 2 cos(p, z)", LOSS, size=16)
    _arrow(axes, (1075, 319), (1075, 391), LOSS)
    _arrow(axes, (1075, 565), (1075, 493), LOSS)
    left, right, y, side = 1225, 1410, 330, 160
    _picture(axes, colormaps["inferno"](parts.attention / parts.attention.max()), left, y, side)
    _picture(axes, colormaps["gray"](parts.mask), right, y, side)
    axes.text(left, y - 42, "cross-view", **QUIET_TEXT)
    _label(axes, left, y - 16, "attention P·Zᵀ")
    axes.text(right, y - 42, "mask", **QUIET_TEXT)
    _label(axes, right, y - 16, "of view 1")
    _arrow(axes, (1156, 185), (1290, y - 62), ONLINE, bend=-0.25)
    _arrow(axes, (1156, 695), (1290, y + side + 8), TARGET, bend=0.3)
    _block(axes, 1318, 590, 264, 90, "alignment loss\nKL(mask ‖ attention)", LOSS, size=16)
    _arrow(axes, (left + side - 30, y + side + 8), (1420, 584), LOSS)
    _arrow(axes, (right + side / 2, y + side + 8), (right + side / 2, 584), LOSS)
    axes.text(
        1265, 755, "Both losses are summed over\nboth directions: the views\nalso exchange their roles.", **QUIET_TEXT
    )


def _picture(axes: Axes, image: np.ndarray, x: float, y: float, side: float, edge: str = "#9ca3af") -> None:
    axes.imshow(image, extent=(x, x + side, y + side, y), interpolation="nearest", zorder=1)
    axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=edge, linewidth=1.5, zorder=2))


def _label(axes: Axes, x: float, y: float, text: str) -> None:
    axes.text(x, y, text, **QUIET_TEXT)


def _block(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, size: int = 18) -> None:
    box = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=12", facecolor="white")
    box.set(edgecolor=colour, linewidth=2.5)
    axes.add_patch(box)
    middle = x + width / 2, y + height / 2
    axes.text(*middle, text, fontsize=size, color=colour, ha="center", va="center", linespacing=1.35)


def _arrow(axes: Axes, start: tuple, end: tuple, colour: str, bend: float = 0.0, linestyle="-") -> None:
    style = {"arrowstyle": "-|>,head_width=5,head_length=9", "connectionstyle": f"arc3,rad={bend}"}
    patch = FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, linewidth=2.5, color=colour, zorder=3, **style)
    patch.set_linestyle(linestyle)
    axes.add_patch(patch)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m docs.make_diagram WORKDIR, of the run that these commands make:\n\n{__doc__}")
    buffer = io.BytesIO()
    draw(parts_of(sys.argv[1])).savefig(buffer, dpi=100, format="png")
    OUT.parent.mkdir(exist_ok=True)
    # A palette: the birds' pixels are noisy, and as they are the file would be several times as large.
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
