import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from cvsa_jax.data import background, sources
from cvsa_jax.data.sources import Source, procedural
from cvsa_jax.evaluation.comparison import Candidate, Comparison
from cvsa_jax.evaluation.evaluator import Evaluator
from cvsa_jax.evaluation.labelled import Amount
from cvsa_jax.report import comparison as page
from cvsa_jax.report import pictures
from cvsa_jax.training.state import Network

FIGURES = {
    "a": {"linear_top1": 0.5, "knn_top1": 0.25, "pointing_game": 0.75, "mean_pointing_game": 0.125},
    "b": {"linear_top1": 0.625, "knn_top1": 1.0, "pointing_game": 1.0, "mean_pointing_game": 0.0},
    "chance": {"linear_top1": 0.1, "pointing_game": 0.2},
    "center_prior": {"pointing_game": 0.3},
}


CLASSES = ("gull", "tern", "skua")


def unseen(count: int, labelled: bool = True) -> Source:
    """Labels alone: image i is of class i % 3."""
    return Source(
        name="unseen",
        names=tuple(f"{i}.png" for i in range(count)),
        labels=np.arange(count, dtype=np.int32) % 3 if labelled else None,
        classes=CLASSES if labelled else (),
        splits={"test": np.arange(count)},
        read=lambda i: pytest.fail("read"),
        mask=None,
        identify=lambda kind: "0",
    )


def candidates_of(source: Source, *names: str) -> dict[str, Candidate]:
    """Candidate `a` is titled `Run a`."""
    evaluator = object.__new__(Evaluator)
    evaluator.source = source
    return {name: Candidate(f"Run {name}", evaluator, Network({}, {})) for name in names}


def comparison_of(figures: dict, source: Source | None = None, test: np.ndarray | None = None, **more) -> Comparison:
    """A comparison of what has figures; by default of nine images that cannot be read."""
    source = source or unseen(9)
    names = [name for name in figures if name not in ("chance", "center_prior")]
    rows = {"chance": {}, "center_prior": {}} | figures
    test = np.arange(len(source)) if test is None else test
    return Comparison(candidates_of(source, *names), test, rows, **more)


def test_tables_hold_measured_figures_only():
    recognition, places = page.tables(comparison_of(FIGURES))
    assert recognition.header == ("%", "linear top-1", "kNN top-1")
    assert recognition.rows == [("Run a", "50.0", "25.0"), ("Run b", "62.5", "100.0"), ("chance", "10.0", "–")]
    assert places.header == ("%", "pointing game")
    assert dict(places.rows) == {
        "Run a, attention": "75.0",
        "Run a, mean activation": "12.5",
        "Run b, attention": "100.0",
        "Run b, mean activation": "0.0",
        "chance": "20.0",
        "centre prior": "30.0",
    }


@pytest.fixture
def pictured(monkeypatch):
    """What is handed to the drawing of the attention."""
    calls = []
    monkeypatch.setattr(
        pictures, "attention_picture", lambda path, *rest: calls.append((path, *rest)) or pictures.Picture(path, "")
    )
    return calls


@pytest.mark.parametrize("blind", [False, True], ids=["masks", "no masks"])
def test_attention_picture_orders_images_from_best_to_worst(tmp_path, pictured, blind):
    spec = procedural.Spec(seed=0, classes=2, train_per_class=1, test_per_class=12, size=32)
    source = sources.load("procedural", "", spec)
    test = source.split("test")
    # Image k's map is its mask, shifted by so many cells: the more, the worse; the order is not that of the images.
    shifts = np.random.default_rng(0).permutation(len(test))
    maps = np.stack([np.roll(source.mask(int(i)) / np.float32(255), s, 1) for i, s in zip(test, shifts, strict=True)])
    seen = dataclasses.replace(source, mask=None) if blind else source
    attention = {"other": maps[::-1], "last": maps}
    page.looks(comparison_of({"other": {}, "last": {}}, seen, test, attention=attention), tmp_path / "x.png")
    ((_, images, rows, masks, caption),) = pictured
    assert (len(images), list(rows)) == (12, ["Run other", "Run last"])
    if blind:
        assert masks is None and "evenly spaced" in caption
        return
    ious = [np.mean((m > 0.5) & t) / np.mean((m > 0.5) | t) for m, t in zip(rows["Run last"], masks, strict=True)]
    assert ious == sorted(ious, reverse=True)
    # Of the 24 images the unshifted one fits best.
    assert ious[0] > 0.95 > ious[4] > ious[-1]
    assert "Run last" in caption


def test_attention_picture_ranks_by_the_run_that_localizes_best(tmp_path, pictured):
    spec = procedural.Spec(seed=0, classes=2, train_per_class=1, test_per_class=12, size=32)
    source = sources.load("procedural", "", spec)
    test = source.split("test")
    maps = np.stack([source.mask(int(i)) / np.float32(255) for i in test])
    shifted = np.stack([np.roll(m, k, 1) for k, m in enumerate(maps)])
    figures = {name: {"mask_iou_best": iou} for name, iou in (("a", 0.3), ("b", 0.9), ("c", 0.5))}
    attention = {"a": maps, "b": shifted, "c": maps}
    page.looks(comparison_of(figures, source, test, attention=attention), tmp_path / "x.png")
    ((_, _, rows, masks, caption),) = pictured
    assert "that of Run b fits" in caption
    ious = [np.mean((m > 0.5) & t) / np.mean((m > 0.5) | t) for m, t in zip(rows["Run b"], masks, strict=True)]
    assert ious == sorted(ious, reverse=True)
    assert ious[0] > ious[-1] + 0.5


def findings(figures: dict, count: int = 64, labelled: bool = True, **predicted) -> list[str]:
    return page.findings(comparison_of(figures, unseen(count, labelled), predicted=predicted))


LOOKING = "Looking at the object: the attention's maximum lies on it: "
RECOGNITION = "Recognition: the linear probe is right: "
GUESSES = {"chance": {"pointing_game": 0.2, "linear_top1": 0.34}, "center_prior": {"pointing_game": 0.55}}


def test_findings_rank_runs_and_bracket_the_guesses():
    figures = {
        "a": {"pointing_game": 0.1, "linear_top1": 0.95},
        "b": {"pointing_game": 0.99, "linear_top1": 0.35},
        "c": {"pointing_game": 0.5, "linear_top1": 0.65},
    }
    assert findings(figures | GUESSES) == [
        f"{LOOKING}Run b 99.0 %, Run c 50.0 %, Run a 10.0 % (chance 20.0 %, centre prior 55.0 %).",
        f"{RECOGNITION}Run a 95.0 %, Run c 65.0 %, Run b 35.0 % (chance 34.0 %).",
    ]


@pytest.mark.parametrize(
    ("count", "remark"),
    [(64, " The first two differ by no more than two standard errors (12.5 points)."), (400, "")],
    ids=["64 images", "400 images"],
)
def test_findings_flag_a_lead_within_two_standard_errors(count, remark):
    # Variances 0.9 · 0.1 + 0.8 · 0.2 = ¼: the error of the difference is ½ / √count.
    figures = {"a": {"linear_top1": 0.8}, "b": {"linear_top1": 0.9}, "c": {"linear_top1": 0.1}}
    assert findings(figures, count) == [f"{RECOGNITION}Run b 90.0 %, Run a 80.0 %, Run c 10.0 %.{remark}"]


def test_findings_compare_only_the_first_two_runs():
    figures = {"a": {"linear_top1": 0.9}, "b": {"linear_top1": 0.3}, "c": {"linear_top1": 0.31}}
    assert findings(figures) == [f"{RECOGNITION}Run a 90.0 %, Run c 31.0 %, Run b 30.0 %."]
    assert findings({"a": {"linear_top1": 0.5}}) == [f"{RECOGNITION}Run a 50.0 %."]


def test_findings_flag_two_runs_at_100_percent():
    (sentence,) = findings({"a": {"linear_top1": 1.0}, "b": {"linear_top1": 1.0}})
    assert "The first two" in sentence


def test_findings_without_labels_or_masks():
    (looking,) = findings({"a": {"pointing_game": 0.5}, "b": {"pointing_game": 0.9}}, labelled=False)
    assert looking == f"{LOOKING}Run b 90.0 %, Run a 50.0 %."
    assert findings({"a": {"knn_top1": 0.5}}) == []


def test_findings_use_boxes_without_masks():
    opening = "Finding the object's box (MaxBoxAccV2 of the attention): "
    boxes = {"a": {"max_box_acc_v2": 0.5}, "center_prior": {"max_box_acc_v2": 0.75}}
    assert findings(boxes) == [f"{opening}Run a 50.0 % (centre prior 75.0 %)."]
    both = {"a": {"max_box_acc_v2": 0.5, "pointing_game": 0.25}}
    assert findings(both) == [f"{LOOKING}Run a 25.0 %."]


def test_findings_name_the_most_confused_classes():
    # Of 30 images 10 are of each class. Run a takes four terns for skuas and three skuas for gulls.
    labels = np.arange(30) % 3
    taken = labels.copy()
    taken[np.flatnonzero(labels == 1)[:4]] = 2
    taken[np.flatnonzero(labels == 2)[:3]] = 0
    figures = {"a": {}, "b": {}, "c": {}}
    assert findings(figures, 30, a=taken, b=labels, c=np.zeros(30, int)) == [
        "Run a most often takes tern for skua (4 of 10).",
        "Run c most often takes tern for gull (10 of 10).",
    ]


def test_confusions_are_counted_on_test_images():
    source, test = unseen(30), np.arange(20, 30)
    predicted = source.labels[test].copy()
    predicted[source.labels[test] == 1] = 0  # images 22, 25 and 28
    comparison = comparison_of({"a": {}}, source, test, predicted={"a": predicted})
    assert page.findings(comparison) == ["Run a most often takes tern for gull (3 of 3)."]


def amounts(*fractions: float) -> list[Amount]:
    return [Amount(fraction) for fraction in fractions]


def test_table_of_counts_per_class():
    rows = {"a": {"linear_top1_with_4": 0.25, "linear_top1_with_4_std": 0.01, "linear_top1": 0.5}}
    _, few = page.tables(comparison_of(rows), [Amount(0, 4), Amount(1.0)])
    assert few.header == ("%", "4 of each class", "100 % of the labels")
    assert few.rows == [("Run a", "25.0 ± 1.0", "50.0")]


def test_table_of_fractions_of_the_labels():
    rows = {"a": {"linear_top1": 0.5, "linear_top1_at_1": 0.125, "linear_top1_at_25": 0.25, "linear_top5": 0.75}}
    rows["b"] = {name: value / 2 for name, value in rows["a"].items()}
    recognition, few = page.tables(comparison_of(rows), amounts(0.01, 0.25, 1.0))
    assert recognition.header == ("%", "linear top-1", "top-5")
    assert few.header == ("%", "1 % of the labels", "25 % of the labels", "100 % of the labels")
    assert few.rows == [("Run a", "12.5", "25.0", "50.0"), ("Run b", "6.2", "12.5", "25.0")]


def test_table_of_one_fraction_of_the_labels():
    tables = page.tables(comparison_of({"a": {"linear_top1_at_25": 0.25}}), amounts(0.25))
    assert ("Run a", "25.0") in [row for table in tables for row in table.rows]


def test_tables_show_the_deviation_over_seeds():
    rows = {"a": {"linear_top1": 0.5, "linear_top1_std": 0.0125, "knn_top1": 0.25}, "b": {"linear_top1": 0.75}}
    rows["a"] |= {"linear_top1_at_1": 0.1, "linear_top1_at_1_std": 0.03}
    rows["b"] |= {"linear_top1_at_1": 0.2}
    recognition, few = page.tables(comparison_of(rows), amounts(0.01, 1.0))
    assert recognition.rows == [("Run a", "50.0 ± 1.2", "25.0"), ("Run b", "75.0", "–"), ("chance", "–", "–")]
    assert few.rows == [("Run a", "10.0 ± 3.0", "50.0 ± 1.2"), ("Run b", "20.0", "75.0")]


CHANGED = {"same_background_top1": 0.375, "other_background_top1": 0.25, "background_only_top1": 0.125}
CHANGED |= {"as_it_is_top1": 0.5}


def test_table_of_backgrounds():
    rows = {"a": {"linear_top1": 0.5, "background_gap": 0.125} | CHANGED}
    recognition, table = page.tables(comparison_of(rows))
    assert recognition.header == ("%", "linear top-1")
    assert table.header == (
        "%",
        "as it is",
        "background of its class",
        "background of another",
        "background alone",
        "gap",
    )
    assert table.rows == [("Run a", "50.0", "37.5", "25.0", "12.5", "12.5")]


def test_localization_table_has_a_row_for_each_reading():
    rows = {
        "a": {f"{prefix}corloc": k / 8 for k, prefix in enumerate(("", "mean_", "component_", "cam_", "grad_cam_"))}
    }
    rows |= {"chance": {}, "center_prior": {"corloc": 1.0}}
    (table,) = page.tables(comparison_of(rows))
    assert table.header == ("%", "CorLoc")
    assert table.rows == [
        ("Run a, attention", "0.0"),
        ("Run a, mean activation", "12.5"),
        ("Run a, first component", "25.0"),
        ("Run a, CAM of the predicted class", "37.5"),
        ("Run a, Grad-CAM of the predicted class", "50.0"),
        ("chance", "–"),
        ("centre prior", "100.0"),
    ]


def squeezed(source: Source, i: int) -> np.ndarray:
    """An image squeezed to a square by Pillow alone."""
    with Image.open(io.BytesIO(source.read(int(i)))) as image:
        pixels = image.convert("RGB").resize((page._SIZE, page._SIZE), Image.Resampling.BILINEAR)
    return np.asarray(pixels).astype(int)


def test_sections_draw_the_measured_figures(tmp_path, monkeypatch):
    source = sources.load("procedural", "", procedural.Spec(0, 3, 1, 4, 32))
    test = source.split("test")
    labels = source.labels[test]
    rng = np.random.default_rng(0)
    rows = {
        "a": {"linear_top1": 0.5, "background_gap": 0.125} | CHANGED,
        "b": {"linear_top1": 0.25, "background_gap": 0.0} | dict.fromkeys(CHANGED, 0.25),
        "chance": {"linear_top1": 1 / 3},
        "center_prior": {},
    }
    taken = labels.copy()
    taken[:4] = 2  # all of class 0
    comparison = comparison_of(
        rows,
        source,
        test,
        attention={name: rng.random((len(test), 4, 4)) for name in "ab"},
        features={name: rng.random((len(test), 5)) for name in "ab"},
        predicted={"a": taken, "b": labels},
    )
    drawn = {}
    for name in ("confusion_picture", "scatter_picture", "background_picture"):
        monkeypatch.setattr(
            pictures,
            name,
            lambda path, *rest, name=name: drawn.update({name: (path, *rest)}) or pictures.Picture(path, rest[-1]),
        )
    blocks = page.sections(comparison, tmp_path, "pca", 7)
    assert [block if isinstance(block, str) else block.path.name for block in blocks] == [
        "# Object or background?",
        "background.png",
        "# What each network confuses",
        "confusion_a.png",
        "Run b confuses no classes.",
        "# Features in two dimensions",
        "embedding.png",
    ]

    _, rows, caption = drawn["confusion_picture"]
    ((title, wrong, right),) = rows
    assert title == "class_00, 4 of 4 taken for class_02"
    images = np.stack([squeezed(source, i) for i in test])
    np.testing.assert_allclose(wrong, images[:3], atol=1)
    np.testing.assert_allclose(right, images[labels == 2][:3], atol=1)
    assert "Run a" in caption

    _, examples, bars, caption = drawn["background_picture"]
    titles = ["as it is", "background of its class", "background of another", "background alone"]
    assert list(examples) == titles
    assert bars == {
        "Run a": dict(zip(titles, (0.5, 0.375, 0.25, 0.125), strict=True)),
        "Run b": dict.fromkeys(titles, 0.25),
        "chance": dict.fromkeys(titles, 1 / 3),
    }
    assert "in points: Run a 12.5, Run b 0.0." in caption
    # Evenly spaced images, each with the background that was tested.
    places = np.linspace(0, 11, 6).astype(int)
    sources_shown = (
        source,
        background.replaced(source, test, 7, same_class=True),
        background.replaced(source, test, 7, same_class=False),
        background.removed(source),
    )
    for pictured_images, changed in zip(examples.values(), sources_shown, strict=True):
        np.testing.assert_allclose(pictured_images, np.stack([squeezed(changed, i) for i in test[places]]), atol=1)

    _, points, given_labels, classes, caption = drawn["scatter_picture"]
    assert list(points) == ["Run a", "Run b"]
    assert points["Run a"].shape == (12, 2)
    np.testing.assert_array_equal(given_labels, labels)
    assert classes == source.classes
    assert "PCA" in caption


def test_background_examples_are_images_with_masks(tmp_path, monkeypatch):
    source = sources.load("procedural", "", procedural.Spec(0, 3, 2, 4, 32))
    test = source.split("test")
    partly = dataclasses.replace(source, masked=~np.isin(np.arange(len(source)), test[::2]))
    rows = {"a": {"background_gap": 0.125} | CHANGED, "chance": {"linear_top1": 1 / 3}}
    shown, drawn = [], pictures.Picture(tmp_path / "background.png", "")
    monkeypatch.setattr(pictures, "background_picture", lambda path, examples, *_: shown.append(examples) or drawn)
    assert page.sections(comparison_of(rows, partly, test), tmp_path, "pca", 7)[1] == drawn
    np.testing.assert_allclose(shown[0]["as it is"], np.stack([squeezed(source, i) for i in test[1::2]]), atol=1)


def test_pointing_game_error_counts_images_with_masks():
    rows = {name: {"pointing_game": share, "images_with_masks": 4} for name, share in {"a": 0.9, "b": 0.5}.items()}
    assert any("(58.3 points)" in sentence for sentence in page.findings(comparison_of(rows)))


def test_sections_are_empty_without_labels_and_masks(tmp_path):
    assert page.sections(comparison_of({"a": {}}, unseen(12, labelled=False)), tmp_path, "pca", 0) == []


@pytest.mark.parametrize(
    ("ours", "others", "said"),
    [
        (
            0.9,
            0.3,
            "It is worth pre-training here: by the linear probe Run a 90.0 %, the best of the others, Run c, 30.0",
        ),
        (0.3, 0.9, "It is not worth pre-training here: by the linear probe Run a 30.0 %"),
        (0.5, 0.6, "Whether it is worth pre-training here cannot be told: by the linear probe Run a 50.0 %"),
    ],
    ids=["better", "worse", "within the error"],
)
def test_findings_open_with_the_verdict_on_pre_training(ours, others, said):
    rows = {"a": {"linear_top1": ours}, "b": {"linear_top1": 0.1}, "c": {"linear_top1": others}}
    comparison = comparison_of(rows, unseen(30), np.arange(20, 30))
    assert not page.findings(comparison)[0].startswith(said[:14])  # all are ours
    for name in ("b", "c"):
        other = dataclasses.replace(comparison.candidates[name], pretrained_here=False)
        comparison.candidates[name] = other
    assert page.findings(comparison)[0].startswith(said)
    # A fine-tuned run is of both kinds, so it does not count.
    tuned = dataclasses.replace(comparison.candidates["b"], pretrained_here=None)
    comparison.candidates["b"], comparison.figures["b"]["linear_top1"] = tuned, 1.0
    assert page.findings(comparison)[0].startswith(said)
