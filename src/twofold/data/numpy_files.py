""".npy and .npz files. Nothing in them is ever unpickled, and no size they declare is believed before it is checked."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from twofold.data.arrays import Options, data_from_arrays
from twofold.data.pairs import pair_arrays
from twofold.data.split import Data
from twofold.errors import InputError

FAMILIES = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("images", "labels"),
    ("x", "y"),
    ("data", "target"),
    ("samples",),
)
"""Keys of an .npz file that are understood, as (examples, labels, test examples, test labels)."""


def load_npy(path: Path, options: Options) -> Data:
    """One array of examples. Larger than the memory limit, it stays on disk and is read on access."""
    shape, dtype = _declared_by_file(path)
    if math.prod(shape) * dtype.itemsize <= options.memory_limit_bytes:
        return data_from_arrays(path.stem, read_npy(path), options=options)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    note = f"{_gib(math.prod(shape) * dtype.itemsize)} stay on disk and are read on access"
    return data_from_arrays(path.stem, array, options=options, notes=[note], path=path)


def read_npy(path: Path) -> np.ndarray:
    """The array in a .npy file, in memory. Raises `InputError` if it is not one, is cut short, or holds objects."""
    _declared_by_file(path)
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path.name}: cannot be read as a .npy file ({_one_line(error)})") from None


def load_npz(path: Path, options: Options) -> Data:
    """The arrays of an .npz file with keys that are understood: one of `FAMILIES`, or a single array.

    `options.labels` may be the key of the labels.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            return _from_archive(archive, path, keys, options)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path.name}: cannot be read as an .npz file ({_one_line(error)})") from None


def _from_archive(archive: zipfile.ZipFile, path: Path, keys: list[str], options: Options) -> Data:
    if options.pairs is not None:
        return _pairs_from_archive(archive, path, keys, options)
    label_key = options.labels if isinstance(options.labels, str) and options.labels in keys else None
    if isinstance(options.labels, str) and label_key is None and not os.path.isfile(os.path.expanduser(options.labels)):
        raise InputError(
            f"{path.name}: labels {options.labels!r} is neither a key of the file ({', '.join(keys)}) nor a file"
        )
    chosen = _chosen(path, keys, label_key)
    x, y, x_test, y_test = _members(archive, path, chosen, options)
    ignored = sorted(set(keys) - set(chosen))
    notes = [f"keys not used: {', '.join(ignored)}"] if ignored else []
    if label_key is not None:
        options = replace(options, labels=None)
    return data_from_arrays(path.stem, x, y, x_test, y_test, options=options, notes=notes)


def _pairs_from_archive(archive: zipfile.ZipFile, path: Path, keys: list[str], options: Options) -> Data:
    """The arrays that `options.pairs` names, input and target; with test_ before the names, those to test on."""
    assert options.pairs is not None
    options.refuse("labels", because=f"{path.name} is read as pairs, which have no labels")
    if missing := [key for key in options.pairs if key not in keys]:
        raise InputError(f"{path.name}: there is no array {missing[0]!r}; its keys are {', '.join(keys)}")
    tests = [key if (key := f"test_{name}") in keys else None for name in options.pairs]
    a, x, a_test, x_test = _members(archive, path, (*options.pairs, *tests), options)
    return pair_arrays(path.stem, a, x, a_test, x_test, options=options)


def _members(archive: zipfile.ZipFile, path: Path, keys: Iterable[str | None], options: Options) -> list[Any]:
    """The arrays with these keys, None for None. Raises `InputError` before reading what memory should not hold."""
    keys = list(keys)
    total = sum(_declared_by_member(archive, path, key) for key in keys if key is not None)
    if total > options.memory_limit_bytes:
        raise InputError(
            f"{path.name}: the arrays declare {_gib(total)}, more than the limit of {_gib(options.memory_limit_bytes)} "
            "for data held in memory; save the examples as a .npy file, which is read from disk on access"
        )
    return [None if key is None else _member(archive, path, key) for key in keys]


def _chosen(
    path: Path, keys: list[str], label_key: str | None
) -> tuple[str | None, str | None, str | None, str | None]:
    """The keys of (examples, labels, test examples, test labels)."""
    by_name = {key.lower(): key for key in keys}
    found = [family for family in FAMILIES if family[0] in by_name]
    if len(found) > 1:
        firsts = " and ".join(family[0] for family in found)
        raise InputError(f"{path.name}: keys {firsts} could both be the examples; keep one of them in the file")
    if found:
        names: list[str | None] = [by_name.get(name) for name in found[0]]
        x, y, x_test, y_test = names + [None] * (4 - len(names))
        return (x, y, x_test, y_test) if label_key is None else (x, label_key, None, None)
    rest = [key for key in keys if key != label_key]
    if len(rest) == 1:
        return rest[0], label_key, None, None
    if not rest:
        raise InputError(f"{path.name}: the file holds no array of examples")
    known = "; ".join("/".join(family) for family in FAMILIES)
    raise InputError(f"{path.name}: keys {', '.join(keys)} are not understood; name them as one of: {known}")


def _declared_by_file(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        with path.open("rb") as file:
            shape, dtype = _header(file, path.name)
            present = path.stat().st_size - file.tell()
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({_one_line(error)})") from None
    if math.prod(shape) * dtype.itemsize > present:
        raise InputError(
            f"{path.name}: the file is cut short: {present} bytes for an array of {math.prod(shape) * dtype.itemsize}"
        )
    return shape, dtype


def _declared_by_member(archive: zipfile.ZipFile, path: Path, key: str) -> int:
    with archive.open(f"{key}.npy") as file:
        shape, dtype = _header(file, f"{path.name}, key {key}")
    return math.prod(shape) * dtype.itemsize


def _member(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    try:
        with archive.open(f"{key}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path.name}, key {key}: cannot be read ({_one_line(error)})") from None


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype as the header declares them. Refuses objects before anything is read or allocated."""
    try:
        version = np.lib.format.read_magic(file)
        # Version 3 differs from 2 only in the encoding of field names, and no array with fields is taken.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, EOFError, RecursionError, MemoryError) as error:
        raise InputError(f"{where}: this is not a numpy array file ({_one_line(error)})") from None
    if dtype.hasobject:
        raise InputError(
            f"{where}: holds Python objects, which are never loaded because reading them can run code; "
            "save it again as a plain array of numbers, or labels as text with a fixed width"
        )
    if min(shape, default=0) < 0:
        raise InputError(f"{where}: declares the impossible shape {shape}")
    return shape, dtype


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
