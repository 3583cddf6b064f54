import itertools
import warnings

import numpy as np
import pytest
from skimage.color import rgb2lab

from cvsa_jax.runtime.workers import over_cores
from cvsa_jax.saliency.detectors import rbd
from cvsa_jax.saliency.detectors.rbd import Superpixels, reduced, robust_background

HEIGHT, WIDTH = 120, 160
RED, GREEN, BLUE, GRAY, WHITE = (190, 50, 40), (60, 120, 50), (60, 80, 170), (90, 90, 90), (230, 230, 230)
Y, X = np.mgrid[:HEIGHT, :WIDTH]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def disc(y: int, x: int, radius: int) -> np.ndarray:
    return (Y - y) ** 2 + (X - x) ** 2 <= radius**2


def painted(background: tuple, *layers: tuple[np.ndarray, tuple], noise: int = 6) -> np.ndarray:
    """Each layer, (mask, colour), over those before, and uniform noise of +-noise over all."""
    image = np.empty((HEIGHT, WIDTH, 3), np.int64)
    image[:] = background
    for mask, color in layers:
        image[mask] = color
    return np.uint8(np.clip(image + np.random.default_rng(0).integers(-noise, noise + 1, image.shape), 0, 255))


def measured(image: np.ndarray) -> tuple[np.ndarray, Superpixels, np.ndarray]:
    """Colour distances, superpixels, labels."""
    labels = rbd.segmented(image)
    superpixels = rbd.described(rgb2lab(image), labels)
    return np.linalg.norm(superpixels.color[:, None] - superpixels.color, axis=-1), superpixels, labels


def iou(saliency: np.ndarray, mask: np.ndarray) -> float:
    found = saliency >= 0.5
    return (found & mask).sum() / (found | mask).sum()


OBJECT = disc(50, 65, 28)
SCENES = {
    "plain": painted(GREEN, (OBJECT, RED)),
    "two backgrounds": painted(GREEN, (X > 75, BLUE), (OBJECT, RED)),
    "three backgrounds": painted(GREEN, (X > 75, BLUE), (Y > 70, WHITE), (OBJECT, RED)),
    "gray": painted(GRAY, (OBJECT, WHITE), noise=0),
    "darker than the background": painted(WHITE, (OBJECT, GRAY)),
}


@pytest.mark.parametrize("scene", SCENES)
def test_disc_is_found(scene):
    saliency, confidence = robust_background(SCENES[scene])
    assert saliency.shape == (HEIGHT, WIDTH) and saliency.dtype == np.float32
    assert saliency.min() == 0 and saliency.max() == 1
    assert iou(saliency, OBJECT) > 0.9
    assert 0.9 < confidence <= 1


def test_object_may_touch_the_border_but_not_run_along_it():
    touching, band = disc(HEIGHT - 28, 90, 28), X < 16
    image = painted(GREEN, (band, BLUE), (touching, RED))
    saliency = robust_background(image).saliency
    assert touching[-1].sum() == 15
    assert iou(saliency, touching) > 0.9
    assert saliency[band].max() < 0.5
    distance, superpixels, labels = measured(image)
    connectivity = rbd.boundary_connectivity(distance, rbd.border_linked(superpixels), superpixels.border)
    background = rbd.background_probability(connectivity)
    assert background[labels[-2, 90]] < 0.3
    assert background[labels[60, 5]] > 0.95


def test_background_in_two_parts_is_one_region():
    """A bar from the top to the bottom: each of the two sides alone has fewer border pixels for its area."""
    bar = abs(X - 80) < 12
    image = painted(GREEN, (bar, RED))
    distance, superpixels, labels = measured(image)
    left, right = labels[60, 20], labels[60, 140]
    both, one = (
        rbd.boundary_connectivity(distance, linked, superpixels.border)
        for linked in (rbd.border_linked(superpixels), superpixels.adjacent)
    )
    assert both[left] == pytest.approx(both[right], rel=0.05)
    assert both[left] > 1.25 * one[left] and both[right] > 1.25 * one[right]


def test_confidence_is_the_maximum_before_scaling():
    """Of an image with little that stands out, so that the maximum is far from 1."""
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    _, superpixels, labels = measured(image)
    raw = rbd.superpixel_saliency(superpixels)
    saliency, confidence = robust_background(image)
    assert raw.min() > 0.01 and raw.max() < 0.95
    assert confidence == raw.max()
    np.testing.assert_allclose(saliency, ((raw - raw.min()) / np.ptp(raw))[labels], atol=1e-6)


@pytest.mark.parametrize("size", [(8, 200), (120, 160)], ids=["narrow", "usual"])
def test_nothing_stands_out_of_a_uniform_image(size):
    saliency, confidence = robust_background(np.full((*size, 3), 77, np.uint8))
    assert saliency.shape == size and not saliency.any()
    assert confidence == 0


def test_nothing_stands_out_of_faint_noise():
    saliency, confidence = robust_background(painted(GREEN, noise=4))
    assert not saliency.any() and confidence == 0


@pytest.mark.parametrize("size", [(8, 8), (8, 64), (24, 8)])
def test_object_in_a_tiny_image_is_found(size):
    image = np.full((*size, 3), GREEN, np.uint8)
    inside = np.zeros(size, bool)
    inside[2:-2, 2:-2] = True
    image[inside] = RED
    saliency = robust_background(image).saliency
    assert saliency.shape == size
    assert rbd.segmented(image).max() < size[0] * size[1] / 4
    assert saliency[inside].min() > 0.5 > saliency[~inside].max()


def test_maps_of_one_image_are_bitwise_equal():
    first, second = robust_background(SCENES["three backgrounds"]), robust_background(SCENES["three backgrounds"])
    assert first.saliency.tobytes() == second.saliency.tobytes() and first.confidence == second.confidence


@pytest.mark.parametrize("axis", [0, 1])
def test_map_of_a_flipped_image_is_flipped(axis):
    image = SCENES["three backgrounds"]
    saliency, flipped = robust_background(image).saliency, robust_background(np.flip(image, axis)).saliency
    assert abs(saliency - np.flip(flipped, axis)).mean() < 0.04
    assert abs(saliency - flipped).mean() > 0.08


def test_worker_processes_give_the_same_map():
    image = SCENES["two backgrounds"]
    here = robust_background(image)
    there, _ = over_cores(robust_background, [(image,)] * 2, chunk=1)
    (heavy,) = over_cores(eval, [("{'jax', 'flax', 'tensorflow'} & set(__import__('sys').modules)",)], chunk=1)
    # Another number of threads of linear algebra, which the environment may set, rounds otherwise.
    np.testing.assert_allclose(there.saliency, here.saliency, atol=1e-6)
    assert there.confidence == pytest.approx(here.confidence)
    assert not heavy


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((400, 300), (200, 150)),
        ((201, 67), (200, 67)),
        ((200, 200), (200, 200)),
        ((2000, 20), (200, 8)),
        ((1, 1), (8, 8)),
    ],
    ids=["half", "just above", "just at the limit", "long", "a pixel"],
)
def test_reduced_sides_are_within_their_limits(size, expected):
    assert reduced(np.zeros((*size, 3), np.uint8)).shape == (*expected, 3)


def test_reduced_averages():
    """Of a fine chequerboard, nearest or plain bilinear sampling would leave whole black or white pixels."""
    board = np.uint8(255 * (np.indices((600, 600)).sum(0) % 2))
    inside = reduced(np.dstack([board] * 3))[2:-2, 2:-2]
    assert inside.min() > 100 and inside.max() < 155


def test_reduced_leaves_a_small_image_alone():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    np.testing.assert_array_equal(reduced(image), image)


def test_settings_hold_every_constant():
    numbers = {name.lower(): value for name, value in vars(rbd).items() if isinstance(value, int | float)}
    assert numbers == rbd.SETTINGS


def test_superpixels_follow_edges():
    labels = rbd.segmented(SCENES["two backgrounds"])
    area = np.bincount(labels.ravel())
    assert labels.shape == (HEIGHT, WIDTH)
    assert 200 <= len(area) <= 300 and area.min() > 0
    inside = np.bincount(labels.ravel(), OBJECT.ravel()) / area
    assert np.minimum(inside, 1 - inside).mean() < 0.02


LABELS = np.array(
    [
        [0, 0, 1, 1, 1],
        [0, 2, 2, 3, 1],
        [0, 2, 2, 3, 1],
        [4, 4, 4, 1, 1],
    ]
)


def test_superpixels_are_described_by_colour_place_and_neighbours():
    lab = np.random.default_rng(0).normal(size=(4, 5, 3))
    superpixels = rbd.described(lab, LABELS)
    for i in range(5):
        np.testing.assert_allclose(superpixels.color[i], lab[i == LABELS].mean(0))
    np.testing.assert_array_equal(superpixels.border, [True, True, False, False, True])
    # Of 0: rows 0, 0, 1, 2 of 4, columns 0, 1, 0, 0 of 5, pixel centres.
    np.testing.assert_allclose(superpixels.position[0], [(3 / 4 + 0.5) / 4, (1 / 4 + 0.5) / 5])
    np.testing.assert_allclose(superpixels.position[2], [2 / 4, 2 / 5])
    edges = {(0, 1), (0, 2), (0, 4), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4)}
    assert {(i, j) for i, j in np.argwhere(superpixels.adjacent).tolist()} == edges | {(j, i) for i, j in edges}


def grid_superpixels(side: int, seed: int) -> Superpixels:
    """side x side square superpixels: a background in two colours, an object of 3 x 3 in the middle, and some noise."""
    rng = np.random.default_rng(seed)
    color = np.full((side, side, 3), (50.0, 5.0, 10.0))
    color[:, side // 2 :] += (0, 6, 4)
    color[side // 2 - 1 : side // 2 + 2, side // 2 - 1 : side // 2 + 2] = (70.0, 40.0, -20.0)
    color += rng.normal(scale=1.0, size=color.shape)
    color[0, 0] = color[0, 1] = color[1, 1]  # lengths of exactly 0 are links as well
    labels = np.kron(np.arange(side * side).reshape(side, side), np.ones((2, 2), int))
    return rbd.described(np.repeat(np.repeat(color, 2, 0), 2, 1), labels)


def plain_distance(superpixels: Superpixels) -> np.ndarray:
    color = superpixels.color
    return np.array([[np.sqrt(((a - b) ** 2).sum()) for b in color] for a in color])


def plain_connectivity(superpixels: Superpixels) -> np.ndarray:
    """Section 3.2 with Floyd and Warshall's shortest paths."""
    n, distance = len(superpixels.color), plain_distance(superpixels)
    path = np.full((n, n), np.inf)
    for i, j in itertools.product(range(n), repeat=2):
        if i == j:
            path[i, j] = 0
        elif superpixels.adjacent[i, j] or (superpixels.border[i] and superpixels.border[j]):
            path[i, j] = distance[i, j]
    for k in range(n):
        path = np.minimum(path, path[:, k : k + 1] + path[k : k + 1])
    spread = np.exp(-(path**2) / 200)
    return np.array([row[superpixels.border].sum() / row.sum() ** 0.5 for row in spread])


def plain_cost(s: np.ndarray, background: np.ndarray, foreground: np.ndarray, affinity: np.ndarray) -> float:
    """Equation 9, each pair once."""
    cost = 0.0
    for i in range(len(s)):
        cost += background[i] * s[i] ** 2 + foreground[i] * (s[i] - 1) ** 2
        for j in range(i):
            cost += affinity[i, j] * (s[i] - s[j]) ** 2
    return cost


def gradient(function, at: np.ndarray) -> np.ndarray:
    """Central differences, which are exact for a quadratic function but for rounding."""
    steps = 1e-3 * np.eye(len(at))
    return np.array([(function(at + step) - function(at - step)) / 2e-3 for step in steps])


def plain_weights(superpixels: Superpixels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weights of the three terms of the cost, in loops."""
    n, distance = len(superpixels.color), plain_distance(superpixels)
    background = 1 - np.exp(-(plain_connectivity(superpixels) ** 2) / 2)
    contrast = np.zeros(n)
    for i in range(n):
        apart = ((superpixels.position[i] - superpixels.position) ** 2).sum(1)
        contrast[i] = np.average(distance[i], weights=np.exp(-apart / 0.125) * background)
    foreground = (contrast - contrast.min()) / (contrast.max() - contrast.min())
    ordered = np.sort(foreground)
    # Otsu: the cut with the least spread within the two classes.
    cut = min(range(1, n), key=lambda k: k * ordered[:k].var() + (n - k) * ordered[k:].var())
    foreground[foreground < ordered[cut]] = 0
    affinity = np.zeros((n, n))
    for i, j in itertools.permutations(range(n), 2):
        if superpixels.adjacent[i, j] or (superpixels.border[i] and superpixels.border[j]):
            affinity[i, j] = np.exp(-(distance[i, j] ** 2) / 200) + 0.1
    return background, foreground, affinity


@pytest.mark.parametrize("seed", range(2))
def test_boundary_connectivity_against_floyd_warshall(seed):
    superpixels = grid_superpixels(7, seed)
    linked = rbd.border_linked(superpixels)
    found = rbd.boundary_connectivity(plain_distance(superpixels), linked, superpixels.border)
    np.testing.assert_allclose(found, plain_connectivity(superpixels), rtol=1e-9)


def test_boundary_connectivity_by_hand():
    """Nine superpixels, the middle one 20 units away from the others, which are all alike."""
    labels = np.arange(9).reshape(3, 3)
    lab = np.zeros((3, 3, 3))
    lab[1, 1] = (20, 0, 0)
    superpixels = rbd.described(lab, labels)
    found = rbd.boundary_connectivity(plain_distance(superpixels), rbd.border_linked(superpixels), superpixels.border)
    far = np.exp(-2.0)
    expected = np.full(9, 8 / (8 + far) ** 0.5)
    expected[4] = 8 * far / (1 + 8 * far) ** 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_saliency_zeroes_the_gradient_of_the_cost(seed):
    superpixels = grid_superpixels(7, seed)
    weights = plain_weights(superpixels)
    saliency = rbd.superpixel_saliency(superpixels)
    slope = gradient(lambda s: plain_cost(s, *weights), saliency)
    np.testing.assert_allclose(slope, 0, atol=1e-9)
    assert 9 <= (weights[1] > 0).sum() < 20  # the object, and not everything


def test_foreground_is_cut_between_two_classes():
    """The classes have the means 2 and 9; the range is 9."""
    found = rbd.standing_out(np.array([1.0, 8.0, 3.0, 2.0, 10.0]))
    np.testing.assert_allclose(found, [0, 7 / 9, 0, 0, 1])


def test_optimum_by_hand():
    """Two superpixels: s0 (1 + 2) - 2 s1 = 0 and s1 (3 + 2) - 2 s0 = 3."""
    found = rbd.optimized(np.array([1.0, 0.0]), np.array([0.0, 3.0]), np.array([[0.0, 2.0], [2.0, 0.0]]))
    np.testing.assert_allclose(found, [6 / 11, 9 / 11])
