"""Saliency without any training: "Saliency Optimization from Robust Background Detection", Zhu, Liang, Wei and Sun,
CVPR 2014.

The image is cut into superpixels. A region that meets a lot of the image's border for its size is background (§3), what
differs in colour from the background around it may be an object (§4.1), and a least-squares problem reconciles the two
with the wish for a map that changes only where the colour does (§4.2).

JAX is not imported, so that a worker process starts fast. Arrays are over the n superpixels; a
superpixel is a "border" one if it holds a pixel of the image's first or last row or column."""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.sparse.csgraph import csgraph_from_dense, shortest_path
from scipy.spatial.distance import cdist
from skimage.color import rgb2lab
from skimage.segmentation import slic

from cvsa_jax.runtime import workers
from cvsa_jax.saliency.detector import Detection, Detector, scaled

LONGEST_SIDE = 200  # of the reduced image, in pixels
SHORTEST_SIDE = 8  # of the reduced image, in pixels, at least
SUPERPIXELS = 250  # about so many in an image
SUPERPIXEL_AREA = 4  # pixels on average, at least: a tiny image has fewer superpixels
COMPACTNESS = 40.0  # of SLIC, in CIELab units; IoU on 186 butterflies .620, at SLIC's default of 10 .587, at 80 .615
SIGMA_COLOR = 10.0  # the paper's σ_clr, in CIELab units
SIGMA_BOUNDARY = 1.0  # the paper's σ_bndCon
SIGMA_SPACE = 0.25  # the paper's σ_spa, in image sides
SMOOTHNESS = 0.1  # the paper's μ, the smoothing between neighbours of whatever colours
NOTICEABLE = 1.0  # in CIELab units: an image whose contrasts span less has nothing that stands out

SETTINGS = {
    "longest_side": LONGEST_SIDE,
    "shortest_side": SHORTEST_SIDE,
    "superpixels": SUPERPIXELS,
    "superpixel_area": SUPERPIXEL_AREA,
    "compactness": COMPACTNESS,
    "sigma_color": SIGMA_COLOR,
    "sigma_boundary": SIGMA_BOUNDARY,
    "sigma_space": SIGMA_SPACE,
    "smoothness": SMOOTHNESS,
    "noticeable": NOTICEABLE,
}


class Superpixels(NamedTuple):
    """`color`: (n, 3) mean CIELab; `position`: (n, 2) centre (y, x) in [0, 1], in image sides; `border`: (n,) bool;
    `adjacent`: (n, n) bool, symmetric, share an edge between two pixels, False on the diagonal."""

    color: np.ndarray
    position: np.ndarray
    border: np.ndarray
    adjacent: np.ndarray


def detector() -> Detector:
    """`robust_background` in as many processes as there are cores."""

    def detect(images: list[np.ndarray]) -> list[Detection]:
        return list(workers.over_cores(robust_background, ((image,) for image in images), chunk=2))

    # Long batches, so that few cores wait at their ends.
    return Detector("rbd", "unsupervised", SETTINGS, lambda i, image: reduced(image), detect, 16 * workers.CORES)


def reduced(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (h, w, 3) uint8, bilinear with antialiasing: the longest side at most LONGEST_SIDE with the
    shape kept, and never enlarged but for a side below SHORTEST_SIDE."""
    height, width = image.shape[:2]
    factor = min(1.0, LONGEST_SIDE / max(height, width))
    size = tuple(max(SHORTEST_SIDE, round(side * factor)) for side in (width, height))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def robust_background(image: np.ndarray) -> Detection:
    """(h, w, 3) uint8, as `reduced` gives it -> its (h, w) saliency. The confidence is the maximum of the map before
    scaling: about 1 with an object that cannot be background, 0 with an empty map where nothing stands out."""
    labels = segmented(image)
    saliency = superpixel_saliency(described(rgb2lab(image), labels))
    return Detection(scaled(saliency[labels]), float(np.clip(saliency.max(), 0, 1)))


def superpixel_saliency(superpixels: Superpixels) -> np.ndarray:
    """(n,) float64 in [0, 1], about 0 for background and about 1 for objects."""
    distance = cdist(superpixels.color, superpixels.color)
    linked = border_linked(superpixels)
    background = background_probability(boundary_connectivity(distance, linked, superpixels.border))
    contrast = background_contrast(distance, superpixels.position, background)
    if np.ptp(contrast) < NOTICEABLE:
        return np.zeros(len(contrast))
    affinity = np.where(linked, similarity(distance) + SMOOTHNESS, 0.0)  # Eq. 10
    return optimized(background, standing_out(contrast), affinity)


def segmented(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (h, w) superpixel of each pixel, numbered from 0 without gaps."""
    height, width = image.shape[:2]
    count = max(1, min(SUPERPIXELS, height * width // SUPERPIXEL_AREA))
    return slic(image, n_segments=count, compactness=COMPACTNESS, start_label=0)


def described(lab: np.ndarray, labels: np.ndarray) -> Superpixels:
    """CIELab image (h, w, 3) and labels (h, w), numbered from 0 without gaps."""
    area = np.bincount(labels.ravel())
    height, width = labels.shape
    y, x = np.mgrid[:height, :width] + 0.5

    def means(*channels: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(labels.ravel(), channel.ravel()) / area for channel in channels], axis=1)

    border = np.zeros(len(area), bool)
    border[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    adjacent = np.zeros((len(area), len(area)), bool)
    adjacent[labels[1:], labels[:-1]] = True
    adjacent[labels[:, 1:], labels[:, :-1]] = True
    np.fill_diagonal(adjacent, False)
    return Superpixels(means(*np.moveaxis(lab, -1, 0)), means(y / height, x / width), border, adjacent | adjacent.T)


def border_linked(superpixels: Superpixels) -> np.ndarray:
    """(n, n) bool, symmetric: the neighbours, and all border superpixels with each other, so that an object which cuts
    the background in two does not keep its parts from being one region (§3.2). The map is smoothed along the same
    links, which costs an object that is cut off by the border its outermost superpixels but is better on average."""
    linked = superpixels.adjacent | np.logical_and.outer(superpixels.border, superpixels.border)
    np.fill_diagonal(linked, False)
    return linked


def similarity(distance: np.ndarray) -> np.ndarray:
    """Of colour distances in CIELab units, in (0, 1]."""
    return np.exp(-(distance**2) / (2 * SIGMA_COLOR**2))


def boundary_connectivity(distance: np.ndarray, linked: np.ndarray, border: np.ndarray) -> np.ndarray:
    """How much of the image's border a superpixel's region takes, for the region's size (§3.2).

    Args:
        distance: (n, n) colour distances in CIELab units.
        linked: (n, n) bool, symmetric.
        border: (n,) bool.

    Returns:
        (n,), >= 0: the region's length along the border over the root of its area, both counted in superpixels (Eq. 6).
        A region is soft: others belong to it by how little the colour changes on the best way to them (Eqs. 3-5).
    """
    # With infinity for "no link", a link between equal colours keeps its length of 0.
    graph = csgraph_from_dense(np.where(linked, distance, np.inf), null_value=np.inf)
    belonging = similarity(shortest_path(graph, method="D", directed=False))
    return belonging[:, border].sum(axis=1) / np.sqrt(belonging.sum(axis=1))


def background_probability(connectivity: np.ndarray) -> np.ndarray:
    """In [0, 1], of boundary connectivities (§4.1)."""
    return 1 - np.exp(-(connectivity**2) / (2 * SIGMA_BOUNDARY**2))


def background_contrast(distance: np.ndarray, position: np.ndarray, background: np.ndarray) -> np.ndarray:
    """(n,) colour difference from the background around, in CIELab units (§4.1). The paper adds up over all
    superpixels, with weights that fall with the distance in space and rise with the background probability; here it is
    the mean with these weights, as the sum is less where there is less background near, in the middle of an object."""
    near = np.exp(-cdist(position, position, "sqeuclidean") / (2 * SIGMA_SPACE**2))
    weight = near * background
    return (distance * weight).sum(axis=1) / weight.sum(axis=1)


def standing_out(contrast: np.ndarray) -> np.ndarray:
    """Contrasts, not all equal, as the weights in [0, 1] that pull superpixels to 1; the lower of their two classes has
    none, otherwise the many low ones of a textured background lift it together."""
    weight = (contrast - contrast.min()) / np.ptp(contrast)
    return np.where(weight >= upper_class(weight), weight, 0.0)


def upper_class(values: np.ndarray) -> float:
    """The least of the upper of the two classes into which Otsu's criterion cuts (n,) values, not all equal."""
    ordered = np.sort(values)
    below = np.arange(1, len(values))
    shortfall = ordered.mean() * below - np.cumsum(ordered)[:-1]
    between = shortfall**2 / (below * (len(values) - below))  # the classes' variance, but for a constant factor
    return ordered[below[np.argmax(between)]]


def optimized(background: np.ndarray, foreground: np.ndarray, affinity: np.ndarray) -> np.ndarray:
    """The (n,) map s that makes this least, with each pair counted once (Eq. 9):

        sum_i background_i s_i^2 + sum_i foreground_i (s_i - 1)^2 + sum_{i<j} affinity_ij (s_i - s_j)^2

    `background`, `foreground`: (n,), >= 0; `affinity`: (n, n), >= 0, symmetric, 0 on the diagonal.
    """
    laplacian = np.diag(affinity.sum(axis=1)) - affinity
    return np.linalg.solve(laplacian + np.diag(background + foreground), foreground)
