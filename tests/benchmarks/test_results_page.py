"""RESULTS.md quotes no figure that is in no file of results."""

import re

import pytest

from benchmarks import results_page

TEMPLATE = (results_page.FOLDER / "page.md").read_text()


def test_committed_page_matches_committed_results():
    assert results_page.PAGE.read_text() == results_page.filled(TEMPLATE)


def test_table_figures_all_come_from_results():
    rows = [line for line in TEMPLATE.splitlines() if line.startswith("| ")]
    values = [cell for row in rows for cell in row.strip("|").split("|")[1:]]
    places = sum(len(results_page.PLACE.findall(cell)) for cell in values)
    assert places > 100
    headings = {"kNN, k = 20"}
    typed = [cell for cell in values if re.search(r"\d", results_page.PLACE.sub("", cell))]
    titles = ("after 20", "after 200", "seed ", "GiB", "top-1")  # of columns
    assert [cell for cell in typed if not any(title in cell for title in (*titles, *headings))] == []


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("rate", "2,550 (2,488–2,553)"),
        ("small", "0.0362"),
        ("rows/1/s", "47.3"),
        ("rows/0/share%", "91.0"),
        ("share/1", "0.978"),
        ("device", "a card"),
        ("about", "abc1234-dirty, 2026-01-02, 2 cores"),
    ],
)
def test_placeholder_is_filled_with_the_entry_it_names(key, wanted):
    file = {
        "commit": "abc1234-dirty",
        "date": "2026-01-02",
        "machine": "2 cores",
        "device": "a card",
        "rate": 2550.11,
        "rate_min": 2488.17,
        "rate_max": 2553.14,
        "small": 0.03621,
        "rows": [{"share": 0.91}, {"s": 47.31}],
        "share": [0.9685, 0.9776],
    }
    assert results_page.figure(file, key) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"), [(99.96, "100"), (9.996, "10.0"), (0.9996, "1.00"), (1234.5, "1,234"), (0, "0")]
)
def test_number_has_three_significant_digits(value, wanted):
    assert results_page.number(value) == wanted


def test_placeholder_without_a_file_is_an_error():
    with pytest.raises(KeyError):
        results_page.filled("[[peers:of_nobody]]")
