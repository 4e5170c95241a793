"""idx files, the format of MNIST and its relatives, gzipped or not."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from twofold.data.arrays import Options, data_from_arrays
from twofold.data.split import Data
from twofold.errors import InputError

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""The third byte of the header, and what each value is."""
_NAME = re.compile(r"(-|\.|_|^)(idx\d?(-ubyte)?)(\.gz)?$|\.idx(\.gz)?$", re.IGNORECASE)
_ROLES = ("train-images", "train-labels", "t10k-images", "t10k-labels")


def is_idx(path: Path) -> bool:
    """Whether the name is one that idx files have."""
    return _NAME.search(path.name) is not None


def load_idx(path: Path, options: Options) -> Data:
    """Examples from one idx file."""
    return data_from_arrays(path.name.split(".")[0], read_idx(path, options), options=options)


def load_idx_folder(path: Path, options: Options) -> Data | None:
    """A folder with MNIST's four files (or its two training files); None if there is no file of training images."""
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        # Other sets of the same form put their name in front, and say "test" for MNIST's "t10k".
        name = file.name.lower().replace("test-", "t10k-")
        role = next((role for role in _ROLES if role in name), None)
        if role is None or file.name.startswith(".") or not is_idx(file):
            continue
        if role in files and files[role].name != file.name.removesuffix(".gz"):
            raise InputError(f"{path.name}: {files[role].name} and {file.name} could both be {role}; keep one")
        files.setdefault(role, file)
    if "train-images" not in files:
        return None
    arrays = [read_idx(files[role], options) if role in files else None for role in _ROLES]
    if arrays[2] is None:
        arrays[3] = None
    return data_from_arrays(path.name, *arrays, options=options)


def read_idx(path: Path, options: Options) -> np.ndarray:
    """The array in an idx file. Raises `InputError` if it is not one, or if its length is not what it declares."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in DTYPES or not 1 <= head[3] <= 4:
                raise InputError(f"{path.name}: this is not an idx file")
            sizes = file.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise InputError(f"{path.name}: the file ends inside its header")
            shape = struct.unpack(f">{head[3]}I", sizes)
            dtype = np.dtype(DTYPES[head[2]])
            expected = math.prod(shape) * dtype.itemsize
            if expected > options.memory_limit_bytes:
                raise InputError(
                    f"{path.name}: declares {expected / 2**30:.1f} GiB, more than the limit of "
                    f"{options.memory_limit_bytes / 2**30:.1f} GiB for data held in memory; "
                    "save the examples as a .npy file, which is read from disk on access"
                )
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path.name}: cannot be read ({error})") from None
    if len(content) != expected:
        found = "more" if len(content) > expected else str(len(content))
        raise InputError(f"{path.name}: declares {expected} bytes of data (shape {shape}) and holds {found}")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))
