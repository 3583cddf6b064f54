import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from campaign import RIGHT, outcome
from cases import CASES, Case


def test_case_names_are_unique():
    assert len({(case.part, case.name) for case in CASES}) == len(CASES)


def title(case: Case) -> str:
    return f"{case.part}: {case.name}"[:60].encode("ascii", "replace").decode()


@pytest.mark.parametrize("case", CASES, ids=title)
def test_odd_input_is_read_or_refused_in_one_line(case, tmp_path):
    ended, text = outcome(case, tmp_path / "set")
    assert ended == RIGHT, text
