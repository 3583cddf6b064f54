"""RESULTS.md, with every figure of it read from results/*.json.

    python -m benchmarks.results_page

results/page.md is the page with a place for each figure: `[[file:key]]` is an entry of results/<file>.json, with the
lowest and the highest in brackets where the file has `<key>_min` and `<key>_max`; a slash leads into a list or a part,
`%` at the end makes a share a percentage, and `[[file:about]]` is the commit, the day and the machine.
"""

import json
import math
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"
PLACE = re.compile(r"\[\[(\w+):([^\]]+)\]\]")


def main() -> None:
    PAGE.write_text(filled((FOLDER / "page.md").read_text()))
    print(f"written: {PAGE}")


def filled(page: str) -> str:
    """The page with each place filled; KeyError where a file has no such entry."""
    files = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name, _ in PLACE.findall(page)}
    return PLACE.sub(lambda place: figure(files[place[1]], place[2]), page)


def figure(file: dict, key: str) -> str:
    """The text of a place, from the file that it names."""
    if key == "about":
        return f"{file['commit']}, {file['date']}, {file['machine']}"
    percent = key.endswith("%")
    *parts, key = key.removesuffix("%").split("/")
    for part in parts:
        file = file[int(part) if isinstance(file, list) else part]
    value = file[int(key) if isinstance(file, list) else key]
    if isinstance(value, str):
        return value
    scale = 100 if percent else 1
    if isinstance(file, dict) and f"{key}_min" in file:
        low, high = (number(scale * file[f"{key}_{end}"]) for end in ("min", "max"))
        return f"{number(scale * value)} ({low}–{high})"
    return number(scale * value)


def number(value: float) -> str:
    """Three significant digits, four from 1,000 on."""
    rounded = float(f"{value:.3g}")
    if rounded >= 100:
        return f"{value:,.0f}"
    decimals = 2 - math.floor(math.log10(rounded)) if rounded > 0 else 0
    return f"{value:.{decimals}f}"


if __name__ == "__main__":
    main()
