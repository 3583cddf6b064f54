"""Features of other programs under our protocol, and probes with few labels."""

import contextlib
import dataclasses

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from cvsa_jax.data.sources import load, procedural
from cvsa_jax.evaluation import external_features
from cvsa_jax.evaluation.probe import ProbeResult
from cvsa_jax.evaluation.protocol import EvalSpec, Knn, Probe
from cvsa_jax.evaluation.recognition import Labelled, recognized
from cvsa_jax.runtime.errors import UserError

SOURCE = load("procedural", "", procedural.Spec(0, 3, 20, 10, 24))
TRAIN, TEST = SOURCE.split("train"), SOURCE.split("test")
NOISE = np.random.default_rng(0).normal(size=(len(SOURCE), 8))
VECTORS = (NOISE + 1.5 * np.eye(3, 8)[SOURCE.labels]).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def probe(**changes) -> Probe:
    values = {"learning_rates": (0.1, 1.0), "epochs": 20, "batch_size": 16, "validation_share": 0.2, "folds": 2}
    values |= {"fractions": (1.0,), "seeds": (0,), "list_seed": 0, "crop_area": None}
    return Probe(**(values | changes))


def saved(path, names=SOURCE.names, vectors=VECTORS, **more):
    np.savez(path, names=np.array(names), vectors=vectors, **more)
    return path


def spec(size: int, pooling: str = "average") -> EvalSpec:
    return EvalSpec(size, size, 8, "others", pooling)


@pytest.mark.parametrize(
    "prefix", ["", "/home/me/photos/images/", "..\\images\\"], ids=["bare", "absolute", "backslashes"]
)
def test_rows_are_matched_by_name_in_any_order(tmp_path, rng, prefix):
    order = rng.permutation(len(SOURCE))
    names = [prefix + SOURCE.names[i] for i in order]
    extra = [*names, "another/picture.png"]
    features = external_features.ExternalFeatures(
        saved(tmp_path / "x.npz", extra, np.vstack([VECTORS[order], VECTORS[:1]])), SOURCE, spec(32)
    )
    np.testing.assert_array_equal(features.vectors, VECTORS)


def test_undecodable_names_match_their_escaped_form(tmp_path):
    names = ("caf\udce9.png", "back\\slash.png", *SOURCE.names[2:])
    source = dataclasses.replace(SOURCE, names=names)
    written = ["caf\\udce9.png", *names[1:]]
    features = external_features.ExternalFeatures(saved(tmp_path / "x.npz", written), source, spec(32))
    np.testing.assert_array_equal(features.vectors, VECTORS)


def test_knn_of_external_vectors_matches_scikit_learn(tmp_path):
    features = external_features.ExternalFeatures(saved(tmp_path / "x.npz"), SOURCE, spec(32))
    found = features.recognition(None, TRAIN, TEST, knn=Knn((5,), 0.07), probe=probe()).figures
    # scikit-learn's kNN with the same votes.
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    theirs = KNeighborsClassifier(5, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    theirs.fit(unit[TRAIN], SOURCE.labels[TRAIN])
    assert found["knn_top1"] == pytest.approx(theirs.score(unit[TEST], SOURCE.labels[TEST]))
    assert found["linear_top1"] > 0.6
    assert (
        features.maps(None, TEST)
        == features.class_maps(None, None, TEST)
        == features.background(None, None, TEST, 0)
        == {}
    )


def test_external_maps_are_scored_as_attention(tmp_path, rng):
    size = 24
    masks = np.stack([SOURCE.mask(i) for i in range(len(SOURCE))]) > 127
    order = rng.permutation(len(SOURCE))
    path = saved(tmp_path / "x.npz", np.array(SOURCE.names)[order], VECTORS[order], maps=masks[order].astype(np.uint8))
    features = external_features.ExternalFeatures(path, SOURCE, spec(size))
    maps = features.maps(None, TEST)
    assert maps.keys() == {"attention"}
    np.testing.assert_array_equal(maps["attention"], masks[TEST])
    figures = features.localization(maps["attention"], TEST, features.masks(TEST))
    assert figures["pointing_game"] == figures["mask_iou"] == figures["corloc"] == 1
    figures = features.localization(1 - maps["attention"], TEST, features.masks(TEST))
    assert figures["pointing_game"] == figures["mask_iou"] == 0


def test_patches_give_mean_and_first_component_maps(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(external_features, "CHUNK", 7)
    patches = rng.normal(size=(len(SOURCE), 4, 4, 6)).astype(np.float32)
    patches[:, 1:3, 1:3] += 4 * np.eye(6, dtype=np.float32)[2]
    features = external_features.ExternalFeatures(saved(tmp_path / "x.npz", patches=patches), SOURCE, spec(24))
    maps = features.maps(None, TEST)
    assert maps.keys() == {"mean", "component"}
    np.testing.assert_allclose(maps["mean"], patches[TEST].mean(-1), rtol=1e-5, atol=1e-6)
    for found, cells in zip(maps["component"], patches[TEST].reshape(len(TEST), 16, 6), strict=True):
        expected = np.linalg.svd(cells - cells.mean(0))[0][:, 0]
        assert abs(np.corrcoef(found.ravel(), expected)[0, 1]) > 0.999
    # With its own maps beside, these are the attention.
    both = saved(tmp_path / "y.npz", patches=patches, maps=patches[..., 0])
    np.testing.assert_array_equal(
        external_features.ExternalFeatures(both, SOURCE, spec(24)).maps(None, TEST)["attention"], patches[TEST, ..., 0]
    )


@pytest.mark.parametrize(
    ("name", "values", "shape"),
    [
        pytest.param("maps", VECTORS, r"\(n, h, w\)", id="maps"),
        pytest.param("patches", VECTORS[:-1, None, None], r"\(n, h, w, C\)", id="patches"),
    ],
)
def test_misshapen_maps_and_patches_are_refused(tmp_path, name, values, shape):
    path = saved(tmp_path / "x.npz", **{name: values})
    with pytest.raises(UserError, match=rf"x\.npz: `{name}` must be {shape} finite numbers"):
        external_features.ExternalFeatures(path, SOURCE, spec(24))


def test_infinite_maps_are_refused_when_read(tmp_path):
    path = saved(tmp_path / "x.npz", maps=np.full((len(SOURCE), 2, 2), np.inf))
    features = external_features.ExternalFeatures(path, SOURCE, spec(24))
    with pytest.raises(UserError, match=r"x\.npz: `maps` must be .* finite numbers"):
        features.maps(None, TEST)


@pytest.mark.parametrize(
    ("names", "vectors", "said"),
    [
        (SOURCE.names[1:], VECTORS[1:], r"no vector for 1 of 90 images: train/class_00/0000\.png; its names are like"),
        ([*SOURCE.names, SOURCE.names[0]], np.vstack([VECTORS, VECTORS[:1]]), "several vectors for 1 images"),
        (SOURCE.names, VECTORS[:-1], "must be .n, C. finite numbers"),
        (SOURCE.names, VECTORS * np.nan, "must be .n, C. finite numbers"),
        (SOURCE.names, VECTORS[:, 0], "must be .n, C. finite numbers"),
    ],
    ids=["missing image", "repeated image", "fewer vectors than names", "not finite", "one dimension"],
)
def test_mismatched_vectors_are_refused(tmp_path, names, vectors, said):
    with pytest.raises(UserError, match=rf"x\.npz.*{said}"):
        external_features.ExternalFeatures(saved(tmp_path / "x.npz", names, vectors), SOURCE, spec(32))


def test_augmented_probe_of_external_vectors_is_refused(tmp_path):
    features = external_features.ExternalFeatures(saved(tmp_path / "x.npz"), SOURCE, spec(32))
    with pytest.raises(UserError, match=r"config\.probe\.augmented needs a network"):
        features.recognition(None, TRAIN, TEST, knn=Knn((), 0.07), probe=probe(crop_area=(0.1, 1.0)))


def test_is_features_recognizes_only_files_of_vectors(tmp_path):
    assert external_features.is_features(saved(tmp_path / "x.npz"))
    np.savez(tmp_path / "w.npz", **{"conv1.weight": VECTORS})
    (tmp_path / "b.npz").write_bytes(b"PK")
    assert not any(external_features.is_features(tmp_path / name) for name in ("w.npz", "b.npz", "absent.npz", "x.txt"))


def test_few_label_draws_are_averaged(monkeypatch):
    asked = []

    def linear_probe(x, y, x_test, y_test, classes, probe, seed, fit):
        asked.append((np.bincount(y).tolist(), seed, x[:, 0].tolist()))
        return ProbeResult({"top1": len(asked) / 10}, 0.1, {}, np.zeros((1, 1)))

    monkeypatch.setattr("cvsa_jax.evaluation.recognition.linear_probe", linear_probe)
    halves = (Labelled(VECTORS[rows], SOURCE.labels[rows]) for rows in (TRAIN, TEST))
    few = probe(counts=(4, 1, 20, 21), draws=3, fractions=(1.0, 0.5))
    found = recognized(*halves, 3, knn=Knn((), 1.0), probe=few, timed=lambda part: contextlib.nullcontext()).figures
    assert [counts for counts, _, _ in asked] == [[1] * 3] * 3 + [[4] * 3] * 3 + [[10] * 3] * 3 + [[20] * 3]
    # Three different lists, and of all labels one.
    assert len({str(rows) for _, _, rows in asked}) == 10
    assert found["linear_top1_with_1"] == pytest.approx(0.2) and found["linear_top1_with_1_std"] == pytest.approx(0.1)
    assert found["linear_top1_with_4"] == pytest.approx(0.5) and found["linear_top1_at_50"] == pytest.approx(0.8)
    assert found["linear_top1"] == 1.0 and "linear_top1_std" not in found
    assert found["learning_rate"] == 0.1 and "learning_rate_with_1" not in found
