import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from campaign import RIGHT, outcome
from cases import CASES, Case


def test_there_are_enough_and_each_has_a_name_of_its_own():
    assert len({(case.part, case.name) for case in CASES}) == len(CASES) >= 120


def title(case: Case) -> str:
    return f"{case.part}: {case.name}"[:60].encode("ascii", "replace").decode()


@pytest.mark.parametrize("case", CASES, ids=title)
def test_an_odd_input_is_read_right_or_refused_in_one_line(case, tmp_path):
    ended, text = outcome(case, tmp_path / "set")
    assert ended == RIGHT, text
