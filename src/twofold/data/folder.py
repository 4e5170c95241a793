"""A folder of images → `Data`: which files are pictures, which folders are labels or splits, what they share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

from twofold.data.arrays import Options, held_in_memory, split_by
from twofold.data.cache import decoded_once
from twofold.data.images import CHANNELS
from twofold.data.labels import classes_of, read_labels
from twofold.data.picture import PixelFormat, Seen, Unreadable, decode, inspect
from twofold.data.split import Data, Examples, Split, fingerprint
from twofold.errors import InputError
from twofold.spec import Spec

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
TRAIN_FOLDERS = ("train",)
TEST_FOLDERS = ("test", "val")
_NAMED = 5
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Found:
    """One picture file."""

    path: Path
    name: str
    """Its path within the folder."""
    label: str | None
    seen: Seen | None = None
    within: str = ""
    """Its path within the split's folder."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Picture files, decoded on access by a few threads."""

    paths: tuple[Path, ...]
    format: PixelFormat
    digest: bytes
    """Hash of the files' names, sizes and times."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.paths), *self.format.shape)

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.format)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Tensor) -> Tensor:
        paths = [self.paths[i] for i in indices.tolist()]
        return decoded(paths, [f"{path}" for path in paths], self.format, what="file")

    def identity(self) -> bytes:
        return self.digest


def decoded(files: Sequence[Path | BinaryIO], names: Sequence[str], pixel_format: PixelFormat, *, what: str) -> Tensor:
    """The pictures' raw values, (pictures, channels, height, width). Raises `InputError` with the name of a `what`
    that cannot be decoded."""
    pictures = torch.empty((len(files), *pixel_format.shape), dtype=dtype_of(pixel_format))

    def fill(i: int) -> None:
        try:
            pictures[i] = torch.from_numpy(decode(files[i], pixel_format))
        except Unreadable as error:
            raise InputError(f"{names[i]}: {error}; remove the {what}") from None

    _in_threads(fill, range(len(files)))
    return pictures


def load_folder(root: Path, options: Options) -> Data:
    """The pictures in a folder.

    `train/` beside `test/` or `val/` are splits; below that, subfolders are labels if there are two or more.
    Pictures that cannot be read are left out with a note, or refused if `options.strict`. Raises `InputError` if there
    are no pictures, or if they differ in size and no size is given.
    """
    if options.channels not in (None, *CHANNELS):
        raise InputError(f"channels is {options.channels}; allowed for a folder of images: 1, 3 and 4")
    if options.value_range is not None:
        raise InputError("value_range cannot be used here: image files state their own range")
    notes: list[str] = []
    train, test = _found(root, notes)
    train, train_y = _with_given_labels(train, test, root, options)
    train, test = _inspected(train, test, root, options, notes)
    pixel_format = common_format([*train, *(test or [])], root, options, notes)
    shape = (len(train) + len(test or []), *pixel_format.shape)
    hold = held_in_memory(shape, dtype_of(pixel_format), options)
    examples: Tensor | Examples
    test_examples: Tensor | Examples | None
    if hold:
        train, test, examples, test_examples = _decoded(train, test, root, pixel_format, options, notes)
    else:
        notes.append("too large to hold in memory: decoded on access")
        examples = decoded_once(on_access(train, root, pixel_format), options.cache)
        test_examples = None if test is None else decoded_once(on_access(test, root, pixel_format), options.cache)
    y, classes, names = _labels([*train, *(test or [])], root, numbered=train_y)
    train_split = Split(examples, None if y is None else y[: len(train)])
    test_split = None
    if test is not None and test_examples is not None:
        test_split = Split(test_examples, None if y is None else y[len(train) :])
    else:
        train_split, test_split = split_by(train_split, options)
    spec = replace(spec_of(pixel_format), classes=classes, class_names=names)
    name = root.resolve().name or "folder"
    return Data(name, spec, train_split, test_split, tuple(notes), fingerprint(spec, [train_split, test_split]))


def dtype_of(pixel_format: PixelFormat) -> torch.dtype:
    """What pictures in this format are stored as."""
    return torch.int32 if pixel_format.sixteen_bit else torch.uint8


def spec_of(pixel_format: PixelFormat) -> Spec:
    """The Spec of pictures in this format, without labels."""
    return Spec(
        "image",
        pixel_format.shape,
        None,
        None,
        "HW" if pixel_format.channels == 1 else "HWC",
        "uint16" if pixel_format.sixteen_bit else "uint8",
        0.0,
        65535.0 if pixel_format.sixteen_bit else 255.0,
    )


def split_folders(root: Path, notes: list[str] | None = None) -> tuple[Path, Path | None]:
    """The folders of the training and of the test split; the folder itself and None if it has no splits."""
    folders = {entry.name.lower(): entry for entry in sorted(root.iterdir()) if entry.is_dir() and _visible(entry.name)}
    train = next((folders[name] for name in TRAIN_FOLDERS if name in folders), None)
    tests = [folders[name] for name in TEST_FOLDERS if name in folders]
    if train is None or not tests:
        return root, None
    unused = sorted(entry.name for entry in folders.values() if entry not in (train, tests[0]))
    if unused and notes is not None:
        notes.append(f"{train.name}/ and {tests[0].name}/ are the splits; not used: {', '.join(unused[:_NAMED])}")
    return train, tests[0]


def _found(root: Path, notes: list[str]) -> tuple[list[Found], list[Found] | None]:
    """The picture files of the training split and of the test split, if the folder has one."""
    train, test = split_folders(root, notes)
    pictures = _pictures(train, root, notes)
    if test is None:
        return _where_classes_differ(pictures, notes), None
    count = len(pictures)
    pictures = _where_classes_differ([*pictures, *_pictures(test, root, notes)], notes)
    return pictures[:count], pictures[count:]


def _where_classes_differ(found: list[Found], notes: list[str]) -> list[Found]:
    """The same pictures, without labels if there is only one: a single folder says nothing."""
    labels = {f.label for f in found}
    if len(labels) > 1 or None in labels:
        return found
    notes.append(f"one subfolder ({found[0].label}): not taken as a label")
    return [replace(f, label=None) for f in found]


def _pictures(folder: Path, root: Path, notes: list[str]) -> list[Found]:
    """Every picture below `folder` in the order of its name, labelled by the subfolder it is in."""
    found = pictures_in(folder, root, notes)
    inner = [Path(f.within) for f in found]
    labels = sorted({path.parts[0] for path in inner if len(path.parts) > 1})
    loose = [path for path in inner if len(path.parts) == 1]
    if labels and loose:
        where = folder.name if folder == root else folder.relative_to(root).as_posix()
        raise InputError(
            f"{where}: {len(loose)} images, such as {loose[0].name}, lie beside the subfolders {some(labels)}; "
            "put every image in a subfolder (its label), or none"
        )
    return [replace(f, label=path.parts[0] if labels else None) for f, path in zip(found, inner, strict=True)]


def pictures_in(folder: Path, root: Path, notes: list[str]) -> list[Found]:
    """Every picture below `folder` in the order of its name, without labels. Other files are noted."""
    files: list[Path] = []
    others: list[Path] = []
    for path in _walk(folder):
        (files if path.suffix.lower() in EXTENSIONS else others).append(path)
    where = folder.name if folder == root else folder.relative_to(root).as_posix()
    if not files:
        found = f"{len(others)} other files, such as {others[0].name}" if others else "nothing"
        raise InputError(f"{where}: no images in this folder, but {found}; give {', '.join(EXTENSIONS)}")
    if others:
        notes.append(
            f"{len(others)} other file{'s' * (len(others) > 1)} ignored in {where}: {some(p.name for p in others)}"
        )
    return [
        Found(path, path.relative_to(root).as_posix(), None, within=path.relative_to(folder).as_posix())
        for path in files
    ]


def _walk(folder: Path) -> list[Path]:
    """Every visible file below `folder`, in the order of its path. Links to folders are followed once."""
    files, visited = [], set()
    for directory, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if _visible(name))
        files += [Path(directory, name) for name in names if _visible(name)]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def _visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


def _with_given_labels(
    train: list[Found], test: list[Found] | None, root: Path, options: Options
) -> tuple[list[Found], bool]:
    """Pictures with labels given beside the folder, one per file in the order of the names, training files first."""
    if options.labels is None:
        return train, False
    if test is not None:
        raise InputError(f"{root.name}: labels beside a folder with splits are not supported; use class subfolders")
    labels = options.labels
    if isinstance(labels, str | Path):
        path = Path(os.path.expanduser(labels))
        if not os.path.isfile(path):
            raise InputError(f"{root.name}: labels {str(labels)!r} is not a file")
        labels = read_labels(path)
    labels = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if len(labels) != len(train):
        raise InputError(f"{root.name}: {len(labels)} labels for {len(train)} image files; give one per file, by name")
    # Checked before any file is left out, so that a message counts as the person does.
    numbers, _, names = classes_of(labels, where=root.name)
    values = [names[i] for i in numbers.tolist()] if names else [str(i) for i in numbers.tolist()]
    return [Found(f.path, f.name, value) for f, value in zip(train, values, strict=True)], names is None


def _inspected(
    train: list[Found], test: list[Found] | None, root: Path, options: Options, notes: list[str]
) -> tuple[list[Found], list[Found] | None]:
    """The files whose header can be read, with what it says."""
    good = inspected([*train, *(test or [])], root, options, notes)
    names = {f.name for f in good}
    kept_train = sum(f.name in names for f in train)
    return _split_again(good, kept_train, test is not None, root)


def inspected(found: list[Found], root: Path, options: Options, notes: list[str]) -> list[Found]:
    """The files whose header can be read, with what it says. The others are noted, or refused if `strict`."""

    def look(one: Found) -> Seen | Unreadable:
        try:
            return inspect(one.path)
        except Unreadable as error:
            return error

    results = _in_threads(look, found)
    bad = {f.name: str(r) for f, r in zip(found, results, strict=True) if isinstance(r, Unreadable)}
    report_bad(bad, len(found), root, options, notes)
    return [replace(f, seen=r) for f, r in zip(found, results, strict=True) if isinstance(r, Seen)]


def _split_again(good: list[Found], train: int, has_test: bool, root: Path) -> tuple[list[Found], list[Found] | None]:
    if train == 0 or (has_test and len(good) == train):
        raise InputError(f"{root.name}: no image in the {'test' if train else 'training'} split can be read")
    return good[:train], good[train:] if has_test else None


def report_bad(bad: dict[str, str], total: int, root: Path, options: Options, notes: list[str]) -> None:
    """Note the pictures that are left out, {name: reason}; raise `InputError` if `strict`, or if they are all."""
    if not bad:
        return
    name, reason = next(iter(bad.items()))
    if options.strict:
        raise InputError(f"{root.name}: {name} cannot be used ({reason}); {len(bad)} of {total} files in all")
    if len(bad) == total:
        raise InputError(f"{root.name}: none of the {total} image files can be used; {name}: {reason}")
    shown = some(f"{name} ({reason})" for name, reason in bad.items())
    notes.append(f"{len(bad)} of {total} image files left out: {shown}")


def common_format(found: Sequence[Found], root: Path, options: Options, notes: list[str]) -> PixelFormat:
    """What all the pictures are brought to: never fewer channels or bits than any of them has, unless asked."""
    kinds = {f.seen.kind: f for f in reversed(found) if f.seen is not None}
    natural = 4 if set(kinds) == {"alpha"} else 3 if {"color", "alpha"} & set(kinds) else 1
    channels = options.channels or natural
    if len(kinds) > 1:
        shown = ", ".join(f"{kind} ({kinds[kind].name})" for kind in sorted(kinds))
        notes.append(f"kinds of image: {shown}; all brought to {channels} channel{'s' * (channels > 1)}")
    if "alpha" in kinds and channels < 4:
        notes.append("transparent parts are laid on white")
    sixteen_bit = channels == 1 and "grey16" in kinds
    if "grey16" in kinds and not sixteen_bit:
        notes.append("16-bit values are rounded to 8 bits")
    if sixteen_bit and len(kinds) > 1:
        notes.append("8-bit values are scaled to 16 bits")
    return PixelFormat(channels, *_common_size(found, root, options, notes), sixteen_bit)


def _common_size(found: Sequence[Found], root: Path, options: Options, notes: list[str]) -> tuple[int, int]:
    sizes: dict[tuple[int, int], str] = {}
    for f in found:
        if f.seen is not None:
            sizes.setdefault((f.seen.height, f.seen.width), f.name)
    if options.size is not None:
        if set(sizes) != {options.size}:
            many = f"{len(sizes)} sizes" if len(sizes) > 1 else "{}×{}".format(*next(iter(sizes)))
            notes.append(f"resized: {many} → {options.size[0]}×{options.size[1]}")
        return options.size
    if len(sizes) > 1:
        (a, a_name), (b, b_name) = list(sizes.items())[:2]
        raise InputError(
            f"{root.name}: images differ in size: {a_name} is {a[0]}×{a[1]}, {b_name} is {b[0]}×{b[1]} "
            "(height×width); bring them to one with --size"
        )
    return next(iter(sizes))


def _decoded(
    train: list[Found],
    test: list[Found] | None,
    root: Path,
    pixel_format: PixelFormat,
    options: Options,
    notes: list[str],
) -> tuple[list[Found], list[Found] | None, Tensor, Tensor | None]:
    """Every picture in memory. A file may break only here: its header was whole, its pixels are not."""
    everything = [*train, *(test or [])]
    dtype = dtype_of(pixel_format)
    pixels = torch.empty((len(everything), *pixel_format.shape), dtype=dtype)

    def fill(i: int) -> str | None:
        try:
            pixels[i] = torch.from_numpy(decode(everything[i].path, pixel_format))
        except Unreadable as error:
            return str(error)
        return None

    reasons = _in_threads(fill, range(len(everything)))
    bad = {f.name: reason for f, reason in zip(everything, reasons, strict=True) if reason is not None}
    report_bad(bad, len(everything), root, options, notes)
    if bad:
        good = [i for i, reason in enumerate(reasons) if reason is None]
        kept_train = sum(i < len(train) for i in good)
        train, test = _split_again([everything[i] for i in good], kept_train, test is not None, root)
        pixels = pixels[torch.tensor(good)]
    return train, test, pixels[: len(train)], None if test is None else pixels[len(train) :]


def on_access(found: Sequence[Found], root: Path, pixel_format: PixelFormat) -> Pictures:
    """The files' pictures, decoded when they are asked for."""
    digest = hashlib.sha256()
    for f in found:
        status = f.path.stat()
        digest.update(f"{f.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return Pictures(tuple(f.path for f in found), pixel_format, digest.digest())


def _labels(
    found: Sequence[Found], root: Path, *, numbered: bool
) -> tuple[Tensor | None, int | None, tuple[str, ...] | None]:
    labels = [f.label for f in found]
    if all(label is None for label in labels):
        return None, None, None
    if any(label is None for label in labels):
        raise InputError(f"{root.name}: one split has class subfolders and the other has not; give both or neither")
    values: Any = [int(str(label)) for label in labels] if numbered else labels
    return classes_of(values, where=root.name)


def some(names: Iterable[str]) -> str:
    """The first few of the names."""
    names = list(names)
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")


def _in_threads(work: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out]:
    # Pillow lets go of the interpreter while it decodes and resizes.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1, max(1, len(items)))) as pool:
        return list(pool.map(work, items))
