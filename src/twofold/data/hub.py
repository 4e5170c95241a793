"""Data sets of the Hugging Face `datasets` library → `Data`: which column holds the examples, which the labels.

A set is an Arrow table that is mapped into memory, so any row can be read at any time and none has to be held: order,
resuming and the share of each process stay functions of the position, which a shuffled stream could not give.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twofold.data.arrays import Options, data_from_arrays, held_in_memory, identity_of, split_by
from twofold.data.cache import decoded_once
from twofold.data.catalogue import HUB
from twofold.data.folder import Found, common_format, decoded, dtype_of, report_bad, spec_of
from twofold.data.images import CHANNELS
from twofold.data.labels import LABEL_COLUMNS, classes_of
from twofold.data.picture import PixelFormat, Seen, Unreadable, inspect
from twofold.data.split import Data, Examples, Split, fingerprint
from twofold.errors import InputError, unknown
from twofold.spec import DTYPES

SUFFIXES = (".parquet", ".arrow")
_SAVED = ("state.json", "dataset_dict.json")
_TESTS = ("test", "validation", "valid", "val")
_ROWS = 1024
"""Rows read at a time when all are looked at."""


def is_saved(folder: Path) -> bool:
    """Whether a folder is what `save_to_disk` writes, or holds parquet or arrow files, itself or in subfolders."""
    if any((folder / name).is_file() for name in _SAVED):
        return True
    return any(next(folder.glob(f"{inner}*{suffix}"), None) for suffix in SUFFIXES for inner in ("", "*/"))


def load_hub(source: str | Path, options: Options) -> Data:
    """A set of the hub, `hub:NAME` or `hub:NAME:CONFIGURATION`, or a folder or file on this machine.

    Raises `InputError` if the library is missing, if the set cannot be read, or if no column or several could be meant.
    """
    name = source if isinstance(source, str) else source.resolve().name
    tables = _tables(source, name)
    test = next((tables[word] for word in _TESTS if word in tables), None)
    train = tables["train"] if "train" in tables else next(iter(tables.values())) if len(tables) == 1 else None
    if train is None:
        raise InputError(f"{name}: its splits are {', '.join(tables)}; one must be called train")
    test = None if test is train else test
    column = _column(train, name, options.column)
    labels = _labels_column(train, name, column, options)
    notes = [f"column of examples: {column}; of labels: {labels or 'none'}"]
    if unused := sorted(set(tables) - {"train", *_TESTS}) if len(tables) > 1 else []:
        notes.append(f"splits not used: {', '.join(unused)}")
    parts = [train] if test is None else [train, test]
    y = [_labels(table, labels) for table in parts] if labels else None
    options = replace(options, labels=None)
    read = _pictures if _kind(train, column) == "images" else _arrays
    data = read(name, [_Cells.of(table, column) for table in parts], y, options, notes)
    names = getattr(train.features[labels], "names", None) if labels else None
    if not names:
        return data
    spec = replace(data.spec, classes=len(names), class_names=tuple(names))
    return replace(data, spec=spec, fingerprint=fingerprint(spec, [data.train, data.test]))


# Finding.


def _tables(source: str | Path, name: str) -> dict[str, Any]:
    """The splits by name."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name} needs the datasets library; pip install 'twofold[datasets]'") from None
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    # They log what they raise, and each attempt to reach a server.
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        if isinstance(source, str):
            words = source.removeprefix(HUB).split(":")
            if not words[0] or len(words) > 2:
                raise InputError(f"{name!r} names no set; write {HUB}NAME or {HUB}NAME:CONFIGURATION")
            found = datasets.load_dataset(*words)
        elif source.is_file():
            found = datasets.load_dataset(source.suffix[1:], data_files=str(source))
        elif any((source / known).is_file() for known in _SAVED):
            found = datasets.load_from_disk(str(source))
        else:
            found = datasets.load_dataset(str(source.resolve()))
    except InputError:
        raise
    except Exception as error:  # whatever the library, its readers and its downloads raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{name} cannot be read by the datasets library ({reason})") from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
    tables = dict(found) if isinstance(found, dict) else {"train": found}
    if empty := [split for split, table in tables.items() if not len(table)]:
        raise InputError(f"{name}: the split {empty[0]} is empty")
    return tables


def _listed(table: Any) -> str:
    return ", ".join(f"{column} ({_kind(table, column)})" for column in table.column_names)


def _kind(table: Any, column: str) -> str:
    """ "images", "arrays", "text", "numbers" or "other"."""
    feature = table.features[column]
    if type(feature).__name__ == "Image":
        return "images"
    if type(feature).__name__ in ("Array2D", "Array3D"):
        return "arrays"
    leaf, depth = feature, 0
    while (inner := getattr(leaf, "feature", None)) is not None:
        leaf, depth = inner, depth + 1
    dtype = str(getattr(leaf, "dtype", ""))
    if dtype in ("string", "large_string"):
        return "text"
    if dtype not in DTYPES and dtype not in ("int8", "int16", "uint32"):
        return "other"
    return "arrays" if depth else "numbers"


def _column(table: Any, name: str, wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in table.column_names:
            raise unknown(f"column of {name}", wanted, table.column_names)
        kind = _kind(table, wanted)
        if kind not in ("images", "arrays"):
            raise InputError(
                f"{name}: column {wanted} holds {kind}, and examples are images or arrays of numbers; its columns: "
                f"{_listed(table)}"
            )
        return wanted
    for kind in ("images", "arrays"):
        found = [column for column in table.column_names if _kind(table, column) == kind]
        if len(found) > 1:
            raise InputError(f"{name}: columns {', '.join(found)} hold {kind}; say which one with --column")
        if found:
            return found[0]
    raise InputError(f"{name}: no column holds images or arrays of numbers; its columns: {_listed(table)}")


def _labels_column(table: Any, name: str, column: str, options: Options) -> str | None:
    if options.labels is not None:
        if not isinstance(options.labels, str):
            raise InputError(f"{name}: labels are a column of the set here; give its name")
        if options.labels not in table.column_names:
            raise unknown(f"column of {name}", options.labels, table.column_names)
        return options.labels
    others = [other for other in table.column_names if other != column]
    classes = [other for other in others if hasattr(table.features[other], "names")]
    if len(classes) > 1:
        raise InputError(f"{name}: columns {', '.join(classes)} hold classes; say which one with --labels")
    named = [other for other in others if other.lower() in (*LABEL_COLUMNS, "labels")]
    return classes[0] if classes else named[0] if len(named) == 1 else None


def _labels(table: Any, column: str) -> np.ndarray:
    return _rows(table.select_columns([column]), slice(None)).to_numpy(zero_copy_only=False)


# Reading.


def _rows(table: Any, rows: Any) -> Any:
    """The only column's cells as one Arrow array."""
    chunked = table.with_format("arrow")[rows].column(0)
    return chunked.combine_chunks() if chunked.num_chunks != 1 else chunked.chunk(0)


@dataclass(frozen=True, eq=False)
class _Cells:
    """One column of a split."""

    table: Any
    """A `datasets.Dataset` of this column alone."""
    files: tuple[Path, ...]

    @classmethod
    def of(cls, table: Any, column: str) -> _Cells:
        return cls(table.select_columns([column]), tuple(Path(file["filename"]) for file in table.cache_files))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, Tensor):
            rows = rows.numpy()
        return _rows(self.table, rows.tolist() if isinstance(rows, np.ndarray) else rows)

    def identity(self) -> bytes:
        return identity_of(self.files)


# Images.


@dataclass(frozen=True, eq=False)
class CellPictures:
    """Pictures in a column, decoded on access by a few threads."""

    cells: _Cells
    where: np.ndarray
    """The rows that can be read."""
    format: PixelFormat

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.where), *self.format.shape)

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.format)

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, indices: Tensor) -> Tensor:
        rows = self.where[indices.numpy()]
        files = [BytesIO(cell["bytes"]) for cell in self.cells[rows].to_pylist()]
        return decoded(files, [f"row {row}" for row in rows], self.format, what="row")

    def identity(self) -> bytes:
        return hashlib.sha256(self.cells.identity() + self.where.tobytes() + repr(self.format).encode()).digest()


def _pictures(name: str, parts: list[_Cells], y: list[np.ndarray] | None, options: Options, notes: list[str]) -> Data:
    if options.channels not in (None, *CHANNELS):
        raise InputError(f"channels is {options.channels}; allowed for images: 1, 3 and 4")
    options.refuse("value_range", because="image files state their own range")
    root = Path(name)
    kinds: dict[Seen, Found] = {}
    good = [_inspected(cells, root, kinds, options, notes) for cells in parts]
    pixel_format = common_format(list(kinds.values()), root, options, notes)
    splits, counts = [], [len(where) for where in good]
    hold = held_in_memory((sum(counts), *pixel_format.shape), dtype_of(pixel_format), options)
    if not hold:
        notes.append("too large to hold in memory: decoded on access")
    labels, classes, names = None, None, None
    if y is not None:
        labels, classes, names = classes_of(np.concatenate([v[w] for v, w in zip(y, good, strict=True)]), where=name)
    for k, (cells, where) in enumerate(zip(parts, good, strict=True)):
        pictures = CellPictures(cells, where, pixel_format)
        x: Tensor | Examples = _held(pictures) if hold else decoded_once(pictures, options.cache)
        start = sum(counts[:k])
        splits.append(Split(x, None if labels is None else labels[start : start + counts[k]]))
    train, test = (splits[0], splits[1]) if len(splits) > 1 else split_by(splits[0], options)
    spec = replace(spec_of(pixel_format), classes=classes, class_names=names)
    return Data(name, spec, train, test, tuple(notes), fingerprint(spec, [train, test]))


def _held(pictures: CellPictures) -> Tensor:
    out = torch.empty(pictures.shape, dtype=pictures.dtype)
    for start in range(0, len(out), _ROWS):
        stop = min(start + _ROWS, len(out))
        out[start:stop] = pictures[torch.arange(start, stop)]
    return out


def _inspected(cells: _Cells, root: Path, kinds: dict[Seen, Found], options: Options, notes: list[str]) -> np.ndarray:
    """The rows whose picture's header can be read; one picture of each kind and size goes into `kinds`."""
    good, bad = [], {}
    for start in range(0, len(cells), _ROWS):
        for row, cell in enumerate(cells[slice(start, start + _ROWS)].to_pylist(), start):
            try:
                if cell is None or cell["bytes"] is None:
                    raise Unreadable("no bytes, only the name of a file" if cell else "empty")
                seen = inspect(BytesIO(cell["bytes"]))
            except Unreadable as error:
                bad[f"row {row}"] = str(error)
                continue
            good.append(row)
            kinds.setdefault(seen, Found(root, f"row {row}", None, seen))
    report_bad(bad, len(cells), root, options, notes)
    return np.array(good, dtype=np.int64)


# Arrays.


class CellArrays:
    """Arrays of one shape in a column, in the form of a numpy array whose rows are read on access."""

    def __init__(self, name: str, cells: _Cells):
        self.name, self.cells = name, cells
        shape: list[int] = []
        leaf = _plain(cells[[0]])
        while hasattr(leaf, "flatten") and hasattr(leaf.type, "value_type"):
            before, leaf = max(1, len(leaf)), _plain(leaf.flatten())
            shape.append(len(leaf) // before)
        self.shape = (len(cells), *shape)
        self.dtype = np.dtype(leaf.type.to_pandas_dtype())
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        import pyarrow.compute

        leaf = _plain(self.cells[rows])
        count = len(leaf)
        for length in self.shape[1:]:
            lengths = pyarrow.compute.min_max(pyarrow.compute.list_value_length(leaf)).as_py()
            if leaf.null_count or lengths != {"min": length, "max": length}:
                shown = "×".join(map(str, self.shape[1:]))
                raise InputError(f"{self.name}: the first example is {shown} and others are not; make them alike")
            leaf = _plain(leaf.flatten())
        if leaf.null_count:
            raise InputError(f"{self.name}: {leaf.null_count} values are missing; remove or replace them")
        return leaf.to_numpy(zero_copy_only=False).reshape(count, *self.shape[1:])


def _plain(array: Any) -> Any:
    """An Arrow array of an extension type (`Array2D`, `Array3D`) as the lists that it stores."""
    return array.storage if hasattr(array, "storage") else array


def _arrays(name: str, parts: list[_Cells], y: list[np.ndarray] | None, options: Options, notes: list[str]) -> Data:
    x = [CellArrays(name, cells) for cells in parts]
    total = sum(math.prod(one.shape) for one in x) * x[0].dtype.itemsize
    files = None if total <= options.memory_limit_bytes else tuple(file for cells in parts for file in cells.files)
    if files is not None:
        notes.append("too large to hold in memory: read on access")
    held: list[Any] = [one[slice(None)] for one in x] if files is None else [*x]
    labels: list[Any] = [None] * len(x) if y is None else [*y]
    first, test, *_ = zip([*held, None], [*labels, None], strict=True)
    return data_from_arrays(name, *first, *test, options=options, notes=notes, path=files)
