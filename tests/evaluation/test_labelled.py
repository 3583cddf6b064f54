import itertools

import numpy as np
import pytest

from cvsa_jax.evaluation.labelled import Amount, count_rows, fraction_rows, fraction_suffix, validation_rows

COUNTS = {0: 40, 1: 7, 2: 1, 5: 100, 7: 23}  # some labels do not occur
LABELS = np.random.default_rng(0).permutation(np.repeat(list(COUNTS), list(COUNTS.values())))
FRACTIONS = (0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.99, 1.0)


def per_class(rows: np.ndarray) -> dict[int, int]:
    return {label: int((LABELS[rows] == label).sum()) for label in COUNTS}


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.001, {0: 1, 1: 1, 2: 1, 5: 1, 7: 1}),
        (0.05, {0: 2, 1: 1, 2: 1, 5: 5, 7: 1}),
        (0.3, {0: 12, 1: 2, 2: 1, 5: 30, 7: 7}),
        (1.0, COUNTS),
    ],
    ids=["0.1 %", "5 %", "30 %", "100 %"],
)
def test_fraction_is_its_share_of_each_class_but_at_least_one_row(fraction, expected):
    rows = fraction_rows(LABELS, fraction, seed=3)
    assert per_class(rows) == expected
    # Sorted, and none twice.
    assert (np.diff(rows) > 0).all()


def test_fractions_are_nested():
    lists = [set(fraction_rows(LABELS, fraction, seed=1).tolist()) for fraction in FRACTIONS]
    for smaller, larger in itertools.pairwise(lists):
        assert smaller <= larger
    assert [len(rows) for rows in lists] == sorted(len(rows) for rows in lists)
    assert len(lists[0]) < len(lists[-1])


def test_fraction_rows_are_deterministic_in_the_seed():
    first, again, other = (fraction_rows(LABELS, 0.1, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


def test_fraction_rows_are_drawn_uniformly():
    labels = np.repeat([0, 1], [8, 4])
    drawn = np.concatenate([fraction_rows(labels, 0.25, seed) for seed in range(400)])
    # Two of eight, and one of four: a quarter each, of standard deviation 8.7.
    assert np.abs(np.bincount(drawn) - 100).max() < 4.5 * 8.7


@pytest.mark.parametrize(
    ("fraction", "suffix"),
    [
        (1.0, ""),
        (0.5, "_at_50"),
        (0.07, "_at_7"),
        (0.005, "_at_0.5"),
    ],
)
def test_fraction_suffix_is_the_percentage(fraction, suffix):
    assert fraction_suffix(fraction) == suffix


def test_validation_rows_are_a_share_of_each_class():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 5, 7], [10, 3, 2, 1, 20]))
    held = validation_rows(labels, 0.2, seed=3)
    assert {int(c): int(held[labels == c].sum()) for c in np.unique(labels)} == {0: 2, 1: 1, 2: 1, 5: 0, 7: 4}


@pytest.mark.parametrize("share", [0.9, 1.0], ids=["90 %", "100 %"])
def test_validation_rows_leave_one_training_row_of_each_class(share):
    labels = np.repeat(np.arange(4), [1, 2, 3, 9])
    held = validation_rows(labels, share, seed=0)
    assert [int((~held)[labels == c].sum()) for c in range(4)] == [1, 1, 1, 1]


def test_validation_rows_are_deterministic_in_the_seed():
    labels = np.repeat(np.arange(3), 20)
    first, again, other = (validation_rows(labels, 0.3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_folds_cover_each_class_in_turn():
    # Of 10, 5 and 7 a fold of 20 % holds 2, 1 and 1: five folds hold all of the first two, and five of the third.
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 4], [10, 5, 7]))
    held = np.array([validation_rows(labels, 0.2, 3, fold) for fold in range(5)])
    np.testing.assert_array_equal(held[0], validation_rows(labels, 0.2, 3))
    assert [held[:, labels == c].sum(1).tolist() for c in (0, 1, 4)] == [[2] * 5, [1] * 5, [1] * 5]
    times = held.sum(0)
    assert (times[labels != 4] == 1).all()
    assert sorted(times[labels == 4]) == [0, 0, 1, 1, 1, 1, 1]


def test_folds_wrap_around_at_the_end_of_a_class():
    # Two of three at a time: rows a b, c a, b c in the class's own random order.
    held = np.array([validation_rows(np.zeros(3, int), 0.67, 1, fold) for fold in range(4)])
    assert held.sum(1).tolist() == [2] * 4
    assert held[:3].sum(0).tolist() == [2] * 3
    np.testing.assert_array_equal(held[3], held[0])


def test_folds_hold_out_no_row_of_a_single_row_class():
    assert not any(validation_rows(np.array([0, 1, 2]), 0.2, 0, fold).any() for fold in range(5))


def test_counts_per_class_are_nested_in_each_other_and_in_fractions():
    labels = np.repeat([3, 0, 7], [40, 10, 2])
    lists = [count_rows(labels, count, 5) for count in (1, 2, 4, 16)]
    assert [np.bincount(labels[rows], minlength=8)[[3, 0, 7]].tolist() for rows in lists] == [
        [1, 1, 1],
        [2, 2, 2],
        [4, 4, 2],  # all of a class that has fewer
        [16, 10, 2],
    ]
    for fewer, more in itertools.pairwise(lists):
        assert set(fewer) <= set(more) and (np.diff(more) > 0).all()
    assert set(count_rows(labels, 4, 5)) <= set(fraction_rows(labels, 0.5, 5)) | set(np.flatnonzero(labels == 7))
    assert set(count_rows(labels, 4, 6)) != set(lists[2])


def test_amount_suffix_and_title():
    assert [(a.suffix, a.title) for a in (Amount(1.0), Amount(0.15), Amount(0, 4))] == [
        ("", "100 % of the labels"),
        ("_at_15", "15 % of the labels"),
        ("_with_4", "4 of each class"),
    ]
