"""`load`: from whatever names or holds the data to `Data`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from twofold.data.arrays import Options, data_from_arrays
from twofold.data.catalogue import HUB, is_built_in, sources
from twofold.data.classes import keep_classes
from twofold.data.pairs import arranged, load_pair_folders, load_side_by_side
from twofold.data.split import MEMORY_LIMIT_BYTES, Data
from twofold.errors import InputError, unknown

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")
_READ = "a folder of images, .npz, .npy, idx, .csv, .parquet or .arrow"


def load(
    source: Any,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    value_range: tuple[float, float] | None = None,
    labels: Any = None,
    strict: bool = False,
    holdout: float = 0.1,
    classes: Sequence[int | str] | None = None,
    seed: int = 0,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    cache: str | os.PathLike[str] | None = None,
    pairs: tuple[str, str] | None = None,
    side_by_side: bool = False,
    unpaired: bool = False,
    swap: bool = False,
    column: str | None = None,
) -> Data:
    """Any source of images or vectors.

    `source` is the name of a built-in (`sources()`); the path of a folder of images, of an .npz, .npy, .csv, .parquet,
    .arrow or idx file, of a folder of idx, parquet or arrow files, or of what the `datasets` library saved to disk;
    `hub:NAME` of a set of the Hugging Face hub; an array or tensor, a pair (x, y) of them, or a map-style torch
    `Dataset`. `Data` is given back as it is. A built-in's name goes before a path; write `./digits` for a folder of
    that name.

    size: pixels, one number or (height, width): pictures are resized to cover it and their centre is kept.
    channels: 1 (grey), 3 (RGB) or 4 (RGB with opacity): pictures are converted.
    value_range: the values that are black and white in arrays of images. Default: [0, 1] for floats, the whole range
        of 8- and 16-bit numbers; other whole numbers have none and need it.
    column: of a hub set or parquet file, the one that holds the examples; found where only one can be meant.
    labels: one label per example: an array, the path of a .npy, .txt or .csv file, a key of the .npz file, or a column
        of the CSV file or of the hub set.
    strict: refuse a folder with unreadable images instead of leaving those out.
    holdout: fraction of the examples kept as the test split where the source has none of its own; 0 for no test split.
    classes: keep the examples of these classes only, by number or name; the others are in neither split.
    seed: of that split, and of nothing else.
    memory_limit_bytes: folders and .npy files larger than this when decoded are read on access.
    cache: a folder in which the pixels of such a folder of images are kept once they were decoded.
    pairs: (input, target): the names of a folder's two subfolders, matched by the names of their files, or of two
        arrays in an .npz file.
    side_by_side: each picture of the folder is a pair, its left half the input and its right half the target.
    unpaired: the two sides are sets without correspondence.
    swap: exchange input and target.

    Images are (examples, height, width) or with a channel axis, first or last; (examples, features) are vectors, which
    models see standardised by the mean and standard deviation of the training split. Nothing is unpickled.

    Raises `InputError`, one line, for anything that cannot be used.

    >>> data = load(np.zeros((20, 28, 28), dtype=np.uint8))
    >>> data.spec.shape, len(data.train), len(data.test)
    ((1, 28, 28), 18, 2)
    """
    options = Options(
        *(_size(size), _channels(channels), _range(value_range), labels, strict, holdout, seed, memory_limit_bytes),
        cache=cache,
        pairs=_sides(pairs),
        side_by_side=side_by_side,
        unpaired=unpaired,
        column=column,
    )
    _check_split(holdout, seed)
    if pairs is not None and side_by_side:
        raise InputError("pairs and side_by_side say two things about where the sides are; give one of them")
    data = _loaded(source, options)
    if data.spec.input is None and (pairs is not None or side_by_side):
        word = "pairs" if pairs is not None else "side_by_side"
        raise InputError(f"{word} cannot be used here: {data.name} is no folder of images and no .npz file")
    if column is not None and not _has_columns(source):
        raise InputError(f"column cannot be used here: {data.name} is no set of the hub and no parquet or arrow file")
    data = arranged(data, unpaired=unpaired, swap=swap)
    return data if classes is None else keep_classes(data, classes)


def _loaded(source: Any, options: Options) -> Data:
    if isinstance(source, Data):
        options.refuse("size", "channels", "value_range", "labels", because="the data is loaded already")
        return source
    if isinstance(source, str):
        return _named(source, options)
    if isinstance(source, Path):
        return _from_path(Path(os.path.expanduser(source)), options)
    if isinstance(source, tuple):
        return _pair(source, options)
    if isinstance(source, Tensor | np.ndarray):
        return data_from_arrays("array", source, options=options)
    if isinstance(source, Dataset):
        from twofold.data.items import load_items

        return load_items(source, options)
    raise InputError(
        f"data from a {type(source).__name__} cannot be loaded; give a built-in's name, a path, an array, a tensor, "
        "a pair (x, y) or a map-style torch Dataset"
    )


def _named(source: str, options: Options) -> Data:
    built_in = _built_in(source)
    if built_in is not None:
        return built_in(options)
    if source.startswith(HUB):
        from twofold.data.hub import load_hub

        return load_hub(source, options)
    if source and os.path.exists(path := os.path.expanduser(source)):
        return _from_path(Path(path), options)
    error = unknown("data source", source, [known.name for known in sources()])
    raise InputError(f"{error}; and there is no file or folder of that name")


def _has_columns(source: Any) -> bool:
    if isinstance(source, str) and source.startswith(HUB):
        return True
    if not isinstance(source, str | Path) or (isinstance(source, str) and is_built_in(source)):
        return False
    from twofold.data.hub import SUFFIXES, is_saved

    path = Path(os.path.expanduser(source))
    return path.suffix.lower() in SUFFIXES or (path.is_dir() and is_saved(path))


def _built_in(name: str) -> Callable[[Options], Data] | None:
    if not is_built_in(name):
        return None
    from twofold.data import digits, domains, gaussians, shapes

    return {
        "digits": digits.load_digits,
        "color-digits": digits.load_color_digits,
        "shapes": lambda options: shapes.load_shapes("shapes", 64, options),
        "shapes-32": lambda options: shapes.load_shapes("shapes-32", 32, options),
        "gaussians-8": gaussians.load_ring,
        "gaussians-25": gaussians.load_grid,
        "edges-shapes": domains.load_edges_to_shapes,
        "digits-color-digits": domains.load_digits_to_color,
        "affine-2d": domains.load_affine,
        "two-modes": domains.load_two_modes,
    }[name]


def _from_path(path: Path, options: Options) -> Data:
    if not os.path.exists(path):
        raise InputError(f"there is no file or folder {str(path)!r}")
    try:
        return _from_folder(path, options) if path.is_dir() else _from_file(path, options)
    except PermissionError as error:
        raise InputError(f"{error.filename or path}: no permission to read it") from None


def _from_folder(path: Path, options: Options) -> Data:
    from twofold.data.folder import load_folder
    from twofold.data.hub import is_saved, load_hub
    from twofold.data.idx import load_idx_folder

    if not any(path.iterdir()):
        raise InputError(f"the folder {path.resolve().name} is empty")
    if options.pairs is not None:
        return load_pair_folders(path, options)
    if options.side_by_side:
        return load_side_by_side(path, options)
    if is_saved(path):
        return load_hub(path, options)
    return load_idx_folder(path, options) or load_folder(path, options)


def _from_file(path: Path, options: Options) -> Data:
    from twofold.data import hub, idx, numpy_files, table
    from twofold.data.folder import EXTENSIONS

    suffix = path.suffix.lower()
    if suffix == ".npz":
        return numpy_files.load_npz(path, options)
    if suffix == ".npy":
        return numpy_files.load_npy(path, options)
    if suffix in (".csv", ".tsv"):
        return table.load_table(path, options)
    if suffix in hub.SUFFIXES:
        return hub.load_hub(path, options)
    if idx.is_idx(path):
        return idx.load_idx(path, options)
    if suffix in _ARCHIVES:
        raise InputError(f"{path.name} is an archive; unpack it and give the folder")
    if suffix in EXTENSIONS:
        raise InputError(f"{path.name} is one image; give the folder it is in")
    if suffix in _PICKLES:
        raise InputError(
            f"{path.name}: pickled files are never loaded, because reading them can run code; give {_READ}"
        )
    raise InputError(f"{path.name}: cannot read {suffix or 'a file without an extension'}; give {_READ}")


def _pair(source: tuple[Any, ...], options: Options) -> Data:
    if len(source) != 2 or not isinstance(source[0], Tensor | np.ndarray):
        raise InputError("a tuple of data must be (x, y): an array or tensor of examples, and one label per example")
    options.refuse("labels", because="the pair (x, y) has its own")
    return data_from_arrays("array", source[0], source[1], options=options)


def _size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and 1 <= n <= 2**13 for n in pair):
        raise InputError(f"size is {size}; give one whole number or (height, width), from 1 to 8192 pixels")
    return pair


def _sides(pairs: tuple[str, str] | None) -> tuple[str, str] | None:
    if pairs is None:
        return None
    names = tuple(pairs)
    if len(names) != 2 or not all(isinstance(name, str) and name for name in names) or names[0] == names[1]:
        raise InputError(f"pairs is {pairs!r}; give the names of two different sides, input and target")
    return names[0], names[1]


def _channels(channels: int | None) -> int | None:
    if channels is not None and not (isinstance(channels, int) and 1 <= channels <= 2**10):
        raise InputError(f"channels is {channels}; give 1, 3 or 4")
    return channels


def _range(value_range: tuple[float, float] | None) -> tuple[float, float] | None:
    if value_range is None:
        return None
    pair = tuple(float(value) for value in value_range)
    if len(pair) != 2 or not all(math.isfinite(value) for value in pair) or not pair[0] < pair[1]:
        raise InputError(f"value_range is {value_range}; give (low, high), two finite numbers, low < high")
    return pair[0], pair[1]


def _check_split(holdout: float, seed: int) -> None:
    if not 0 <= holdout < 1:
        raise InputError(f"holdout is {holdout}; give the fraction of examples to keep for testing, from 0 to below 1")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}; give a whole number from 0 to 2^32 - 1")
