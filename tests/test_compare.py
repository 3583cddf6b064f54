import dataclasses

import numpy as np
import pytest

from cvsa_jax import compare, comparison_page, pictures
from cvsa_jax.data import sources
from cvsa_jax.data.sources import procedural
from cvsa_jax.evaluation.summary import Evaluator
from cvsa_jax.state import Network

FIGURES = {
    "a": {"linear_top1": 0.5, "knn_top1": 0.25, "pointing_game": 0.75, "mean_pointing_game": 0.125},
    "b": {"linear_top1": 0.625, "knn_top1": 1.0, "pointing_game": 1.0, "mean_pointing_game": 0.0},
    "chance": {"linear_top1": 0.1, "pointing_game": 0.2},
    "center_prior": {"pointing_game": 0.3},
}


def test_tables_hold_what_was_measured_and_no_more():
    comparison = compare.Comparison(FIGURES, {}, {}, {})
    recognition, places = comparison_page.tables(comparison, {"a": "A", "b": "B"})
    assert recognition.header == ("%", "linear top-1", "kNN top-1")
    assert recognition.rows == [("A", "50.0", "25.0"), ("B", "62.5", "100.0"), ("chance", "10.0", "–")]
    assert places.header == ("%", "pointing game")
    assert dict(places.rows) == {
        "A, attention": "75.0",
        "A, mean activation": "12.5",
        "B, attention": "100.0",
        "B, mean activation": "0.0",
        "chance": "20.0",
        "centre prior": "30.0",
    }


def test_there_is_no_table_of_what_cannot_be_measured():
    figures = {"a": {"linear_top1": 0.5}, "chance": {}, "center_prior": {}}
    (table,) = comparison_page.tables(compare.Comparison(figures, {}, {}, {}), {"a": "A"})
    assert table.header == ("%", "linear top-1")


@pytest.fixture
def pictured(monkeypatch):
    """What `compare.picture` hands to the drawing."""
    calls = []
    monkeypatch.setattr(
        pictures, "attention_picture", lambda *given: calls.append(given) or pictures.Picture(given[0], "")
    )
    return calls


@pytest.mark.parametrize("blind", [False, True])
def test_the_picture_shows_the_best_the_middling_and_the_worst(tmp_path, pictured, blind):
    spec = procedural.Spec(seed=0, classes=2, train_per_class=1, test_per_class=12, size=32)
    source = sources.load("procedural", "", spec)
    test = source.split("test")
    # Image k's map is its mask, shifted by so many cells: the more, the worse; the order is not that of the images.
    shifts = np.random.default_rng(0).permutation(len(test))
    maps = np.stack([np.roll(source.mask(int(i)) / np.float32(255), s, 1) for i, s in zip(test, shifts, strict=True)])
    evaluator = object.__new__(Evaluator)
    evaluator.source = dataclasses.replace(source, mask=None) if blind else source
    runs = {
        "other": compare.Run("Other", evaluator, Network({}, {})),
        "last": compare.Run("Last", evaluator, Network({}, {})),
    }
    comparison = compare.Comparison({}, {"other": maps[::-1], "last": maps}, {}, {})
    comparison_page.attention_picture(comparison, runs, test, tmp_path / "x.png")
    ((_, images, rows, masks, caption),) = pictured
    assert (len(images), list(rows)) == (12, ["Other", "Last"])
    if blind:
        assert masks is None and "evenly spaced" in caption
        return
    ious = [np.mean((m > 0.5) & t) / np.mean((m > 0.5) | t) for m, t in zip(rows["Last"], masks, strict=True)]
    assert ious == sorted(ious, reverse=True)
    # Of the 24 images the unshifted one fits best.
    assert ious[0] > 0.95 > ious[4] > ious[-1]
    assert "Last" in caption
