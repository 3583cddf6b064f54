"""Tables of text: the rows `<id> <value>` of official sets, and CSV files as spreadsheets write them."""

import csv
import io
import unicodedata
from pathlib import Path

import numpy as np

from cvsa_jax.runtime.errors import UserError, some

_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


def pairs(path: Path, hint: str) -> dict[str, str]:
    """The `<id> <value>` rows of a table, the value to the end of the line.

    Raises:
        UserError: the table is not there, or has a row without a value or an id twice.
    """
    rows = [line.split(maxsplit=1) for line in lines(path, hint)]
    if short := [" ".join(row) for row in rows if len(row) < 2]:
        raise UserError(f"{path} has rows without a value: {some(short)}")
    found = {row[0]: row[1].strip() for row in rows}
    if len(found) < len(rows):
        seen: set[str] = set()
        repeated = [row[0] for row in rows if row[0] in seen or seen.add(row[0])]
        raise UserError(f"{path} lists an id twice: {some(repeated)}")
    return found


def lines(path: Path, hint: str) -> list[str]:
    """The lines of a table that are not blank; UserError with the hint where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {hint}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file with the column `image` and `columns`, every cell stripped; image names with `/`.

    Encodings, separators and marks of spreadsheets are recognised; names of columns in any case.

    Raises:
        UserError: the file lacks a column, a row lacks a cell (its number is named), or an image comes twice.
    """
    text = _text(path.read_bytes(), path)
    head = text.replace("\r", "\n").partition("\n")[0]
    separator = max(",;\t", key=head.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=None), delimiter=separator))
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from None
    names = [name.strip().lower() for name in rows[0]] if rows else []
    if not {"image", *columns} <= set(names):
        raise UserError(f"{path} must have the columns image,{','.join(columns)}; it has {names}")
    table, where = [], {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if any(cell.strip() for cell in row[len(names) :]):
            raise UserError(
                f"{path}, row {number}: {len(row)} cells for {len(names)} columns ({some(row, 9)}). Put cells with a "
                f"{separator!r} in them in quotes, and write decimals with a point"
            )
        cells = dict.fromkeys(names, "") | dict(zip(names, (cell.strip() for cell in row), strict=False))
        if empty := [name for name in ("image", *columns) if not cells.get(name)]:
            raise UserError(f"{path}, row {number}: no {empty[0]}. Fill the cell, or take the row out")
        cells["image"] = canonical(cells["image"])
        if cells["image"] in where:
            first = where[cells["image"]]
            raise UserError(f"{path} lists images twice: {cells['image']} in rows {first} and {number}")
        where[cells["image"]] = number
        table.append(cells | {"row": str(number)})
    return table


def mat(path: Path, hint: str) -> dict[str, np.ndarray]:
    """The flattened variables of a MATLAB file; UserError where it is not there or damaged."""
    from scipy.io import loadmat  # seldom needed, and slow to import

    try:
        return {key: value.ravel() for key, value in loadmat(path).items() if not key.startswith("__")}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {hint}") from None
    except Exception as error:  # whatever SciPy raises at a damaged file
        raise UserError(f"cannot read {path}: {error}. {hint}") from None


def canonical(name: str) -> str:
    """A file's name as it is compared: `/` between folders, accents in one piece."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def _text(content: bytes, path: Path) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    for encoding in ("utf-8", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            raise UserError(f"{path} is no text in UTF-8, UTF-16 or Latin-1: save it as CSV in UTF-8")
        if encoding != "utf-8":
            print(f"{path} is not UTF-8: read as Windows' Latin-1 ({encoding})")
        return text
    raise UserError(f"{path} is no text in UTF-8, UTF-16 or Latin-1: save it as CSV in UTF-8")
