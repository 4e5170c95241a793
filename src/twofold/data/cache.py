"""Pictures decoded once: a file of pixels beside the pictures' names, read through a memory map."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twofold.data.split import Examples, example_bytes
from twofold.errors import InputError


@dataclass(eq=False)
class Decoded:
    """Examples that are decoded on their first access and read from a file ever after.

    The file has one place of fixed size for each example, and one byte that says whether it is filled: 0, or a checksum
    of its pixels, so that a place which a power cut left half written is decoded again. Written with plain writes, not
    through the map: a full disk is then an error that can be caught, after which nothing more is stored. Several
    processes may share a file: they write the same bytes.
    """

    examples: Examples
    path: Path
    full: bool = False
    """No more room: what is not stored yet is decoded every time."""
    _handle: int = field(default=-1, repr=False)
    _pixels: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8), repr=False)
    _marks: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8), repr=False)

    def __post_init__(self) -> None:
        count, size = len(self.examples), self._size
        total = count * (size + 1)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if os.fstat(self._handle).st_size != total:
                if shutil.disk_usage(self.path.parent).free < total:
                    os.close(self._handle)
                    self.path.unlink()
                    raise InputError(f"cache {self.path.parent} has no room for {total / 2**30:.1f} GiB of pixels")
                os.ftruncate(self._handle, 0)
                os.ftruncate(self._handle, total)
            mapped = np.frombuffer(mmap.mmap(self._handle, total, access=mmap.ACCESS_READ), np.uint8)
        except OSError as error:
            raise InputError(f"cache {self.path.parent} cannot be written ({error.strerror}); give another") from None
        self._marks, self._pixels = mapped[:count], mapped[count:].reshape(count, size)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @property
    def _size(self) -> int:
        return example_bytes(self.shape[1:], self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.examples.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.examples.dtype

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, indices: Tensor) -> Tensor:
        where = indices.numpy()
        stored, marks = self._pixels[where], self._marks[where]  # copies
        missing = [k for k in range(len(where)) if marks[k] == 0 or marks[k] != _mark(stored[k])]
        if missing:
            decoded = self.examples[indices[torch.tensor(missing)]].contiguous().numpy()
            stored[missing] = decoded.reshape(len(missing), -1).view(np.uint8)
            self._store(where[missing], stored[missing])
        own = np.dtype(str(self.dtype).removeprefix("torch."))
        return torch.from_numpy(stored.view(own)).reshape(len(where), *self.shape[1:])

    def _store(self, places: np.ndarray, pixels: np.ndarray) -> None:
        if self.full:
            return
        try:
            for place, row in zip(places.tolist(), pixels, strict=True):
                os.pwrite(self._handle, row.tobytes(), len(self) + place * self._size)
                os.pwrite(self._handle, bytes([_mark(row)]), place)
        except OSError:
            self.full = True

    def identity(self) -> bytes:
        return self.examples.identity()


def _mark(row: np.ndarray) -> int:
    """A checksum of a place's bytes, from 1 to 255."""
    return 1 + zlib.crc32(row.tobytes()) % 255


def decoded_once(examples: Examples, folder: str | os.PathLike[str] | None) -> Examples:
    """`examples`, stored in `folder` as they are decoded; as they are without a folder."""
    if folder is None:
        return examples
    key = hashlib.sha256(examples.identity() + f"{examples.shape} {examples.dtype}".encode()).hexdigest()[:32]
    return Decoded(examples, Path(os.path.expanduser(folder)) / f"{key}.pixels")
