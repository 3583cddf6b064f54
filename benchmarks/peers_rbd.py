"""The detector `rbd` against the same formulas written plainly with scikit-image and networkx, in turn on one core.

    python -m benchmarks.peers_rbd
    python -m benchmarks.peers_rbd --images=2 --rounds=1    # to try it

The images are pieces of a photograph that scikit-image brings along, 300 px wide. Both sides get the same superpixels'
parameters; the maps must agree, or the command fails. Writes benchmarks/results/peers_rbd.json.
"""

import argparse
import functools
import os
import statistics
import time
from itertools import combinations

import networkx as nx
import numpy as np
from PIL import Image
from scipy.sparse import diags
from scipy.sparse.linalg import spsolve
from skimage import data
from skimage.color import rgb2lab
from skimage.graph import RAG
from skimage.measure import regionprops
from skimage.segmentation import slic

from benchmarks.common import write_results
from cvsa_jax.saliency.detectors import rbd


def between(values: np.ndarray, cut: float) -> float:
    """Otsu's criterion: how far apart the classes below and from the cut on are."""
    low, high = values[values < cut], values[values >= cut]
    return float(len(low) * len(high) * (low.mean() - high.mean()) ** 2)


def plain(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (h, w) saliency: Zhu et al. 2014 step by step on graphs, with rbd.py's constants."""
    height, width = image.shape[:2]
    labels = slic(image, rbd.SUPERPIXELS, rbd.COMPACTNESS, start_label=1)
    regions = regionprops(labels, intensity_image=rgb2lab(image))
    colours = {region.label: region.intensity_mean for region in regions}
    places = {region.label: (np.array(region.centroid) + 0.5) / (height, width) for region in regions}
    border = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]).tolist())

    graph = RAG(labels, connectivity=1)
    graph.add_edges_from(combinations(border, 2))
    for a, b in graph.edges:
        graph.edges[a, b]["weight"] = float(np.linalg.norm(colours[a] - colours[b]))
    names = sorted(colours)
    background = {}
    for name, lengths in nx.all_pairs_dijkstra_path_length(graph):
        belonging = {other: np.exp(-(length**2) / (2 * rbd.SIGMA_COLOR**2)) for other, length in lengths.items()}
        along = sum(value for other, value in belonging.items() if other in border)
        connectivity = along / np.sqrt(sum(belonging.values()))
        background[name] = 1 - np.exp(-(connectivity**2) / (2 * rbd.SIGMA_BOUNDARY**2))

    contrast = []
    for name in names:
        away = np.array([np.sum((places[name] - places[other]) ** 2) for other in names])
        weight = np.exp(-away / (2 * rbd.SIGMA_SPACE**2)) * [background[other] for other in names]
        contrast.append(np.average([np.linalg.norm(colours[name] - colours[other]) for other in names], weights=weight))
    foreground = np.array(contrast) - min(contrast)
    foreground /= foreground.max()
    foreground[foreground < max(np.unique(foreground)[1:], key=functools.partial(between, foreground))] = 0

    for a, b in graph.edges:
        length = graph.edges[a, b]["weight"]
        graph.edges[a, b]["affinity"] = np.exp(-(length**2) / (2 * rbd.SIGMA_COLOR**2)) + rbd.SMOOTHNESS
    laplacian = nx.laplacian_matrix(graph, nodelist=names, weight="affinity")
    pulled = foreground + [background[name] for name in names]
    saliency = spsolve((laplacian + diags(pulled)).tocsc(), foreground)
    return ((saliency - saliency.min()) / np.ptp(saliency))[labels - 1]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--images", type=int, default=16)
    asked.add_argument("--rounds", type=int, default=5, help="of both sides")
    given = asked.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    images, photograph, rng = [], Image.fromarray(data.chelsea()), np.random.default_rng(0)
    for _ in range(given.images):
        x, y = rng.uniform(0, 0.4, 2) * photograph.size
        box = (x, y, x + 0.6 * photograph.width, y + 0.6 * photograph.height)
        images.append(rbd.reduced(np.asarray(photograph.resize((300, 200), Image.Resampling.BILINEAR, box))))

    sides = {"rbd": lambda image: rbd.robust_background(image).saliency, "plain": plain}
    apart = max(float(np.abs(sides["rbd"](image) - plain(image)).max()) for image in images)
    if apart > 0.01:
        raise SystemExit(f"the maps of the two sides are {apart:.3f} apart")
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(given.rounds):
        for side, work in sides.items():
            began = time.perf_counter()
            for image in images:
                work(image)
            seconds[side].append((time.perf_counter() - began) / len(images))
    figures: dict[str, float] = {"largest_difference": apart}
    for side, values in seconds.items():
        figures |= {f"{side}_ms": 1e3 * statistics.median(values)}
        figures |= {f"{side}_ms_{end.__name__}": 1e3 * end(values) for end in (min, max)}
    ratios = [a / b for a, b in zip(seconds["plain"], seconds["rbd"], strict=True)]
    figures["plain_time_over_rbd"] = statistics.median(ratios)
    print("\n".join(f"{name:24} {value:8.3f}" for name, value in figures.items()))
    write_results("peers_rbd", figures)


if __name__ == "__main__":
    main()
