import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import average_precision_score
from support.compiling import quick

from cvsa_jax.data import sources
from cvsa_jax.data.pipeline import image_batches
from cvsa_jax.data.sources import Source, procedural
from cvsa_jax.evaluation.encode import make_encoder
from cvsa_jax.evaluation.evaluator import Evaluator, center_prior, chance
from cvsa_jax.evaluation.localization import (
    THRESHOLDS,
    attention_maps,
    iou,
    pointing_score,
    score,
    square_mask,
    upsample,
)
from cvsa_jax.evaluation.protocol import EvalSpec
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime import distributed
from cvsa_jax.training import photometric
from cvsa_jax.training.state import Network, init_state


def unit_cells(seed: int, images: int = 5, cells: int = 9, channels: int = 6) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((images, cells, channels))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_attention_averages_over_all_cells_of_other_images():
    queries, keys = unit_cells(0), unit_cells(1)
    maps = attention_maps(queries, keys)
    assert maps.shape == (5, 3, 3)
    for image in range(5):
        for cell in range(9):
            others = [queries[image, cell] @ keys[o, c] for o in range(5) if o != image for c in range(9)]
            assert maps[image, cell // 3, cell % 3] == pytest.approx(np.mean(others), abs=1e-6)


@pytest.mark.parametrize("size", [3, 7, 48])
def test_upsampled_map_spans_0_to_1(size):
    attention = np.random.default_rng(4).normal(5, 20, (3, 3)).astype(np.float32)
    scaled = upsample(attention, size)
    assert scaled.shape == (size, size)
    assert (scaled.min(), scaled.max()) == (0, pytest.approx(1, abs=1e-6))


def test_upsampling_keeps_cell_positions():
    attention = np.zeros((3, 3), np.float32)
    attention[0, 2] = 1
    scaled = upsample(attention, 12)
    assert (scaled[:4, 8:] > 0.3).all()
    assert scaled[6:].max() == scaled[:, :6].max() == 0


MAP = np.array([[0.1, 0.2, 0.0, 0.0], [0.3, 0.6, 1.0, 0.4], [0.0, 0.5, 0.9, 0.2], [0.0, 0.0, 0.1, 0.0]], np.float32)


def mask_of(*cells: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((4, 4), bool)
    for cell in cells:
        mask[cell] = True
    return mask


def test_pointing_score_checks_the_maximum_pixel():
    assert pointing_score(MAP, mask_of((1, 2))) == 1
    assert pointing_score(MAP, ~mask_of((1, 2))) == 0
    assert pointing_score(MAP, mask_of((2, 1))) == 0  # the maximum's cell, transposed
    assert pointing_score(MAP, mask_of()) == 0


def test_pointing_score_averages_over_tied_maxima():
    level = np.ones((4, 4), np.float32)
    assert pointing_score(level, mask_of((0, 0), (3, 1))) == 2 / 16
    level[1:] = 0
    assert pointing_score(level, mask_of((0, 0), (3, 1))) == 1 / 4


def test_iou_by_hand():
    # At least 0.5: (1, 1), (1, 2), (2, 1), (2, 2).
    on = MAP >= 0.5
    assert iou(on, mask_of((1, 1), (1, 2), (2, 1), (2, 2))) == 1
    assert iou(on, mask_of((1, 1), (1, 2), (0, 0), (0, 1))) == pytest.approx(2 / 6)
    assert iou(on, mask_of((3, 3))) == 0
    assert iou(on, np.ones((4, 4), bool)) == pytest.approx(4 / 16)
    assert iou(MAP >= 0.95, mask_of((1, 2))) == 1
    assert iou(mask_of(), mask_of((0, 0))) == 0


def test_image_without_object_counts_only_for_pixel_ap():
    masks = np.stack([mask_of((1, 1), (1, 2), (2, 1), (2, 2)), mask_of((1, 2))])
    maps = np.stack([MAP, MAP])
    figures, more = score(maps, masks), score(np.stack([*maps, MAP]), np.stack([*masks, mask_of()]))
    for name in ("pointing_game", "mask_iou", "mask_iou_best"):
        assert figures[name] == more[name]
    assert more["pixel_ap"] < figures["pixel_ap"]
    assert score(maps[:1], mask_of()[None]) == {"pixel_ap": 0}


PERFECT = {"pointing_game": 1, "mask_iou": 1, "mask_iou_best": 1, "pixel_ap": 1}


def test_perfect_maps_score_1():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, 2:5, 1:6] = masks[1, 0:4, 4:8] = masks[2, 6:8, 0:3] = True
    assert score(masks.astype(np.float32), masks) == PERFECT
    large = masks.repeat(8, 1).repeat(8, 2)
    figures = score(masks.astype(np.float32), large)
    assert figures["pointing_game"] == 1
    assert figures["mask_iou"] > 0.9


def test_score_averages_over_images():
    masks = np.stack([mask_of((1, 1), (1, 2), (2, 1), (2, 2)), mask_of((0, 0)), mask_of((1, 2)), mask_of((0, 3))])
    figures = score(np.stack([MAP] * 4), masks)
    assert figures["pointing_game"] == pytest.approx(2 / 4)
    assert figures["mask_iou"] == pytest.approx((1 + 0 + 1 / 4 + 0) / 4)


def test_square_mask_follows_the_majority_of_the_area():
    mask = np.zeros((4, 8), np.uint8)  # each cell of the 2x2 square holds 2x4 pixels
    mask[:2, :4] = 255
    mask[0, 4:] = 255
    mask[1, 4] = 255  # 5 of 8
    mask[2, :3] = 255  # 3 of 8
    np.testing.assert_array_equal(square_mask(mask, 2), [[True, True], [False, False]])
    np.testing.assert_array_equal(square_mask(mask[:, :4], 4), mask[:, :4] > 0)


def source_with(labels: np.ndarray | None) -> Source:
    return Source("test", tuple("abcdefgh"), labels, (), {}, lambda i: b"", lambda i: None, lambda kind: "0")


def test_chance_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 1], np.int32)
    masks = np.stack([mask_of((0, 0), (1, 1)), np.ones((4, 4), bool)] * 2)
    # Of the test images alone: 1, 1, 2, 1.
    assert chance(source_with(labels), np.arange(4, 8), masks) == {
        "linear_top1": 0.75,
        "knn_top1": 0.75,
        "pointing_game": 18 / 32,
        "mask_iou": 18 / 32,
        "mask_iou_best": 18 / 32,
        "pixel_ap": 18 / 32,
    }
    assert chance(source_with(None), np.arange(4, 8), None) == {}
    assert chance(source_with(None), np.arange(4, 8), masks).keys() == PERFECT.keys()


def test_chance_matches_whole_image_and_random_points():
    masks = np.random.default_rng(7).random((6, 4, 4)) < 0.4
    figures = chance(source_with(None), np.arange(6), masks)
    whole = np.mean([iou(np.ones((4, 4), bool), mask) for mask in masks])
    points = np.mean(
        [pointing_score(np.eye(16, dtype=np.float32)[p].reshape(4, 4), m) for m in masks for p in range(16)]
    )
    assert figures["mask_iou"] == pytest.approx(whole)
    assert figures["pointing_game"] == pytest.approx(points)


def prior_of(masks: np.ndarray) -> dict[str, float]:
    return center_prior(source_with(None), np.arange(len(masks)), masks)


def test_center_prior_by_hand():
    # On 4x4 cells, the Gaussian is above half of its range on the four in the middle.
    middle = mask_of((1, 1), (1, 2), (2, 1), (2, 2))
    assert prior_of(middle[None]) == PERFECT
    around = prior_of(~middle[None])
    # Best is the whole image: 12 of its 16 cells.
    assert (around["pointing_game"], around["mask_iou"], around["mask_iou_best"]) == (0, 0, 0.75)
    both = prior_of(np.stack([np.ones((4, 4), bool), mask_of((0, 0))]))
    assert (both["pointing_game"], both["mask_iou"]) == (0.5, pytest.approx((4 / 16 + 0) / 2))
    assert both["mask_iou_best"] == pytest.approx((1 + 1 / 16) / 2)


def soft_maps(images: int = 5, size: int = 12):
    """Maps of a size that needs no interpolation, with values that are no thresholds, and masks that they half fit."""
    rng = np.random.default_rng(8)
    masks = rng.random((images, size, size)) < 0.3
    maps = (rng.random((images, size, size)) + 0.5 * masks).astype(np.float32)
    return maps, masks, np.stack([upsample(m, size) for m in maps])


def test_best_iou_uses_one_threshold_for_all_images():
    maps, masks, scaled = soft_maps()
    masks[2] = False
    by_threshold = [
        np.mean([iou(s >= t, m) for s, m in zip(scaled, masks, strict=True) if m.any()]) for t in THRESHOLDS
    ]
    figures = score(maps, masks)
    assert figures["mask_iou_best"] == pytest.approx(max(by_threshold))
    assert figures["mask_iou"] == pytest.approx(by_threshold[50])
    assert figures["mask_iou_best"] > figures["mask_iou"]


def test_pixel_average_precision_matches_scikit_learn():
    maps, masks, scaled = soft_maps()
    levels = np.floor(scaled.astype(np.float64) * 100 + 1e-9)
    expected = average_precision_score(masks.ravel(), levels.ravel())
    assert score(maps, masks)["pixel_ap"] == pytest.approx(expected, abs=1e-6)
    order = np.array([3, 1, 4, 0, 2])
    assert score(maps[order], masks[order]) == pytest.approx(score(maps, masks))


SIZE, CELLS = 24, 9
MODEL = Siamese(depth=8, width=4, stem="small", head_hidden=8, head_out=6, axis_name=distributed.AXIS)


@functools.cache
def network() -> Network:
    """Random weights; residual branches, which start at 0, count."""
    online = quick(functools.partial(init_state, MODEL, optax.identity(), SIZE))(jax.random.key(0)).online
    return Network(jax.tree.map(lambda leaf: leaf + 0.2 if leaf.ndim == 1 else leaf, online.params), online.batch_stats)


@functools.cache
def eight_images() -> np.ndarray:
    return np.random.default_rng(10).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def encoded(mesh_of) -> Callable:
    """encoded(images): what the encoder gives for eight images, on two devices, as NumPy."""
    mesh = mesh_of(2)
    placed = jax.device_put(network(), distributed.replicated(mesh))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", quick)
        encode = make_encoder(MODEL, mesh, maps=True)
    return lambda images: jax.tree.map(
        np.asarray, encode(placed, distributed.to_mesh({"images": np.ascontiguousarray(images)}, mesh)["images"])
    )


def test_mirrored_attention_matches_definition(encoded):
    @quick
    def outputs(images):
        views = photometric.normalize(photometric.to_float(images))
        return MODEL.clone(axis_name=None).apply(network().variables, views, train=False)

    images = eight_images()
    queries = np.asarray(outputs(images).prediction_map, float).reshape(8, CELLS, 6)
    keys = np.asarray(outputs(jnp.asarray(images[:, :, ::-1])).projection_map, float).reshape(8, CELLS, 6)
    expected = np.zeros((8, CELLS))
    for image in range(8):
        for cell in range(CELLS):
            query = queries[image, cell] / np.linalg.norm(queries[image, cell])
            expected[image, cell] = np.mean([query @ key / np.linalg.norm(key) for key in keys[image]])
    mirrored = encoded(images).mirrored
    assert mirrored.shape == (8, 3, 3)
    np.testing.assert_allclose(mirrored.reshape(8, CELLS), expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["mirror", "others"])
def test_evaluator_reads_the_configured_attention(mesh_of, encoded, attention):
    source = sources.load("procedural", "", procedural.Spec(0, 2, 1, 4, 30))
    test, mesh = source.split("test"), mesh_of(2)
    evaluator = Evaluator(MODEL, mesh, source, EvalSpec(SIZE, 40, 8, attention))
    # The compiled encoder of the other tests.
    evaluator.encode = {True: lambda _, images: encoded(np.asarray(images))}
    maps = evaluator.maps(network(), test)
    assert maps.keys() == {"attention", "mean", "component"}
    # Whole images, squeezed, whatever `resize` is.
    ((images, _),) = image_batches(source, test, resize=0, size=SIZE, batch_size=8)
    found = encoded(images)
    expected = {"mirror": found.mirrored, "others": attention_maps(found.queries, found.keys)}
    assert np.abs(expected["mirror"] - expected["others"]).max() > 1e-3
    np.testing.assert_allclose(maps["attention"], expected[attention], atol=1e-5)
    np.testing.assert_allclose(maps["mean"], found.mean, atol=1e-5)
