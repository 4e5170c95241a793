"""Labels: from files or arrays, as numbers or as names, to classes 0 … classes - 1."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twofold.errors import InputError

LABEL_COLUMNS = ("label", "class", "target")
"""Columns of a CSV file that are taken as labels unless another is named."""


def classes_of(values: Any, *, where: str) -> tuple[Tensor, int, tuple[str, ...] | None]:
    """Labels (examples,) int64, the number of classes, and class names if the labels are text.

    Whole numbers stay as they are (classes = largest + 1); text is numbered in sorted order. Raises `InputError` for
    anything else, naming the first label that is wrong.
    """
    array = _array(values, where=where)
    if array.dtype.kind in "US":
        names = sorted({str(value) for value in array.tolist()})
        index = {name: i for i, name in enumerate(names)}
        return torch.tensor([index[str(value)] for value in array.tolist()]), len(names), tuple(names)
    if array.dtype.kind == "f":
        _refuse(array, ~(np.isfinite(array) & (array == np.round(array))), "not a whole number", where)
    _refuse(array, array < 0, "negative; labels count from 0", where)
    _refuse(array, array >= 2**20, "too large; labels are classes 0 to 2^20 - 1", where)
    labels = torch.from_numpy(array.astype(np.int64))
    return labels, int(labels.max()) + 1, None


def read_labels(path: Path) -> np.ndarray:
    """One label per example from a .npy file, a .txt file (one a line) or a .csv file (one column, or one called label,
    class or target). Raises `InputError` for anything else."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        from twofold.data.numpy_files import read_npy

        return read_npy(path)
    if suffix not in (".txt", ".csv"):
        what = suffix or "a file without an extension"
        raise InputError(f"labels from {path.name}: cannot read {what}; give .npy, .csv or .txt")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file)) if suffix == ".csv" else [[line.rstrip("\r\n")] for line in file]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"labels from {path.name}: this is not a text file ({error})") from None
    rows = _even_rows(rows, path)
    column, has_header = _label_column(rows, path)
    return parsed([row[column] for row in rows[has_header:]])


def parsed(cells: Sequence[str]) -> np.ndarray:
    """Text cells as whole numbers if all of them are, else as text."""
    cells = [cell.strip() for cell in cells]
    try:
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    except (ValueError, OverflowError):
        return np.array(cells, dtype=np.str_)


def _even_rows(rows: list[list[str]], path: Path) -> list[list[str]]:
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        raise InputError(f"labels from {path.name}: the file is empty")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise InputError(f"labels from {path.name}: row {number} has {len(row)} cells, row 1 has {len(rows[0])}")
    return rows


def _label_column(rows: list[list[str]], path: Path) -> tuple[int, bool]:
    """(column of the labels, whether the first row is a header)."""
    if path.suffix.lower() == ".txt":
        return 0, False
    found = [i for i, cell in enumerate(rows[0]) if cell.strip().lower() in LABEL_COLUMNS]
    if len(found) > 1 or (not found and len(rows[0]) > 1):
        raise InputError(f"labels from {path.name}: {len(rows[0])} columns; keep one, or call one of them label")
    return (found[0], True) if found else (0, False)


def _array(values: Any, *, where: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype == object and all(isinstance(value, str) for value in array.flat):
        array = array.astype(np.str_)
    if array.dtype.kind not in "biufUS":
        raise InputError(f"{where}: labels of type {array.dtype} cannot be used; give whole numbers or text")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"{where}: labels have shape {array.shape}; give one label per example, not one-hot rows")
    if array.size == 0:
        raise InputError(f"{where}: there are no labels")
    return np.char.decode(array, "utf-8", "replace") if array.dtype.kind == "S" else array


def _refuse(array: np.ndarray, wrong: np.ndarray, why: str, where: str) -> None:
    if wrong.any():
        first = int(wrong.argmax())
        raise InputError(f"{where}: label {array[first].item()!r} of example {first} is {why}")
