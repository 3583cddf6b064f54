"""Tables of official sets, written by the tests."""

from pathlib import Path

import numpy as np
from scipy.io import savemat


def write(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def write_annotations(path: Path, rows: list[dict], **more) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = list(rows[0])
    table = np.zeros((1, len(rows)), [(field, object) for field in fields])
    for k, row in enumerate(rows):
        table[0, k] = tuple(row[field] for field in fields)
    savemat(path, {"annotations": table} | more)


def car(name: str, label: int, box=(1, 1, 6, 5), **more) -> dict:
    corners = dict(zip(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), (np.uint16(v) for v in box), strict=True))
    return corners | {"class": np.uint8(label)} | more | {"fname": name}


CLASSES = np.array(["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"], object)[None]
