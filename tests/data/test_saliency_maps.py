import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvsa_jax.data.boxes import ASPECT_RANGE
from cvsa_jax.data.saliency_maps import (
    SaliencyMaps,
    cover_heights,
    object_integral,
    object_too_large,
    saliency_maps,
    search,
)
from cvsa_jax.data.saliency_swap import salient_box
from cvsa_jax.training import device_views

GRID = 64
ALMOST_ONE = np.nextafter(np.float32(1), np.float32(0))
SEARCHES = {"host": search, "device": lambda *args: device_views._search(*map(jnp.asarray, args))}


def map_of(saliency: np.ndarray, threshold: float = 1 / 255) -> SaliencyMaps:
    """A map that is blank where no cell is at the threshold; by default where all are 0."""
    return saliency_maps(saliency[None].astype(np.uint8), np.zeros((1, len(saliency)), np.uint8), threshold, np)


def box_of(maps: SaliencyMaps, rows: int, cols: int, u: float, where: str = "host") -> tuple[int, ...]:
    """The box in cells."""
    shape = np.array([rows], np.int32), np.array([cols], np.int32)
    which = np.zeros(1, np.int32)
    box = salient_box(maps.integral, maps.object_mass, which, shape, np.array([u], np.float32), np, SEARCHES[where])
    cells = np.asarray(box[0]) * maps.cells.shape[1]
    np.testing.assert_allclose(cells, np.round(cells), atol=1e-4)
    return tuple(int(v) for v in np.round(cells))


def sums_of_all_positions(saliency: np.ndarray, rows: int, cols: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(saliency.astype(int), (rows, cols)).sum((2, 3))


def test_integral_image_holds_sums_of_full_uint8_maps():
    integral = map_of(np.full((GRID, GRID), 255, np.uint8)).integral[0]
    assert integral[-1, -1] == 255 * GRID * GRID
    assert not integral[0].any()
    assert not integral[:, 0].any()


def test_object_holds_the_cells_at_the_threshold_or_above():
    saliency = np.array([[0, 127], [128, 255]], np.uint8)
    assert map_of(saliency, 0.5).object[0, -1, -1] == 383
    assert map_of(saliency, 0.5).integral[0, -1, -1] == 510


@pytest.mark.parametrize("where", SEARCHES)
@pytest.mark.parametrize("rows, cols", [(1, 1), (1, 12), (7, 2), (12, 12)])
def test_most_salient_box_against_brute_force(rows, cols, where):
    grid = 12
    rng = np.random.default_rng([rows, cols])
    for trial in range(6):
        # Few levels make ties, many make none.
        saliency = rng.integers(0, 3 if trial % 2 else 256, (grid, grid)).astype(np.uint8)
        sums = sums_of_all_positions(saliency, rows, cols)
        y0, x0, y1, x1 = box_of(map_of(saliency), rows, cols, rng.random(), where)
        assert (y1 - y0, x1 - x0) == (rows, cols)
        assert 0 <= y0 <= y1 <= grid
        assert 0 <= x0 <= x1 <= grid
        assert sums[y0, x0] == sums.max()


@pytest.mark.parametrize("where", SEARCHES)
def test_equally_good_positions_are_drawn_equally_often(where):
    grid, rows, cols = 8, 3, 5
    saliency = np.full((grid, grid), 9, np.uint8)
    saliency[0] = saliency[:, 2] = 0
    sums = sums_of_all_positions(saliency, rows, cols)
    good = sums == sums.max()
    assert 3 < good.sum() < good.size
    draws = (np.arange(5 * good.sum()) + 0.5) / (5 * good.sum())
    found = [box_of(map_of(saliency), rows, cols, u, where) for u in draws]
    counts = {box: found.count(box) for box in set(found)}
    assert set(counts.values()) == {5}
    assert {box[:2] for box in counts} == {tuple(place) for place in np.argwhere(good)}


@pytest.mark.parametrize("where", SEARCHES)
@pytest.mark.parametrize("u_tie", [ALMOST_ONE, 1.0], ids=["almost one", "one"])
@pytest.mark.parametrize("rows", [1, 30])
def test_the_last_tie_is_a_valid_position(u_tie, rows, where):
    box = box_of(map_of(np.full((GRID, GRID), 1, np.uint8)), rows, rows, u_tie, where)
    assert box == (GRID - rows, GRID - rows, GRID, GRID)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (5, 8), (12, 12), (7, 2)])
def test_blank_map_gives_the_box_of_the_centre(rows, cols):
    grid = 12
    saliency = np.random.default_rng(0).integers(0, 127, (grid, grid)).astype(np.uint8)
    saliency[0, 0] = 127  # the highest of all, and below 0.5 · 255
    for u in (0.0, 0.5, 0.99):
        y0, x0, y1, x1 = box_of(map_of(saliency, 0.5), rows, cols, u)
        # As much room above as below and left as right, but for half a cell.
        assert (y1 - y0, x1 - x0) == (rows, cols)
        assert 0 <= (grid - y1) - y0 <= 1 and 0 <= (grid - x1) - x0 <= 1
    saliency[0, 0] = 128
    assert box_of(map_of(saliency, 0.5), 1, 1, 0.5)[:2] == (0, 0)


def blobs(seed: int, grid: int) -> np.ndarray:
    """A few rectangles of several levels, some of them below the threshold."""
    rng = np.random.default_rng(seed)
    saliency = rng.integers(0, 60, (grid, grid))
    for level in (255, 200, 140, 90):
        y, x = rng.integers(0, grid, 2)
        saliency[y : y + rng.integers(1, grid // 2), x : x + rng.integers(1, grid // 2)] = level
    return saliency.astype(np.uint8)


@pytest.mark.parametrize("cover", [0.5, 0.95], ids=["half", "nearly all"])
@pytest.mark.parametrize("seed", range(3))
def test_cover_heights_against_brute_force(seed, cover):
    grid = 14
    saliency = blobs(seed, grid)
    seen = np.where(saliency >= 127.5, saliency, 0)
    heights = cover_heights(object_integral(saliency[None], 0.5, np)[0], cover)
    assert heights.dtype == np.uint8
    for wide in range(1, grid + 1):
        best = [sums_of_all_positions(seen, high, wide).max() for high in range(1, grid + 1)]
        enough = [high for high, most in enumerate(best, start=1) if most >= cover * seen.sum()]
        assert heights[wide - 1] == (enough[0] if enough else grid + 1)


def test_blank_map_is_covered_by_any_box():
    heights = cover_heights(object_integral(np.full((1, 9, 9), 127, np.uint8), 0.5, np)[0], 0.95)
    assert heights.tolist() == [1] * 9


@pytest.mark.parametrize("most", [0.1, 0.3, 0.6], ids=["a tenth", "a third", "most of the image"])
def test_object_is_too_large_where_no_allowed_box_covers_it(most):
    grid, maps = 14, np.stack([blobs(seed, 14) for seed in range(12)])
    integrals = object_integral(maps, 0.5, np)
    heights = np.stack([cover_heights(integral, 0.9) for integral in integrals])
    too_large = object_too_large(heights, most, np)
    allowed = [
        (high, wide)
        for high in range(1, grid + 1)
        for wide in range(1, grid + 1)
        if ASPECT_RANGE[0] <= wide / high <= ASPECT_RANGE[1] and high * wide <= most * grid**2
    ]
    for k, saliency in enumerate(maps):
        seen = np.where(saliency >= 127.5, saliency, 0)
        assert too_large[k] != any(sums_of_all_positions(seen, *box).max() >= 0.9 * seen.sum() for box in allowed)
    np.testing.assert_array_equal(too_large, object_too_large(jnp.asarray(heights), most, jnp))
    assert 0 < too_large.sum() < 12 or most != 0.3


def test_maps_are_the_same_on_host_and_device():
    cells, rows = np.stack([blobs(0, GRID), blobs(1, GRID)]), np.zeros((2, GRID), np.uint8)
    host = saliency_maps(cells, rows, 0.5, np)
    device = jax.jit(lambda cells, rows: saliency_maps(cells, rows, 0.5, jnp))(cells, rows)
    for ours, theirs in zip(host, device, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
