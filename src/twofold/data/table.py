"""Tables of numbers: CSV → vectors."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twofold.data.arrays import Options, data_from_arrays
from twofold.data.labels import LABEL_COLUMNS, parsed
from twofold.data.split import Data
from twofold.errors import InputError


def load_table(path: Path, options: Options) -> Data:
    """A CSV file: one example a row, one feature a column, with a header or without.

    The labels are the column that `options.labels` names, or else one called label, class or target. Commas,
    semicolons and tabs separate, whichever the first line has. Raises `InputError` naming row and column of the first
    cell that is not a number.
    """
    rows = _rows(path)
    header = [cell.strip() for cell in rows[0]] if any(_number(cell) is None for cell in rows[0]) else None
    first_row = 2 if header else 1
    rows = rows[1:] if header else rows
    if not rows:
        raise InputError(f"{path.name}: there is a header and no row of numbers")
    names = header or [f"column {i + 1}" for i in range(len(rows[0]))]
    label, notes = _label_column(path, names, bool(header), options)
    columns = [i for i in range(len(names)) if i != label]
    if not columns:
        raise InputError(f"{path.name}: there is no column of numbers beside the labels")
    x = _numbers(rows, columns, names, path, first_row)
    y: Any = None if label is None else _label_values([row[label] for row in rows])
    if label is not None:
        options = replace(options, labels=None)
    return data_from_arrays(path.stem, x, y, options=options, notes=notes)


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = next((mark for mark in "\t;" if mark in first), ",")
            file.seek(0)
            rows = [(number, row) for number, row in enumerate(csv.reader(file, delimiter=delimiter), 1) if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path.name}: this is not a text file ({error})") from None
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error})") from None
    if not rows:
        raise InputError(f"{path.name}: the file is empty")
    width = len(rows[0][1])
    for number, row in rows:
        if len(row) != width:
            raise InputError(f"{path.name}: row {number} has {len(row)} cells, the first row has {width}")
    return [row for _, row in rows]


def _label_column(path: Path, names: list[str], has_header: bool, options: Options) -> tuple[int | None, list[str]]:
    wanted = options.labels
    if isinstance(wanted, str) and not os.path.isfile(os.path.expanduser(wanted)):
        if wanted in names and has_header:
            return names.index(wanted), []
        columns = f"a column ({', '.join(names[:20])})" if has_header else "a column (the file has no header)"
        raise InputError(f"{path.name}: labels {wanted!r} is neither {columns} nor a file")
    if wanted is not None or not has_header:
        return None, []
    found = [i for i, name in enumerate(names) if name.lower() in LABEL_COLUMNS]
    if len(found) > 1:
        named = " and ".join(names[i] for i in found)
        raise InputError(f"{path.name}: columns {named} could both be the labels; say which with --labels")
    return (found[0], [f"labels: column {names[found[0]]}"]) if found else (None, [])


def _label_values(cells: list[str]) -> np.ndarray:
    # "1.0" is a number that happens to be written so; text is only what no cell can be read as a number.
    labels = parsed(cells)
    if labels.dtype.kind == "U":
        numbers = [_number(cell) for cell in cells]
        if all(number is not None for number in numbers):
            return np.array(numbers, dtype=np.float64)
    return labels


def _numbers(rows: list[list[str]], columns: list[int], names: list[str], path: Path, first_row: int) -> np.ndarray:
    x = np.empty((len(rows), len(columns)))
    for j, column in enumerate(columns):
        cells = [row[column] for row in rows]
        try:
            x[:, j] = np.array(cells, dtype=np.float64)
        except ValueError:
            i, cell = next((i, cell) for i, cell in enumerate(cells) if _number(cell) is None)
            what = f"holds {cell!r}" if cell.strip() else "is empty"
            hint = f"; if it holds the labels, say --labels {names[column]}" if cell.strip() else ""
            raise InputError(
                f"{path.name}: row {i + first_row}, {names[column]!r} {what}, which is no number{hint}"
            ) from None
    return x


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
