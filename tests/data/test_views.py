import dataclasses
import io
import itertools

import numpy as np
import pytest
from PIL import Image
from support import small_sources

from cvsa_jax.data import decode, pixels
from cvsa_jax.data.pipeline import Input
from cvsa_jax.data.plan import random_crop_boxes
from cvsa_jax.data.resample import with_masks
from cvsa_jax.data.saliency_maps import MapReader
from cvsa_jax.data.saliency_swap import background_indices
from cvsa_jax.data.view_spec import MASK_STRIDE
from cvsa_jax.data.views import Pairs

SIZE, GRID, GROUP = 32, 64, 4
SWAP = dataclasses.replace(small_sources.SWAP, size=SIZE, group=GROUP)
CROP = dataclasses.replace(SWAP, kind="random_resized_crop")
SHAPES = [(40, 60), (64, 64), (90, 30), (50, 50)]


def random_group(seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in SHAPES]
    return images, rng.integers(0, 256, (GROUP, GRID, GRID)).astype(np.uint8)


def run(images, saliency, spec, *, positions=(8, 9, 10, 11), examples=(3, 0, 2, 1), seed=1) -> dict[str, np.ndarray]:
    """The batch whose groups each have these images as rows, with these numbers in the data set."""
    return run_files([png(image) for image in images], saliency, spec, positions, examples, seed)


def run_files(files, saliency, spec, positions=(8, 9, 10, 11), examples=(3, 0, 2, 1), seed=1) -> dict[str, np.ndarray]:
    row_of = [list(examples).index(e) if e in examples else 0 for e in range(GROUP)]
    source = small_sources.memory_source([files[row] for row in row_of])
    maps = None if saliency is None else MapReader(np.asarray(saliency)[row_of], spec)

    def places(step: int) -> tuple[np.ndarray, np.ndarray]:
        return np.tile(examples, len(positions) // GROUP), np.array(positions)

    (batch,) = Input(source, np.arange(GROUP), places, Pairs(spec, seed, maps)).batches(range(1))
    return {name: rows for name, rows in with_masks(batch, SIZE, np).items() if name != "position"}


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG")
    return file.getvalue()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def cell_means(channel: np.ndarray) -> np.ndarray:
    k = channel.shape[-1] // MASK_STRIDE
    return channel.reshape(*channel.shape[:-2], k, MASK_STRIDE, k, MASK_STRIDE).astype(float).mean((-3, -1))


@pytest.mark.parametrize("spec", [SWAP, CROP], ids=lambda spec: spec.kind)
def test_views_have_their_shapes_and_types(spec):
    rows = run(*random_group(), spec)
    assert {name: (value.shape, value.dtype.name) for name, value in rows.items()} == {
        "view1": ((GROUP, SIZE, SIZE, 3), "uint8"),
        "view2": ((GROUP, SIZE, SIZE, 3), "uint8"),
        "mask1": ((GROUP, SIZE // MASK_STRIDE, SIZE // MASK_STRIDE), "uint8"),
        "mask2": ((GROUP, SIZE // MASK_STRIDE, SIZE // MASK_STRIDE), "uint8"),
    } | ({"residual": ((GROUP, 2), "float32")} if spec is SWAP else {})


def test_crops_need_no_saliency():
    images, saliency = random_group()
    with_masks, without = run(images, saliency, CROP), run(images, None, CROP)
    assert without.keys() == {"view1", "view2"}
    assert all(np.array_equal(with_masks[name], without[name]) for name in without)


@pytest.mark.parametrize("spec", [SWAP, CROP], ids=lambda spec: spec.kind)
def test_views_depend_on_seed_and_positions_only(spec):
    group = random_group()
    first = run(*group, spec)
    assert same(first, run(*group, spec))
    for changed in (run(*group, spec, seed=2), run(*group, spec, positions=(12, 13, 14, 15))):
        for name in ("view1", "view2"):
            assert all((first[name][k] != changed[name][k]).any() for k in range(GROUP))
    # The two views of an image are drawn apart.
    assert all((first["view1"][k] != first["view2"][k]).any() for k in range(GROUP))


def test_no_two_positions_share_draws():
    # Position 2p + v is the draw's number: view 2 of one position must not be view 1 of the next.
    images, saliency = random_group()
    rows = run([images[0]] * 4, saliency[[0] * 4], CROP)
    everything = np.concatenate([rows["view1"], rows["view2"]])
    assert all((a != b).any() for a, b in itertools.combinations(everything, 2))


@pytest.mark.parametrize("spec", [SWAP, CROP], ids=lambda spec: spec.kind)
def test_row_depends_only_on_its_own_position(spec):
    group = random_group()
    first, changed = run(*group, spec), run(*group, spec, positions=(8, 9, 10, 77))
    for name in first:
        np.testing.assert_array_equal(first[name][:3], changed[name][:3])
    assert (first["view1"][3] != changed["view1"][3]).any()


def test_row_depends_only_on_its_own_image_and_its_lenders():
    images, saliency = random_group()
    other_images, other_saliency = random_group(1)
    first = run(images, saliency, SWAP)
    # Row 0 borrows from images 1 and 2, never from 3.
    changed = run([*images[:3], other_images[3]], [*saliency[:3], other_saliency[3]], SWAP)
    for name in first:
        np.testing.assert_array_equal(first[name][0], changed[name][0])
    crops = run(images, saliency, CROP)
    changed = run([images[0], *other_images[1:]], [saliency[0], *other_saliency[1:]], CROP)
    for name in crops:
        np.testing.assert_array_equal(crops[name][0], changed[name][0])


def test_mask_follows_crop_and_flip():
    rng = np.random.default_rng(0)
    saliency = rng.integers(0, 256, (GROUP, GRID, GRID)).astype(np.uint8)
    images = [np.stack([m, np.zeros_like(m), 255 - m], -1) for m in saliency]
    rows = run(images, saliency, CROP, positions=range(16))
    for v in ("1", "2"):
        # Half a level for each of the two roundings.
        np.testing.assert_allclose(rows["mask" + v], cell_means(rows["view" + v][..., 0]), atol=1.01)
        assert np.ptp(rows["mask" + v].reshape(4, -1), axis=1).min() > 50


@pytest.mark.parametrize("paste, canvas_min", [("stretch", 1.0), ("keep_aspect", 0.5)])
def test_mask_follows_swap_and_flip(paste, canvas_min):
    # Only image 0 has any red, its map; so row 0 of the mask is row 0's red, wherever it is pasted.
    rng = np.random.default_rng(0)
    saliency = rng.integers(0, 256, (GROUP, GRID, GRID)).astype(np.uint8)
    images = [np.zeros((*shape, 3), np.uint8) for shape in SHAPES]
    images[0] = np.stack([saliency[0]] * 3, -1)
    spec = dataclasses.replace(SWAP, paste=paste, canvas_min=canvas_min)
    rows = run(images, saliency, spec, positions=range(16))
    for v in ("1", "2"):
        first = slice(None, None, GROUP)
        np.testing.assert_allclose(rows["mask" + v][first], cell_means(rows["view" + v][first, ..., 0]), atol=1.01)
        assert rows["mask" + v][first].max((1, 2)).min() > 50


def test_half_of_the_views_are_mirrored():
    # A crop of all the area and of aspect exactly 1 never fits, so the fallback takes the whole square image.
    spec = dataclasses.replace(CROP, crop_area=(1.0, 1.0))
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    rows, flips = run([image] * GROUP, None, spec, positions=range(40)), []
    for view in (*rows["view1"], *rows["view2"]):
        flips.append(np.array_equal(view, image[:, ::-1]))
        assert flips[-1] or np.array_equal(view, image)
    assert 20 < sum(flips) < 60


def groups_across_a_border():
    """All groups of four examples that a data order can bring: no example twice within one epoch's part."""
    for examples in itertools.product(range(4), repeat=GROUP):
        for border in range(1, GROUP + 1):
            parts = examples[:border], examples[border:]
            if all(len(set(part)) == len(part) for part in parts):
                yield examples
                break


def test_lenders_are_foreign_and_different():
    cases = list(groups_across_a_border())
    assert (0, 1, 2, 3) in cases
    assert (0, 1, 0, 1) in cases
    assert (0, 0, 1, 2) in cases
    assert (0, 0, 0, 1) not in cases
    for examples in cases:
        found = background_indices(np.array(examples), np.zeros(GROUP, bool), SWAP, np)
        assert found.dtype == np.int32
        for k in range(GROUP):
            first, second = (examples[place] for place in found[k])
            assert examples[k] not in (first, second)
            assert first != second or len(set(examples)) == 2
        if len(set(examples)) == GROUP:
            assert found.tolist() == [[(k + 1) % GROUP, (k + 2) % GROUP] for k in range(GROUP)]


@pytest.mark.parametrize(
    "examples", [(0, 1, 2, 3), (0, 1, 0, 2), (1, 1, 0, 2)], ids=["four", "first twice", "neighbours"]
)
def test_views_show_two_different_foreign_backgrounds(examples):
    colour_of = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 250]], np.uint8)
    images = [np.broadcast_to(colour_of[e], (*shape, 3)) for e, shape in zip(examples, SHAPES, strict=True)]
    rows = run(images, random_group()[1], SWAP, examples=examples)
    for k in range(GROUP):
        shown = []
        for v in ("1", "2"):
            colours = {tuple(c) for c in rows["view" + v][k].reshape(-1, 3)}
            assert tuple(colour_of[examples[k]]) in colours
            shown.append(colours - {tuple(colour_of[examples[k]])})
        assert [len(s) for s in shown] == [1, 1]
        assert shown[0] != shown[1]


def test_views_of_swap_prob_zero_are_crops():
    group = random_group()
    never = run(*group, dataclasses.replace(SWAP, swap_prob=0.0))
    assert not never.pop("residual").any()
    assert same(never, run(*group, CROP))


def test_swap_prob_is_the_share_of_swapped_views():
    group = random_group()
    some, none = dataclasses.replace(SWAP, swap_prob=0.4), dataclasses.replace(SWAP, swap_prob=0.0)
    mixed, crops = (run(*group, spec, positions=range(64), seed=0) for spec in (some, none))
    swapped = [(mixed[name][k] != crops[name][k]).any() for name in ("view1", "view2") for k in range(64)]
    # Three standard deviations of the mean of 128 views.
    assert abs(np.mean(swapped) - 0.4) < 3 * (0.4 * 0.6 / 128) ** 0.5


def test_one_swapped_view_leaves_the_other_a_crop():
    group = random_group()
    both, one, none = (run(*group, spec) for spec in (SWAP, dataclasses.replace(SWAP, swapped_views=1), CROP))
    for name in ("view1", "mask1"):
        np.testing.assert_array_equal(one[name], both[name])
    for name in ("view2", "mask2"):
        np.testing.assert_array_equal(one[name], none[name])
    assert all((one["view1"][k] != none["view1"][k]).any() for k in range(GROUP))


@pytest.mark.parametrize("shape", [(60, 100), (240, 120), (10, 400), (1, 1)])
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.5, 1.0)], ids=["small and large", "large"])
def test_random_crop_boxes_stay_in_the_image_and_keep_area_and_aspect(shape, area):
    rng = np.random.default_rng(0)
    height, width = shape
    u = rng.random((60, 10, 4)).astype(np.float32)
    boxes = random_crop_boxes(u, np.full((60, 2), shape, np.float32), area, np)
    assert boxes.dtype == np.float32
    assert boxes.min() >= -1e-5
    assert boxes.max() <= 1 + 1e-5
    h, w = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    aspect = w * width / (h * height)
    assert aspect.min() >= 3 / 4 - 1e-3
    assert aspect.max() <= 4 / 3 + 1e-3
    # The fallback may be smaller than the range, never larger.
    assert (h * w).max() <= area[1] + 1e-4
    if max(shape) <= 2 * min(shape) and area[0] < 0.5:
        assert (h * w).min() >= area[0] - 1e-4
        assert len(np.unique(boxes[:, 0])) > 40


def test_random_crop_boxes_take_the_first_draw_that_fits():
    # For a 100 × 200 image the square of the whole area is 141 pixels high, that of a quarter 71.
    u = np.full((10, 4), 0.5, np.float32)
    u[:, 0] = 1.0
    u[3] = [0.25, 0.5, 0.0, 1.0]
    u[7] = [0.01, 0.5, 0.5, 0.5]
    (box,) = random_crop_boxes(u[None], np.array([[100, 200]], np.float32), (0.0, 1.0), np)
    side = np.sqrt(0.25 * 100 * 200)
    np.testing.assert_allclose(box * [100, 200, 100, 200], [0, 200 - side, side, 200], atol=0.01)


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((10, 400), [0, 200 - 20 / 3, 10, 200 + 20 / 3]),
        ((400, 10), [200 - 20 / 3, 0, 200 + 20 / 3, 10]),
        ((100, 100), [0, 0, 100, 100]),
    ],
    ids=["wide", "tall", "square"],
)
def test_random_crop_boxes_fall_back_to_the_largest_centred_box(shape, expected):
    u = np.random.default_rng(0).random((10, 4)).astype(np.float32)
    (box,) = random_crop_boxes(u[None], np.array([shape], np.float32), (1.0, 1.0), np)
    np.testing.assert_allclose(box * [*shape, *shape], expected, atol=1e-2)


def jpeg(size: int) -> tuple[bytes, np.ndarray]:
    """A smooth picture."""
    y, x = np.mgrid[:size, :size] / size
    image = (127 + 100 * np.stack([np.sin(7 * x + 2 * y), np.cos(5 * y), np.sin(4 * x * y)], -1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=98)
    return file.getvalue(), image


@pytest.mark.parametrize("spec", [SWAP, CROP], ids=lambda spec: spec.kind)
def test_large_jpegs_are_read_smaller_and_look_the_same(spec, monkeypatch):
    # Eight times as large as any view needs them, so at an eighth, a quarter or half of their size.
    file, image = jpeg(12 * SIZE)
    saliency = random_group()[1]
    whole = run([image] * GROUP, saliency, spec)
    sides, cuts = [], pixels.cuts
    monkeypatch.setattr(pixels, "cuts", lambda shapes, *rest: sides.extend(shapes[:, 1]) or cuts(shapes, *rest))
    rows = run_files([file] * GROUP, saliency, spec)
    assert max(sides) <= 12 * SIZE and min(sides) <= 3 * SIZE
    for name in ("view1", "view2"):
        difference = np.abs(rows[name].astype(int) - whole[name])
        assert difference.mean() < 1 and np.percentile(difference, 99) < 8
    np.testing.assert_array_equal(rows["mask1"], whole["mask1"])


def test_jpeg_is_never_read_smaller_than_requested():
    file, _ = jpeg(160)
    for least, expected in ((160, 160), (81, 160), (80, 80), (41, 80), (40, 40), (20, 20), (3, 20), (500, 160)):
        assert decode.opened(file).pixels(np.array([least, least / 2])).size == (expected, expected)
    assert decode.opened(file).pixels().size == (160, 160)
