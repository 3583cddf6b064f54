"""Runs the odd inputs; `python tests/odd_inputs/campaign.py` prints a table of the outcomes."""

import collections
import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path

import annotation_cases  # noqa: F401  adds its cases
import numpy as np
from cases import CASES, Case

from configs import common
from cvsa_jax import settings
from cvsa_jax.data.reading import load_image, unreadable, unreadable_error
from cvsa_jax.runtime import ranges
from cvsa_jax.runtime.errors import UserError

RIGHT, SILENT, TRACEBACK, MISLEADING = "right", "wrong without a word", "a traceback", "a misleading message"


def outcome(case: Case, root: Path) -> tuple[str, str]:
    """How a case ends, and what was said."""
    root.mkdir(parents=True, exist_ok=True)
    case.build(root)
    config = common.pretrain()
    config.data.kind, config.data.root = case.kind, str(root)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            ranges.check(case.keys)
            source = settings.load_source(config.data)
            everything = np.arange(len(source))
            if bad := unreadable(source, everything):
                raise unreadable_error(source, bad)
            images = [load_image(source, int(i)) for i in everything]
            for i in everything[source.has_mask(everything)]:
                source.mask(int(i))
            for i in everything if source.box else ():
                source.box(int(i))
            right = case.right is None or case.right(source, images)
    except UserError as error:
        text = str(error)
        fits = case.refused and re.search(case.refused, text) and "\n" not in text
        return (RIGHT if fits else MISLEADING), text
    except Exception as error:
        return TRACEBACK, f"{type(error).__name__}: {error}"
    said = printed.getvalue()
    return (RIGHT if not case.refused and right and re.search(case.said, said) else SILENT), said


def table() -> str:
    """Markdown: of each part the number of cases and how they ended."""
    counts: dict[str, collections.Counter] = {}
    for k, case in enumerate(CASES):
        with tempfile.TemporaryDirectory() as folder:
            ended, text = outcome(case, Path(folder) / str(k))
        counts.setdefault(case.part, collections.Counter())[ended] += 1
        if ended != RIGHT:
            print(f"{case.part}: {case.name}: {ended}: {text}", file=sys.stderr)
    kinds = (RIGHT, SILENT, MISLEADING, TRACEBACK)
    lines = ["| odd inputs | cases | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 2) + "|"]
    counts["all"] = sum(counts.values(), collections.Counter())
    for part, ended in counts.items():
        lines.append(f"| {part} | {sum(ended.values())} | " + " | ".join(str(ended[kind]) for kind in kinds) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
