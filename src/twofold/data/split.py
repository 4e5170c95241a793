"""What a loaded source is: splits of examples, and the record that says what they are.

Examples are a tensor where they fit in memory; otherwise an object that decodes or draws them when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from twofold.errors import InputError
from twofold.spec import Spec

MEMORY_LIMIT_BYTES = 2 * 2**30
"""Sets larger than this are decoded on access instead of being held in memory."""


class Examples(Protocol):
    """Examples made on access: `examples[indices]` gives raw values in model layout, like indexing a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> Tensor: ...

    def identity(self) -> bytes:
        """Bytes that change when the examples change, and are the same in every process."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a source: what is trained on, or what is kept for evaluation."""

    x: Tensor | Examples
    """Raw values, (examples, channels, height, width) or (examples, features), in the stored dtype: uint8 as it is,
    16-bit as int32, floats as float32 (float64 where a feature's mean dwarfs its spread). Index it with an int64
    tensor on the CPU; `to_model` turns the result into what models see."""
    y: Tensor | None = None
    """Labels, (examples,) int64, or None."""
    factors: Tensor | None = None
    """Known generative factors, (examples, factors) float32, or None."""
    a: Tensor | Examples | None = None
    """The other side of pairs, raw values like `x`: one for each x if the spec says `paired`, otherwise any number."""

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False)
class Data:
    """A loaded source."""

    name: str
    """The built-in's name, or the name of the file or folder."""
    spec: Spec
    """What one example looks like, to models and in the source."""
    train: Split
    test: Split | None
    """Examples never trained on, or None if none were held out."""
    notes: tuple[str, ...]
    """What a person should know about the reading: files skipped, conversions made."""
    fingerprint: str
    """SHA-256 (hex) over the spec and the content; over names, sizes and times for sets too large to hold."""
    modes: Tensor | None = None
    """Centres of a mixture, (modes, features) float32."""
    mode_std: float | None = None
    """Standard deviation of each mixture component, in data units."""


@dataclass(frozen=True, eq=False)
class Subset:
    """Some of the examples of a set that is made on access."""

    examples: Examples
    indices: Tensor
    """Which, (n,) int64."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.indices), *self.examples.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.examples.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.examples[self.indices[indices]]

    def identity(self) -> bytes:
        return self.examples.identity() + tensor_bytes(self.indices)


def take(x: Tensor | Examples, indices: Tensor) -> Tensor | Examples:
    """The examples at `indices`: a copy of a tensor, a view of anything made on access."""
    return x[indices] if isinstance(x, Tensor) else Subset(x, indices)


def held_out(examples: int, fraction: float, *, seed: int) -> tuple[Tensor, Tensor | None]:
    """Indices (train, test) of a seeded random split, both in ascending order; test is None if `fraction` is 0.

    At least one example is held out otherwise. Raises `InputError` if nothing would be left to train on.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"holdout is {fraction}; give the fraction of examples to keep for testing, from 0 to below 1")
    if fraction == 0:
        return torch.arange(examples), None
    count = max(1, round(examples * fraction))
    if count >= examples:
        raise InputError(
            f"holding out {fraction:g} of {examples} example{'s' * (examples != 1)} leaves nothing to train on; "
            "use holdout 0"
        )
    # RandomState's streams are frozen by numpy's policy: the same split with every version.
    order = np.random.RandomState(seed).permutation(examples)
    return torch.from_numpy(np.sort(order[count:])), torch.from_numpy(np.sort(order[:count]))


def fingerprint(spec: Spec, splits: Sequence[Split | None]) -> str:
    """SHA-256 (hex) of the spec and of everything in the splits."""
    digest = hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True).encode())
    for split in splits:
        parts: list[Tensor | Examples | None] = [None, None, None]
        if split is not None:
            parts = [split.x, split.y, split.factors, *([] if split.a is None else [split.a])]
        for part in parts:
            if isinstance(part, Tensor):
                digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
                # Hashed in place: a copy of the bytes would double the memory of a set that only just fits.
                digest.update(part.contiguous().numpy().reshape(-1).view(np.uint8).data)
            else:
                digest.update(b"none" if part is None else part.identity())
    return digest.hexdigest()


def tensor_bytes(x: Tensor) -> bytes:
    """The values of `x` as bytes."""
    return x.contiguous().numpy().tobytes()


def example_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a set of examples when it is held in memory."""
    return math.prod(shape) * dtype.itemsize
