"""Spec: what data looks like, to the models and to the person it came from. Imports no other part of Twofold
except its error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from twofold.errors import InputError

KINDS = ("image", "vector")
LAYOUTS = {"image": ("CHW", "HWC", "HW"), "vector": ("D",)}
DTYPES = ("bool", "uint8", "uint16", "int32", "int64", "float16", "float32", "float64")


@dataclass(frozen=True)
class Spec:
    """What one example looks like.

    Models see images as float tensors (channels, height, width) in [-1, 1] and vectors as float tensors (features,),
    standardised if `mean` and `std` are given. The fields under "the source" say how the user's own arrays are laid
    out, so that samples can be handed back the way the data came.

    Raises `InputError` if a field is outside its range, so that a Spec read from a file is safe to build networks from.
    """

    kind: str
    """"image" or "vector"."""
    shape: tuple[int, ...]
    """(channels, height, width) or (features,)."""
    classes: int | None = None
    """Number of labels; labels are 0 … classes - 1. None: the data has no labels."""
    class_names: tuple[str, ...] | None = None
    """One name per label, where the source has names."""

    # The source.
    layout: str = "CHW"
    """"CHW", "HWC" or "HW" (images), "D" (vectors): the axes of one example in the user's arrays."""
    dtype: str = "uint8"
    """The user's dtype."""
    low: float = 0.0
    """The source value that models see as -1 (images only)."""
    high: float = 255.0
    """The source value that models see as +1 (images only)."""
    mean: tuple[float, ...] | None = None
    """Per-feature mean subtracted before training (vectors only)."""
    std: tuple[float, ...] | None = None
    """Per-feature standard deviation divided by before training (vectors only)."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"spec.kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        if self.layout not in LAYOUTS[self.kind]:
            raise InputError(f"spec.layout is {self.layout!r}; allowed for {self.kind}: {LAYOUTS[self.kind]}")
        if self.dtype not in DTYPES:
            raise InputError(f"spec.dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        if len(self.shape) != (3 if self.kind == "image" else 1):
            wanted = "(channels, height, width)" if self.kind == "image" else "(features,)"
            raise InputError(f"spec.shape is {self.shape}; give {wanted} for kind {self.kind!r}")
        if not all(isinstance(n, int) and 1 <= n <= 2**20 for n in self.shape) or math.prod(self.shape) > 2**28:
            raise InputError(f"spec.shape is {self.shape}; allowed: whole numbers 1 to 2^20, 2^28 values in all")
        if self.classes is not None and not (isinstance(self.classes, int) and 1 <= self.classes <= 2**20):
            raise InputError(f"spec.classes is {self.classes}; allowed: 1 to 2^20, or none")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise InputError(f"spec.class_names has {len(self.class_names)} names for {self.classes} classes")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(f"spec.low, spec.high are {self.low}, {self.high}; give two finite numbers, low < high")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and (len(values) != self.shape[0] or not all(math.isfinite(v) for v in values)):
                raise InputError(f"spec.{name} needs {self.shape[0]} finite numbers")

    @property
    def size(self) -> int:
        """Number of values in one example."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` reads back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Spec:
        """The Spec written by `to_json`. Raises `InputError` for anything else."""
        known = {f.name for f in fields(cls)}
        if not isinstance(record, Mapping) or set(record) - known or not {"kind", "shape"} <= set(record):
            raise InputError(f"this is not a spec: expected a record with {sorted(known)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"this is not a spec: {error}") from None
