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
RNG = np.random.default_rng(0)
VECTORS = (RNG.normal(size=(len(SOURCE), 8)) + 1.5 * np.eye(3, 8)[SOURCE.labels]).astype(np.float32)


def probe(**changes) -> Probe:
    values = {"learning_rates": (0.1, 1.0), "epochs": 20, "batch_size": 16, "validation_share": 0.2, "folds": 2}
    values |= {"fractions": (1.0,), "seeds": (0,), "list_seed": 0, "crop_area": None}
    return Probe(**(values | changes))


def saved(path, names=SOURCE.names, vectors=VECTORS, **more):
    np.savez(path, names=np.array(names), vectors=vectors, **more)
    return path


def spec(size: int, pooling: str = "average") -> EvalSpec:
    return EvalSpec(size, size, 8, "others", pooling)


@pytest.mark.parametrize("prefix", ["", "images/", "/home/me/photos/images/", "..\\images\\"])
def test_rows_are_found_by_name_in_any_order(tmp_path, prefix):
    order = RNG.permutation(len(SOURCE))
    names = [prefix + SOURCE.names[i] for i in order]
    extra = [*names, "another/picture.png"]
    features = external_features.ExternalFeatures(
        saved(tmp_path / "x.npz", extra, np.vstack([VECTORS[order], VECTORS[:1]])), SOURCE, spec(32)
    )
    np.testing.assert_array_equal(features.vectors, VECTORS)


def test_names_that_are_no_text_are_found_as_embed_writes_them(tmp_path):
    names = ("caf\udce9.png", "back\\slash.png", *SOURCE.names[2:])
    source = dataclasses.replace(SOURCE, names=names)
    written = ["caf\\udce9.png", *names[1:]]
    features = external_features.ExternalFeatures(saved(tmp_path / "x.npz", written), source, spec(32))
    np.testing.assert_array_equal(features.vectors, VECTORS)


def test_figures_are_those_of_the_vectors(tmp_path):
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


def test_maps_are_measured_as_an_attention_is(tmp_path):
    size = 24
    masks = np.stack([SOURCE.mask(i) for i in range(len(SOURCE))]) > 127
    order = RNG.permutation(len(SOURCE))
    path = saved(tmp_path / "x.npz", np.array(SOURCE.names)[order], VECTORS[order], maps=masks[order].astype(np.uint8))
    features = external_features.ExternalFeatures(path, SOURCE, spec(size))
    maps = features.maps(None, TEST)
    assert maps.keys() == {"attention"}
    np.testing.assert_array_equal(maps["attention"], masks[TEST])
    figures = features.localization(maps["attention"], TEST, features.masks(TEST))
    assert figures["pointing_game"] == figures["mask_iou"] == figures["corloc"] == 1
    figures = features.localization(1 - maps["attention"], TEST, features.masks(TEST))
    assert figures["pointing_game"] == figures["mask_iou"] == 0


def test_patches_give_their_mean_and_first_component(tmp_path, monkeypatch):
    monkeypatch.setattr(external_features, "CHUNK", 7)
    patches = RNG.normal(size=(len(SOURCE), 4, 4, 6)).astype(np.float32)
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
    "placed", [{"maps": VECTORS}, {"patches": VECTORS[:-1, None, None]}, {"maps": VECTORS[:, None] * np.inf}]
)
def test_maps_that_do_not_fit_are_refused(tmp_path, placed):
    (name,) = placed
    if np.isinf(next(iter(placed.values()))).any():  # which is seen when they are read
        features = external_features.ExternalFeatures(saved(tmp_path / "x.npz", **placed), SOURCE, spec(24))
        with pytest.raises(UserError, match=rf"x\.npz: `{name}` must be .* finite numbers"):
            features.maps(None, TEST)
        return
    shape = {"maps": r"\(n, h, w\)", "patches": r"\(n, h, w, C\)"}[name]
    with pytest.raises(UserError, match=rf"x\.npz: `{name}` must be {shape} finite numbers"):
        external_features.ExternalFeatures(saved(tmp_path / "x.npz", **placed), SOURCE, spec(24))


@pytest.mark.parametrize(
    ("names", "vectors", "said"),
    [
        (SOURCE.names[1:], VECTORS[1:], r"no vector for 1 of 90 images: train/class_00/0000\.png; its names are like"),
        ([*SOURCE.names, SOURCE.names[0]], np.vstack([VECTORS, VECTORS[:1]]), "several vectors for 1 images"),
        (SOURCE.names, VECTORS[:-1], "must be .n, C. finite numbers"),
        (SOURCE.names, VECTORS * np.nan, "must be .n, C. finite numbers"),
        (SOURCE.names, VECTORS[:, 0], "must be .n, C. finite numbers"),
    ],
)
def test_features_that_do_not_fit_are_refused(tmp_path, names, vectors, said):
    with pytest.raises(UserError, match=rf"x\.npz.*{said}"):
        external_features.ExternalFeatures(saved(tmp_path / "x.npz", names, vectors), SOURCE, spec(32))


def test_crops_need_a_network(tmp_path):
    features = external_features.ExternalFeatures(saved(tmp_path / "x.npz"), SOURCE, spec(32))
    with pytest.raises(UserError, match=r"config\.probe\.augmented needs a network"):
        features.recognition(None, TRAIN, TEST, knn=Knn((), 0.07), probe=probe(crop_area=(0.1, 1.0)))


def test_what_is_a_file_of_features(tmp_path):
    assert external_features.is_features(saved(tmp_path / "x.npz"))
    np.savez(tmp_path / "w.npz", **{"conv1.weight": VECTORS})
    (tmp_path / "b.npz").write_bytes(b"PK")
    assert not any(external_features.is_features(tmp_path / name) for name in ("w.npz", "b.npz", "absent.npz", "x.txt"))


def test_few_labels_by_hand(monkeypatch):
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
