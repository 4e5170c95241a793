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
    palette: tuple[tuple[int, int, int], ...] | None = None
    """For label maps: the colour of each class, 0 to 255, as it stands in the RGB images that models see."""

    # Pairs.
    input: Spec | None = None
    """What the other side of a pair looks like: the batch's "a", which translation starts from. This Spec then
    describes its "x", which translation makes. None: the data is not pairs."""
    paired: bool = True
    """Whether "a" and "x" of one number belong together. False: two sets without correspondence, drawn apart."""

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
        self._check_palette()
        self._check_pair()

    def _check_palette(self) -> None:
        colours = self.palette or ()
        whole = all(len(c) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in c) for c in colours)
        if self.palette is not None and (self.shape[0] != 3 or not 1 <= len(colours) <= 256 or not whole):
            raise InputError("spec.palette needs 1 to 256 colours of three whole numbers 0 to 255, for RGB images")

    def _check_pair(self) -> None:
        if self.input is None:
            if not self.paired:
                raise InputError("spec.paired is false, but spec.input is none: there is no other side")
            return
        if self.input.input is not None or self.input.kind != self.kind:
            raise InputError("spec.input must be a spec of the same kind, itself without input")
        if self.kind == "image" and self.input.shape[1:] != self.shape[1:]:
            raise InputError(
                f"the two sides of a pair have {self.input.shape[1:]} and {self.shape[1:]} pixels; "
                "bring them to one size"
            )

    @property
    def data_kind(self) -> str:
        """ "image", "vector", "image-pair" or "vector-pair": what a recipe says it takes."""
        return self.kind if self.input is None else f"{self.kind}-pair"

    @property
    def size(self) -> int:
        """Number of values in one example."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` reads back."""
        record = {k: _lists(v) for k, v in asdict(self).items() if k not in ("input", "paired", "palette")}
        # Left out where there is nothing to say, so that the record of data without pairs is what it always was.
        if self.palette is not None:
            record["palette"] = _lists(self.palette)
        if self.input is not None:
            record |= {"input": self.input.to_json(), "paired": self.paired}
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Spec:
        """The Spec written by `to_json`. Raises `InputError` for anything else."""
        known = {f.name for f in fields(cls)}
        if not isinstance(record, Mapping) or set(record) - known or not {"kind", "shape"} <= set(record):
            raise InputError(f"this is not a spec: expected a record with {sorted(known)}")
        values: dict[str, Any] = {k: _tuples(v) for k, v in record.items()}
        if values.get("input") is not None:
            values["input"] = cls.from_json(values["input"])
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"this is not a spec: {error}") from None


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
