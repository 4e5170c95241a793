"""Arrays → `Data`: which axis is which, which values are allowed, what is converted. Files of numbers end here."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twofold.data.convert import beyond_float32
from twofold.data.images import CHANNELS, resized, with_channels
from twofold.data.labels import classes_of, read_labels
from twofold.data.split import (
    MEMORY_LIMIT_BYTES,
    Data,
    Examples,
    Split,
    example_bytes,
    fingerprint,
    held_out,
    take,
)
from twofold.errors import InputError
from twofold.spec import DTYPES, Spec

_CHUNK_BYTES = 64 * 2**20
_WIDER = {"int8": "int32", "int16": "int32", "uint32": "int64"}


@dataclass(frozen=True)
class Options:
    """What a caller of `load` may say about a source."""

    size: tuple[int, int] | None = None
    channels: int | None = None
    value_range: tuple[float, float] | None = None
    labels: Any = None
    strict: bool = False
    holdout: float = 0.1
    seed: int = 0
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES
    cache: str | os.PathLike[str] | None = None
    pairs: tuple[str, str] | None = None
    """Names of the two sides, input and target: subfolders, or keys of an .npz."""
    side_by_side: bool = False
    unpaired: bool = False
    column: str | None = None
    """The column of a hub data set that holds the examples."""

    def refuse(self, *names: str, because: str) -> None:
        """Raise `InputError` if any of the named options was given."""
        for name in names:
            if getattr(self, name) is not None:
                raise InputError(f"{name} cannot be used here: {because}")


@dataclass(frozen=True)
class Reading:
    """How the user's arrays become raw values in model layout."""

    layout: str
    dtype: str
    """The dtype that samples are handed back in."""
    shape: tuple[int, ...]
    """One example in model layout, after conversion."""
    low: float = 0.0
    high: float = 255.0
    stored: str = "float32"
    """The dtype in memory."""

    @property
    def kind(self) -> str:
        return "vector" if self.layout == "D" else "image"

    def __call__(self, x: np.ndarray) -> Tensor:
        """The user's examples as raw values, (examples, channels, height, width) or (examples, features)."""
        if self.layout == "HW":
            x = x[:, None]
        elif self.layout == "HWC":
            x = x.transpose(0, 3, 1, 2)
        # Always a copy: the user's array may be read-only, or change later.
        raw = torch.from_numpy(np.array(x, dtype=self.stored, order="C"))
        if self.kind == "vector" or tuple(raw.shape[1:]) == self.shape:
            return raw
        # In pieces: resizing goes through float32, four times the size of uint8.
        pieces = [
            resized(
                with_channels(piece, self.shape[0], low=self.low, high=self.high),
                (self.shape[1], self.shape[2]),
                low=self.low,
                high=self.high,
            )
            for piece in raw.split(max(1, _CHUNK_BYTES // max(1, 4 * math.prod(raw.shape[1:]))))
        ]
        return torch.cat(pieces)


@dataclass(frozen=True, eq=False)
class Mapped:
    """An array on disk, read on access."""

    array: np.ndarray
    reading: Reading
    paths: tuple[Path, ...]
    """The files that hold it."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.array), *self.reading.shape)

    @property
    def dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self.reading.stored)).dtype

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.reading(self.array[indices.numpy()])

    def identity(self) -> bytes:
        return identity_of(self.paths)


def identity_of(files: Sequence[Path]) -> bytes:
    """Names, sizes and times of files: what changes when they do."""
    seen = [(path.name, path.stat()) for path in files]
    return "\n".join(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in seen).encode()


def data_from_arrays(
    name: str,
    x: Any,
    y: Any = None,
    x_test: Any = None,
    y_test: Any = None,
    *,
    options: Options,
    notes: Sequence[str] = (),
    path: Path | tuple[Path, ...] | None = None,
    value_range: tuple[float, float] | None = None,
) -> Data:
    """`Data` from arrays or tensors, (examples, …), with labels or without.

    Where `x_test` is None a part is held out as `options` say. With `path`, `x` is that file, or those files,
    memory-mapped, and stays on disk, and so does `x_test`. `value_range` is the range of a format that states one.
    Raises `InputError` for everything that cannot be used: see `load`.
    """
    notes = list(notes)
    if options.labels is not None:
        y, y_test = _given_labels(options.labels, y, name, len(x), 0 if x_test is None else len(x_test), notes)
    array, is_tensor = _as_array(x, name)
    if array.dtype.name in _WIDER:
        notes.append(f"{array.dtype.name} values are kept as {_WIDER[array.dtype.name]}")
    reading = _reading(array, is_tensor, name, options, value_range, notes)
    _check_values(array, reading, name)
    paths = path if isinstance(path, tuple) else () if path is None else (path,)

    def examples(stored: np.ndarray) -> Tensor | Examples:
        return Mapped(stored, reading, paths) if paths else reading(stored)

    train, test = Split(examples(array)), None
    if x_test is not None:
        test_array, _ = _as_array(x_test, f"{name} (test)")
        if test_array.shape[1:] != array.shape[1:] or test_array.dtype != array.dtype:
            raise InputError(
                f"{name}: training examples are {array.dtype} {array.shape[1:]}, test examples are "
                f"{test_array.dtype} {test_array.shape[1:]}; give both in the same form"
            )
        _check_values(test_array, reading, f"{name} (test)")
        test = Split(examples(test_array))
    train, test, classes, names = _labelled(train, test, y, y_test, name)
    if test is None:
        train, test = split_by(train, options)
    if reading.kind == "image":
        # Grey pictures without a channel axis that are given colours need one; last is where pictures have it.
        layout = "HWC" if reading.layout == "HW" and reading.shape[0] > 1 else reading.layout
        spec = Spec("image", reading.shape, classes, names, layout, reading.dtype, reading.low, reading.high)
    else:
        train, test, spec = standardised(train, test, Spec("vector", reading.shape, classes, names, "D", reading.dtype))
    return Data(name, spec, train, test, tuple(notes), fingerprint(spec, [train, test]))


def raw(x: Any, spec: Spec) -> Tensor:
    """Arrays like the ones that gave `spec`, as raw values in model layout: what `to_model` takes.

    `x`: array or tensor, (examples, …) in the spec's layout or in model layout, and in the spec's range. The inverse of
    what `from_model` does to layout and dtype. Raises `InputError` for another shape, for values that are not finite or
    out of range, and for float images where the source has whole numbers, whose scale would be a guess.
    """
    array, _ = _as_array(x if isinstance(x, Tensor) else np.asarray(x), "x")
    own = _own_shape(spec)
    if array.shape[1:] not in (own, spec.shape):
        raise InputError(f"x has shape {array.shape}; give (examples, {', '.join(map(str, own))})")
    if spec.kind == "image" and array.dtype.kind == "f" and np.dtype(spec.dtype).kind != "f":
        raise InputError(
            f"x is {array.dtype.name} and the data is {spec.dtype} in [{spec.low:g}, {spec.high:g}]; "
            f"scale it to that range and convert it to {spec.dtype}"
        )
    layout = spec.layout if array.shape[1:] == own else "CHW"
    reading = Reading(layout, spec.dtype, spec.shape, spec.low, spec.high, _stored(_wide(array.dtype.name), spec.kind))
    _check_values(array, reading, "x")
    return reading(array)


def _own_shape(spec: Spec) -> tuple[int, ...]:
    """One example in the source's layout."""
    if spec.layout in ("CHW", "D"):
        return spec.shape
    channels, height, width = spec.shape
    return (height, width) if spec.layout == "HW" else (height, width, channels)


def split_by(split: Split, options: Options) -> tuple[Split, Split | None]:
    """(train, test) by `options.holdout` and `options.seed`."""
    kept, held = held_out(len(split), options.holdout, seed=options.seed)
    return (split, None) if held is None else (part(split, kept), part(split, held))


def part(split: Split, indices: Tensor) -> Split:
    """The examples of a split at `indices`."""
    return Split(
        take(split.x, indices),
        None if split.y is None else split.y[indices],
        None if split.factors is None else split.factors[indices],
        None if split.a is None else take(split.a, indices),
    )


def chunks(x: Any) -> Iterator[tuple[int, Any]]:
    """(index of the first example, some examples): an array, or examples, in pieces of bounded size."""
    count = max(1, _CHUNK_BYTES // max(1, 8 * math.prod(x.shape[1:])))
    for start in range(0, len(x), count):
        stop = min(start + count, len(x))
        yield start, x[start:stop] if isinstance(x, np.ndarray | Tensor) else x[torch.arange(start, stop)]


def _as_array(x: Any, name: str) -> tuple[np.ndarray, bool]:
    is_tensor = isinstance(x, Tensor)
    if is_tensor:
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    if x.dtype.kind not in "biuf" or (x.dtype.name not in DTYPES and x.dtype.name not in _WIDER):
        raise InputError(f"{name}: arrays of type {x.dtype} cannot be used; allowed: {', '.join(DTYPES)}")
    if 0 in x.shape:
        raise InputError(f"{name}: the array is empty, shape {x.shape}")
    if x.ndim < 2 or x.ndim > 4:
        raise InputError(
            f"{name}: shape {x.shape} is neither vectors (examples, features) nor images (examples, height, width), "
            "(examples, channels, height, width) or (examples, height, width, channels)"
        )
    return x, is_tensor


def _reading(
    array: np.ndarray,
    is_tensor: bool,
    name: str,
    options: Options,
    value_range: tuple[float, float] | None,
    notes: list[str],
) -> Reading:
    dtype = _wide(array.dtype.name)
    if array.ndim == 2:
        options.refuse("size", "channels", "value_range", because=f"{name} holds vectors, not images")
        return Reading("D", dtype, (array.shape[1],), stored=_stored(dtype, "vector"))
    layout = _layout(array.shape, is_tensor, name, options)
    channels, height, width = _in_model_layout(array.shape, layout)
    low, high = options.value_range or value_range or _default_range(dtype, name, array)
    shape = (options.channels or channels, *(options.size or (height, width)))
    if shape[0] != channels:
        if not {shape[0], channels} <= set(CHANNELS):
            raise InputError(f"{name}: {channels} channels cannot become {shape[0]}; allowed: 1, 3 and 4")
        notes.append(f"channels converted: {channels} → {shape[0]}")
    if shape[1:] != (height, width):
        notes.append(f"resized: {height}×{width} → {shape[1]}×{shape[2]}")
    return Reading(layout, dtype, shape, low, high, _stored(dtype, "image"))


def _wide(dtype: str) -> str:
    return _WIDER.get(dtype, dtype)


def _stored(dtype: str, kind: str) -> str:
    """The dtype in memory: torch has little arithmetic on uint16, and float64 is kept for vectors until their spread is
    known."""
    narrow = {"bool": "uint8", "uint16": "int32", "float16": "float32"}
    return narrow.get(dtype, "float32" if kind == "image" and dtype == "float64" else dtype)


def _layout(shape: tuple[int, ...], is_tensor: bool, name: str, options: Options) -> str:
    if len(shape) == 3:
        return "HW"
    allowed = {*CHANNELS, *([options.channels] if options.channels else [])}
    readings = [layout for layout, axis in (("CHW", 1), ("HWC", 3)) if shape[axis] in allowed]
    if not readings:
        raise InputError(
            f"{name}: shape {shape} has 1, 3 or 4 channels neither at axis 1 nor at axis 3; "
            "if one of them is the channels, say how many with --channels"
        )
    if len(readings) == 1 or is_tensor:
        # A torch tensor of images is (examples, channels, height, width) by convention.
        return readings[0]
    fits: list[Callable[[tuple[int, ...]], bool]] = [
        lambda one: options.channels in (None, one[0]),
        lambda one: options.size in (None, one[1:]),
    ]
    for fit in fits:
        kept = [layout for layout in readings if fit(_in_model_layout(shape, layout))]
        if len(kept) == 1:
            return kept[0]
    raise InputError(
        f"{name}: shape {shape} can be read as channels first ({shape[1]} channels, {shape[2]}×{shape[3]}) or channels "
        f"last ({shape[3]} channels, {shape[1]}×{shape[2]}); say which with --channels or --size, or pass a torch "
        "tensor, which is read channels first"
    )


def _in_model_layout(shape: tuple[int, ...], layout: str) -> tuple[int, int, int]:
    if layout == "HW":
        return 1, shape[1], shape[2]
    return (shape[1], shape[2], shape[3]) if layout == "CHW" else (shape[3], shape[1], shape[2])


def _default_range(dtype: str, name: str, array: np.ndarray) -> tuple[float, float]:
    known = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
    if dtype in known:
        return known[dtype]
    if np.dtype(dtype).kind == "f":
        return 0.0, 1.0
    low, high, _, _ = _extent(array)
    raise InputError(
        f"{name}: {array.dtype.name} images have no natural range, and these span [{low:g}, {high:g}]; "
        "say which values are black and white with --range LOW HIGH"
    )


def _extent(array: np.ndarray) -> tuple[float, float, int, int]:
    """(lowest, highest, number of values that are not finite, first example that holds one)."""
    low, high, bad, first = math.inf, -math.inf, 0, -1
    for start, chunk in chunks(array):
        finite = np.isfinite(chunk)
        if not finite.all():
            if bad == 0:
                first = start + int(np.argmin(finite.reshape(len(chunk), -1).all(axis=1)))
            bad += int(chunk.size - finite.sum())
            chunk = chunk[finite]
        if chunk.size:
            low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
    return low, high, bad, first


def _check_values(array: np.ndarray, reading: Reading, name: str) -> None:
    limits = np.iinfo(array.dtype) if array.dtype.kind in "iu" else None
    if array.dtype.kind == "b" or (limits and reading.low <= limits.min and limits.max <= reading.high):
        return
    low, high, bad, first = _extent(array)
    if bad:
        raise InputError(
            f"{name}: {bad} value{'s are' if bad > 1 else ' is'} NaN or infinite, the first in example {first} "
            "(counting from 0); remove or replace them"
        )
    # In the array's own precision: the float32 next to 0.1 is larger than 0.1, and still is what was meant.
    with np.errstate(over="ignore"):
        bounds = [array.dtype.type(v).item() if array.dtype.kind == "f" else v for v in (reading.low, reading.high)]
    if reading.kind == "image" and not bounds[0] <= low <= high <= bounds[1]:
        raise InputError(
            f"{name}: images must lie in [{reading.low:g}, {reading.high:g}], and these {array.dtype.name} values span "
            f"[{low:g}, {high:g}]; say which values are black and white with --range LOW HIGH"
        )
    if reading.kind == "vector" and max(-low, high) > float(np.finfo(np.float32).max):
        raise InputError(f"{name}: values span [{low:g}, {high:g}], beyond what float32 can hold; rescale them")


def _given_labels(labels: Any, own: Any, name: str, train: int, test: int, notes: list[str]) -> tuple[Any, Any]:
    """Labels given beside the source, for the training examples and then the test examples."""
    if isinstance(labels, str | Path):
        path = Path(os.path.expanduser(labels))
        if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
            raise InputError(f"{name}: labels {str(labels)!r} is not a file")
        labels = read_labels(path)
    if own is not None:
        notes.append("the source's own labels were replaced by the ones given")
    labels = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if labels.ndim == 0 or len(labels) != train + test:
        beside = f" ({train} to train on, then {test} to test on)" if test else ""
        raise InputError(f"{name}: {labels.size} labels for {train + test} examples{beside}; give one per example")
    return labels[:train], labels[train:] if test else None


def _labelled(
    train: Split, test: Split | None, y: Any, y_test: Any, name: str
) -> tuple[Split, Split | None, int | None, tuple[str, ...] | None]:
    """Splits with labels, numbered together so that a class has the same number in both."""
    if y is None and y_test is None:
        return train, test, None, None
    if y is None or (test is not None and y_test is None):
        raise InputError(f"{name}: only one of the two splits has labels; label both or neither")
    for part_name, split, labels in (("", train, y), (" (test)", test, y_test)):
        if split is not None and len(labels) != len(split):
            raise InputError(f"{name}{part_name}: {len(labels)} labels for {len(split)} examples; give one per example")
    if test is None:
        labels, classes, names = classes_of(y, where=name)
        return replace(train, y=labels), None, classes, names
    both = [value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value) for value in (y, y_test)]
    if (both[0].dtype.kind in "USO") != (both[1].dtype.kind in "USO") or both[0].ndim != both[1].ndim:
        raise InputError(f"{name}: training labels are {both[0].dtype}, test labels {both[1].dtype}; give one kind")
    labels, classes, names = classes_of(np.concatenate(both), where=name)
    return replace(train, y=labels[: len(train)]), replace(test, y=labels[len(train) :]), classes, names


def standardised(train: Split, test: Split | None, spec: Spec) -> tuple[Split, Split | None, Spec]:
    """The spec with per-feature mean and standard deviation of the training split (1 where a feature is constant)."""
    total = torch.zeros(spec.size, dtype=torch.float64)
    for _, x in chunks(train.x):
        total += x.double().sum(0)
    mean = total / len(train)
    total = torch.zeros_like(total)
    for _, x in chunks(train.x):
        total += (x.double() - mean).square().sum(0)
    std = (total / len(train)).sqrt()
    # The rounding of the mean leaves a constant column with a spread of about 1e-16 of its size, not exactly 0.
    std = torch.where(std <= 1e-12 * mean.abs(), torch.ones_like(std), std)
    spec = replace(spec, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    if beyond_float32(mean, std):
        return train, test, spec
    return _in_float32(train), None if test is None else _in_float32(test), spec


def _in_float32(split: Split) -> Split:
    x = split.x
    if isinstance(x, Tensor):
        return replace(split, x=x.float()) if x.dtype == torch.float64 else split
    return split


def held_in_memory(shape: Sequence[int], dtype: torch.dtype, options: Options) -> bool:
    """Whether a set is small enough to be held in memory."""
    return example_bytes(shape, dtype) <= options.memory_limit_bytes
