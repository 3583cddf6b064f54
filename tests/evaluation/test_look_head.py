"""The look head against ridge regressions written out in NumPy, and features pooled by it and by maps."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support.compiling import quick

from cvsa_jax.data import sources
from cvsa_jax.data.pipeline import image_batches
from cvsa_jax.data.resample import cell_means, centre_boxes
from cvsa_jax.data.sources import procedural
from cvsa_jax.evaluation import look
from cvsa_jax.evaluation.encode import pooled_by_head, pooled_by_maps
from cvsa_jax.evaluation.evaluator import Evaluator
from cvsa_jax.evaluation.external_features import ExternalFeatures
from cvsa_jax.evaluation.look import Guide, LookHead, Moments
from cvsa_jax.evaluation.protocol import EvalSpec, Knn
from cvsa_jax.models.classifier import Classifier
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import photometric
from cvsa_jax.training.state import Network

SIZE = 64
MODEL = Classifier(2, depth=8, width=4, stem="small")
SOURCE = sources.load("procedural", "", procedural.Spec(0, 2, 6, 4, 80))
TRAIN, TEST = SOURCE.split("train"), SOURCE.split("test")
MAPS = np.stack([np.asarray(SOURCE.mask(i))[:64, :64] for i in range(len(SOURCE))]) // 2 + 20


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def network() -> Network:
    variables = quick(lambda key: MODEL.init(key, jnp.zeros((1, SIZE, SIZE, 3)), True))(jax.random.key(0))
    return Network(variables["params"], variables["batch_stats"])


@quick
def feature_map(variables, images):
    views = photometric.normalize(photometric.to_float(images))
    return MODEL.apply(variables, views, method="features")[0]


def cells_of(network, indices, resize, source=SOURCE):
    ((images, _),) = image_batches(source, indices, resize=resize, size=SIZE, batch_size=len(indices))
    return np.asarray(feature_map(network.variables, images), np.float64)


def averaged(weights: np.ndarray, cells: np.ndarray) -> np.ndarray:
    weights = (weights / weights.sum((1, 2), keepdims=True))[..., None]
    return (weights * cells).sum((1, 2))


def sharpened(maps: np.ndarray, power: float) -> np.ndarray:
    above = np.maximum(maps, 0)
    return (above / np.maximum(above.max((1, 2), keepdims=True), 1e-12)) ** power + 1e-6


def ridge_regression(cells: np.ndarray, values: np.ndarray, ridge: float) -> np.ndarray:
    """Weights and bias, by the least-squares problem with a row for each penalised weight."""
    mean, deviation = cells.mean(0), cells.std(0)
    standard = (cells - mean) / deviation
    rows = np.vstack([standard, np.sqrt(ridge * len(cells)) * np.eye(cells.shape[1])])
    wanted = np.append(values - values.mean(), np.zeros(cells.shape[1]))
    weights = np.linalg.lstsq(rows, wanted, rcond=None)[0] / deviation
    return np.append(weights, values.mean() - weights @ mean)


def moments_of(cells: np.ndarray, values: np.ndarray, parts: int = 1, shift: float = 0.0) -> Moments:
    moments = Moments(np.zeros((cells.shape[1] + 2,) * 2), np.full(cells.shape[1], shift))
    for rows in np.array_split(np.arange(len(cells)), parts):
        moments.add(cells[rows], values[rows])
    return moments


@pytest.mark.parametrize("ridge", [1e-5, 0.1, 10.0], ids=["weak", "medium", "strong"])
def test_head_matches_ridge_regression_for_any_chunks(rng, ridge):
    cells = rng.normal(size=(300, 7)) * np.arange(1, 8) + 50 * rng.normal(size=7)
    values = cells[:, 2] / 10 + rng.normal(size=300)
    expected = ridge_regression(cells, values, ridge)
    for parts, shift in ((1, 0.0), (13, 0.0), (4, 30.0)):
        head = moments_of(cells, values, parts, shift).head(ridge)
        np.testing.assert_allclose([*head.weight, head.bias], expected, rtol=1e-5, atol=1e-6)


def test_fit_is_stable_for_features_far_from_0(rng, capsys):
    maps, _, cells = planted(rng, 40, noise=0.3)
    near, far = (look.fit(batches(cells + np.float32(offset)), maps, np.arange(40)) for offset in (0, 1000))
    np.testing.assert_allclose(near.weight, far.weight, rtol=0.01, atol=1e-4)
    assert far.explained == pytest.approx(near.explained, abs=1e-3) and capsys.readouterr().out == ""


def test_moments_error_and_spread_match_sums_over_cells(rng):
    cells, values = rng.normal(size=(50, 3)), rng.normal(size=50)
    moments, solution = moments_of(cells, values), rng.normal(size=4)
    assert moments.error(solution) == pytest.approx(((values - cells @ solution[:3] - solution[3]) ** 2).sum())
    assert moments.spread == pytest.approx(((values - values.mean()) ** 2).sum())


def test_constant_feature_gets_no_weight(rng):
    cells = np.column_stack([rng.normal(size=80), np.full(80, 3.0), np.zeros(80)])
    (found,) = moments_of(cells, cells[:, 0] * 2 + 1).solutions((1e-5,))
    np.testing.assert_allclose(found, [2, 0, 0, 1], atol=1e-3)


def planted(rng: np.random.Generator, count: int, noise: float):
    """Cells (count, 4, 4, 6) whose second feature is the map's value in the cell, between noise."""
    maps = np.zeros((count, 64, 64), np.uint8)
    for k in range(count):
        y, x = rng.integers(0, 33, 2)
        maps[k, y : y + 32, x : x + 32] = 100
    values = maps.reshape(count, 4, 16, 4, 16).mean((2, 4)) / 100
    cells = rng.normal(size=(count, 4, 4, 6)).astype(np.float32)
    cells[..., 1] = 5 * values + noise * cells[..., 1] + 2
    return maps, values, cells


def batches(cells: np.ndarray, size: int = 7):
    return [(slice(k, min(k + size, len(cells))), cells[k : k + size]) for k in range(0, len(cells), size)]


def test_fit_chooses_ridge_by_cross_validation_over_images(rng):
    maps, values, cells = planted(rng, 60, noise=0.5)
    head = look.fit(batches(cells), maps, np.arange(60))
    # The same choice by cross-validation over images, written out.
    folds = np.random.default_rng(0).permutation(60) % 5

    def unseen(ridge: float) -> float:
        total = 0.0
        for fold in range(5):
            x, y = cells[folds != fold].reshape(-1, 6).astype(float), values[folds != fold].ravel()
            solution = ridge_regression(x, y, ridge)
            total += (
                (cells[folds == fold].reshape(-1, 6) @ solution[:6] + solution[6] - values[folds == fold].ravel()) ** 2
            ).sum()
        return total

    errors = {ridge: unseen(ridge) for ridge in look.RIDGES}
    assert head.ridge == min(errors, key=errors.get)
    spread = sum(((values[folds == f] - values[folds == f].mean()) ** 2).sum() for f in range(5))
    assert head.explained == pytest.approx(1 - min(errors.values()) / spread, abs=1e-6) and head.explained > 0.7
    expected = ridge_regression(cells.reshape(-1, 6).astype(float), values.ravel(), head.ridge)
    np.testing.assert_allclose([*head.weight, head.bias], expected, atol=1e-5)
    assert np.abs(head.weight).argmax() == 1


def test_fit_chooses_the_smallest_power_that_focuses_on_the_object(rng):
    maps, values, cells = planted(rng, 60, noise=0.5)
    head = look.fit(batches(cells), maps, np.arange(60))
    folds = np.random.default_rng(0).permutation(60) % 5
    others = ridge_regression(cells[folds > 0].reshape(-1, 6).astype(float), values[folds > 0].ravel(), head.ridge)
    seen = np.maximum(cells[folds == 0] @ others[:6] + others[6], 0)
    objects = values[folds == 0] >= 0.5
    shares = {}
    for power in look.POWERS:
        weights = seen**power
        shares[power] = ((weights * objects).sum((1, 2)) / weights.sum((1, 2))).mean()
    assert shares[1.0] < look.ON_OBJECT
    assert head.power == min(power for power, share in shares.items() if share >= look.ON_OBJECT)
    # What is less certain needs more.
    maps, _, cells = planted(rng, 60, noise=2.5)
    assert look.fit(batches(cells), maps, np.arange(60)).power > head.power


def test_power_is_chosen_on_images_across_the_whole_order(rng, monkeypatch):
    monkeypatch.setattr(look, "KEPT", 48)
    easy, hard = planted(rng, 150, noise=0.0), planted(rng, 150, noise=2.5)
    maps, _, cells = (np.concatenate(parts) for parts in zip(easy, hard, strict=True))

    def power(cells: np.ndarray, maps: np.ndarray) -> float:
        return look.fit(batches(cells), maps, np.arange(len(maps))).power

    # The first images alone would give the power of the easy ones, and in the reverse order that of the hard ones.
    assert power(easy[2], easy[0]) < power(cells, maps)
    assert power(cells[::-1], maps[::-1]) < power(hard[2], hard[0])


def test_uninformative_features_are_warned_of(rng, capsys):
    maps, _, cells = planted(rng, 30, noise=0.1)
    look.fit(batches(rng.normal(size=cells.shape).astype(np.float32)), maps, np.arange(30))
    assert "hardly say where the object is" in capsys.readouterr().out
    striped = np.tile(np.arange(64) % 2 * 200, (30, 64, 1)).astype(np.uint8)
    with pytest.raises(UserError, match="the maps are the same in all cells of all images"):
        look.fit(batches(cells), striped, np.arange(30))


def test_fit_is_invariant_to_map_contrast(rng):
    maps, _, cells = planted(rng, 40, noise=0.3)
    plain, faint = (look.fit(batches(cells), m, np.arange(40)) for m in (maps, maps // 4 + 30))
    np.testing.assert_allclose(plain.vector, faint.vector, atol=1e-6)


def test_blank_maps_are_left_out_and_fewer_than_two_are_refused(rng):
    maps, _, cells = planted(rng, 6, noise=0.1)
    maps[[1, 4]], maps[5] = 0, 255
    np.testing.assert_array_equal(look.informative(maps, np.array([5, 4, 3, 1, 0])), [3, 0])
    assert not len(look.informative(maps, np.array([1, 5]))) and not len(look.informative(maps, np.zeros(0, int)))
    for few in (np.array([0]), np.zeros(0, int)):
        with pytest.raises(UserError, match=r"two images or more whose map shows anything, and (1|none) does"):
            look.fit(batches(cells[few]), maps, few)
    assert np.isfinite(look.fit(batches(cells[:2]), maps, np.array([0, 2])).vector).all()


def test_constant_features_are_refused(rng):
    maps, _, cells = planted(rng, 5, noise=0.1)
    with pytest.raises(UserError, match="the same in all cells of all images"):
        look.fit(batches(np.ones_like(cells)), maps, np.arange(5))


def test_head_pooling_weighs_cells_by_head_output(rng):
    cells = rng.normal(size=(5, 3, 3, 6)).astype(np.float32)
    head = LookHead(rng.normal(size=6), 0.3, 3.0)
    expected = averaged(sharpened(cells @ head.weight + 0.3, 3.0), cells)
    np.testing.assert_allclose(pooled_by_head(jnp.asarray(cells), jnp.asarray(head.vector)), expected, atol=1e-5)
    # Where nothing is above 0, all cells weigh the same.
    nothing = LookHead(np.zeros(6), -1.0, 3.0)
    plain = pooled_by_head(jnp.asarray(cells), jnp.asarray(nothing.vector))
    np.testing.assert_allclose(plain, cells.mean((1, 2)), atol=1e-6)


def test_cell_means_average_the_box_by_area(rng):
    maps = rng.integers(0, 256, (1, 64, 64)).astype(np.uint8)
    # By hand: of rows 16 to 48 and columns 0 to 64, 2 × 4 cells of 16 × 16.
    box = np.float32([[0.25, 0, 0.75, 1]])
    expected = maps[0, 16:48].reshape(2, 16, 4, 16).mean((1, 3))
    np.testing.assert_allclose(cell_means(maps, box, 2, 4, np)[0], expected, rtol=1e-5)
    # Cells that cut the map's own: each pixel repeated 7 × 7 times, over 7 cells of 64.
    finer = np.kron(maps[0], np.ones((7, 7)))
    whole = np.float32([[0, 0, 1, 1]])
    np.testing.assert_allclose(
        cell_means(maps, whole, 7, 7, np)[0], finer.reshape(7, 64, 7, 64).mean((1, 3)), rtol=1e-4
    )


def test_constant_maps_pool_like_the_average(rng):
    from cvsa_jax.data.saliency_maps import Mapped

    cells = jnp.asarray(rng.normal(size=(3, 2, 2, 6)).astype(np.float32))
    maps = np.stack([np.zeros((64, 64)), np.full((64, 64), 255), np.full((64, 64), 9)]).astype(np.uint8)
    mapped = Mapped(np.zeros(0), maps, np.tile(np.float32([0, 0, 1, 1]), (3, 1)))
    np.testing.assert_allclose(pooled_by_maps(cells, mapped, jnp.float32(2.0)), cells.mean((1, 2)), atol=1e-6)


def wide_source():
    """The images, each cut to another shape."""

    def read(i: int) -> bytes:
        with Image.open(io.BytesIO(SOURCE.read(i))) as image:
            content = io.BytesIO()
            image.crop((0, 0, 80, 40 + i % 9) if i % 2 else (0, 0, 44 + i % 7, 80)).save(content, "PNG")
        return content.getvalue()

    return dataclasses.replace(
        SOURCE, name="wide", read=read, identify=lambda kind: "wide"
    ), lambda i: (40 + i % 9, 80) if i % 2 else (80, 44 + i % 7)


def test_saliency_pooling_aligns_maps_with_crops_of_wide_and_high_images(mesh_of, network):
    source, shape_of = wide_source()
    spec = EvalSpec(SIZE, 80, 5, "others", "saliency")
    evaluator = Evaluator(MODEL, mesh_of(1), source, spec, Guide(maps=MAPS, power=1.0))
    cells = cells_of(network, TEST, 80, source)
    side, expected = cells.shape[1], []
    for k, i in enumerate(TEST):
        height, width = (round(s * 80 / min(shape_of(int(i)))) for s in shape_of(int(i)))
        # The middle of the scaled image, in pixels, looked up in the map of the whole image.
        rows = ((height - SIZE) // 2 + (np.arange(side * 50) + 0.5) * SIZE / (side * 50)) / height
        columns = ((width - SIZE) // 2 + (np.arange(side * 50) + 0.5) * SIZE / (side * 50)) / width
        own = MAPS[i].astype(float)
        weights = (own - own.min()) / np.ptp(own)
        weights = weights[(rows * 64).astype(int)][:, (columns * 64).astype(int)]
        weights = weights.reshape(side, 50, side, 50).mean((1, 3))
        expected.append(averaged(sharpened(weights[None], 1.0), cells[k : k + 1])[0])
    found = evaluator.features(network, TEST, evaluator.key(network, TRAIN))
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_head_is_fitted_on_whole_images_and_pools_crops(mesh_of, network):
    source, _ = wide_source()
    evaluator = Evaluator(MODEL, mesh_of(1), source, EvalSpec(SIZE, 80, 5, "others", "head"), Guide(maps=MAPS))

    key = evaluator.key(network, TRAIN)
    expected = look.fit([(slice(0, len(TRAIN)), cells_of(network, TRAIN, 0, source))], MAPS, TRAIN)
    np.testing.assert_allclose(key, expected.vector, atol=2e-3)
    crops = cells_of(network, TEST, 80, source)
    pooled = averaged(sharpened(crops @ key[:-2] + key[-2], key[-1]), crops)
    np.testing.assert_allclose(evaluator.features(network, TEST, key), pooled, atol=1e-3)
    whole = cells_of(network, TEST, 0, source) @ key[:-2] + key[-2]
    np.testing.assert_allclose(evaluator.maps(network, TEST, key)["look"], whole, atol=1e-4)


def test_saliency_pooling_aligns_maps_with_square_crops_on_two_devices(mesh_of, network):
    spec = EvalSpec(SIZE, 72, 4, "others", "saliency")
    evaluator = Evaluator(MODEL, mesh_of(2), SOURCE, spec, Guide(maps=MAPS, power=2.0))
    cells = cells_of(network, TEST, 72)
    low = (72 - SIZE) // 2 / 72
    stretched = (MAPS[TEST] - MAPS[TEST].min((1, 2), keepdims=True)) / np.ptp(MAPS[TEST], axis=(1, 2), keepdims=True)
    box = centre_boxes(np.array([[80, 80]]), 72, SIZE).repeat(len(TEST), 0)
    np.testing.assert_allclose(box[0], [low, low, 1 - low, 1 - low])
    # Area means by a fine grid of points.
    side = cells.shape[1]
    points = low + (np.arange(side * 100) + 0.5) / (side * 100) * (1 - 2 * low)
    at = (points * 64).astype(int)
    weights = stretched[:, at][:, :, at].reshape(len(TEST), side, 100, side, 100).mean((2, 4))
    expected = averaged(sharpened(weights, 2.0), cells)
    found = evaluator.features(network, TEST, evaluator.key(network, TRAIN))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(found - cells.mean((1, 2))).max() > 0.02


@pytest.mark.slow
def test_head_of_train_images_pools_and_localizes_test_images(mesh_of, network):
    spec = EvalSpec(SIZE, SIZE, 5, "others", "head")
    evaluator = Evaluator(MODEL, mesh_of(2), SOURCE, spec, Guide(maps=MAPS))
    key = evaluator.key(network, TRAIN)
    expected = look.fit([(slice(0, len(TRAIN)), cells_of(network, TRAIN, 0))], MAPS, TRAIN)
    np.testing.assert_allclose(key, expected.vector, atol=2e-3)
    cells = cells_of(network, TEST, 0)
    maps = evaluator.maps(network, TEST, key)
    assert evaluator.shown == "look" and maps.keys() == {"mean", "component", "look"}
    np.testing.assert_allclose(maps["look"], cells @ key[:-2] + key[-2], atol=1e-4)
    found = evaluator.recognition(network, TRAIN, TEST, knn=Knn((1,), 0.07))
    np.testing.assert_allclose(found.key, key, atol=1e-6)
    np.testing.assert_allclose(found.features, averaged(sharpened(maps["look"], key[-1]), cells), atol=1e-3)
    # A head that is given is taken as it is.
    given = LookHead(np.ones(len(key) - 2), 0.5, 2.0)
    other = Evaluator(MODEL, mesh_of(1), SOURCE, spec, Guide(head=given, maps=MAPS))
    np.testing.assert_array_equal(other.key(network, TRAIN), given.vector)


@pytest.mark.parametrize("pooling", ["head", "saliency", "attention"])
def test_patches_of_a_file_are_pooled_by_each_guide(rng, tmp_path, pooling):
    maps = MAPS[: len(SOURCE)]
    patches = rng.normal(size=(len(SOURCE), 4, 4, 5)).astype(np.float32)
    patches[..., 0] += maps.reshape(len(maps), 4, 16, 4, 16).mean((2, 4)) / 20
    path = tmp_path / "x.npz"
    np.savez(path, names=np.array(SOURCE.names), vectors=patches.mean((1, 2)), patches=patches)
    features = ExternalFeatures(path, SOURCE, EvalSpec(32, 32, 8, "others", pooling), guide=Guide(maps=maps))
    key = features.key(None, TRAIN)
    if pooling == "head":
        head = look.fit([(slice(0, len(TRAIN)), patches[TRAIN])], maps, TRAIN)
        expected = averaged(sharpened(head(patches[TEST]), head.power), patches[TEST])
        np.testing.assert_allclose(features.maps(None, TEST, key)["look"], head(patches[TEST]), atol=1e-4)
    elif pooling == "saliency":
        means = maps[TEST].reshape(len(TEST), 4, 16, 4, 16).mean((2, 4)).astype(float)
        low, high = (getattr(maps[TEST], end)((1, 2), keepdims=True) for end in ("min", "max"))
        expected = averaged(sharpened((means - low) / (high - low), 2.0), patches[TEST])
    else:
        expected = []
        for cells in patches[TEST].reshape(len(TEST), 16, 5):
            component = np.linalg.svd(cells - cells.mean(0))[0][:, 0].reshape(4, 4)
            border = component.sum() - component[1:3, 1:3].sum()
            component = component * (-1 if border > 0 else 1)
            weights = ((component - component.min()) / np.ptp(component)) ** 2 + 1e-6
            expected.append((weights.ravel()[:, None] * cells).sum(0) / weights.sum())
    np.testing.assert_allclose(features.features(TEST, key), expected, atol=1e-3)
    found = features.recognition(None, TRAIN, TEST, knn=Knn((1,), 0.07))
    np.testing.assert_allclose(found.features, expected, atol=1e-3)


def test_guided_pooling_of_vectors_needs_patches(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", names=np.array(SOURCE.names), vectors=np.ones((len(SOURCE), 3), np.float32))
    for pooling in ("head", "saliency"):
        with pytest.raises(UserError, match=rf"x\.npz has no `patches` to be pooled by {pooling}"):
            ExternalFeatures(tmp_path / "x.npz", SOURCE, EvalSpec(32, 32, 8, "others", pooling), guide=Guide(maps=MAPS))
    taken = ExternalFeatures(tmp_path / "x.npz", SOURCE, EvalSpec(32, 32, 8, "others", "attention"))
    assert "taken as they are" in capsys.readouterr().out and taken.spec.pooling == "average"


def test_siamese_maps_include_the_look(mesh_of):
    model = Siamese(depth=8, width=4, stem="small", head_hidden=8, head_out=4)
    variables = quick(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), True))(jax.random.key(0))
    network = Network(variables["params"], variables["batch_stats"])
    evaluator = Evaluator(model, mesh_of(1), SOURCE, EvalSpec(32, 32, 8, "others", "head"), Guide(maps=MAPS))
    maps = evaluator.maps(network, TEST, evaluator.key(network, TRAIN))
    assert maps.keys() == {"attention", "mean", "component", "look"}
