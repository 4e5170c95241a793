"""Between the source's values and the values that models see, both ways."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from twofold.errors import InputError
from twofold.spec import Spec

# Where a feature's mean is this many standard deviations from 0, float32 no longer resolves its spread to a thousandth.
LARGE_OFFSET = 1e4
SMALL_SPREAD = 1e-30
_FLOAT32_WHOLE = 2**24


def to_model(x_raw: Tensor, spec: Spec) -> Tensor:
    """Raw values as models see them: float32, on the same device.

    Images (batch, channels, height, width) go linearly from [spec.low, spec.high] to [-1, 1], with the two ends mapped
    exactly; vectors (batch, features) are standardised if the spec has a mean and a standard deviation.

    >>> spec = Spec(kind="image", shape=(1, 1, 2))
    >>> to_model(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), spec).flatten().tolist()
    [-1.0, 1.0]
    """
    if spec.kind == "image":
        x = x_raw.double() if _needs_double(x_raw, max(abs(spec.low), abs(spec.high))) else x_raw.float()
        # One rounding only: the numerator is exact for whole numbers.
        return ((2 * x - (spec.low + spec.high)) / (spec.high - spec.low)).float()
    if spec.mean is None or spec.std is None:
        return x_raw.float()
    mean, std = _standard(spec.mean, spec.std, x_raw.device)
    return ((x_raw.to(mean.dtype) - mean) / std).float()


def from_model(x: Tensor, spec: Spec) -> np.ndarray:
    """Model values as the user's own arrays are: their layout, dtype and range.

    Images are clipped to the source's range, as nothing outside it is an image of that source; whole-number dtypes are
    rounded, and vectors of them clipped to the dtype's range. The inverse of `to_model`: exact for 8- and 16-bit data.

    Raises `InputError` if `x` does not have the spec's shape, or holds values that a whole-number dtype cannot (NaN,
    infinite).
    """
    if tuple(x.shape[1:]) != spec.shape or x.ndim != len(spec.shape) + 1:
        raise InputError(f"x has shape {tuple(x.shape)}; the spec's is (batch, {', '.join(map(str, spec.shape))})")
    values = x.detach().to(device="cpu", dtype=torch.float64).numpy()
    if spec.kind == "image":
        values = (values * (spec.high - spec.low) + (spec.low + spec.high)) / 2
    elif spec.mean is not None and spec.std is not None:
        values = values * np.asarray(spec.std) + np.asarray(spec.mean)
    return _in_layout(_in_dtype(values, spec), spec)


def beyond_float32(mean: Tensor, std: Tensor) -> bool:
    """True if float32 is too coarse, or too short of range, for features with this mean and standard deviation."""
    return bool(((mean.abs() > LARGE_OFFSET * std) | (std < SMALL_SPREAD)).any())


def _needs_double(x: Tensor, largest: float) -> bool:
    return x.dtype == torch.float64 or (not x.dtype.is_floating_point and largest > _FLOAT32_WHOLE)


# Constants of a spec, kept on the device: building them anew in every step would copy from the host every step.
@lru_cache(maxsize=16)
def _standard(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    exact_mean, exact_std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    dtype = torch.float64 if beyond_float32(exact_mean, exact_std) else torch.float32
    return exact_mean.to(dtype).to(device), exact_std.to(dtype).to(device)


def _in_dtype(values: np.ndarray, spec: Spec) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return (values.clip(spec.low, spec.high) if spec.kind == "image" else values).astype(dtype)
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise InputError(f"x holds {bad} NaN or infinite values, which {spec.dtype} data cannot hold")
    values = np.rint(values)
    if spec.kind == "image":
        values = values.clip(np.ceil(spec.low), np.floor(spec.high))
    if dtype.kind == "b":
        return values.clip(0, 1).astype(bool)
    limits = np.iinfo(dtype)
    # The largest int64 is no float64: clipping to it as a float would overflow in the cast.
    return values.clip(limits.min, np.nextafter(float(limits.max) + 1, 0)).astype(dtype)


def _in_layout(values: np.ndarray, spec: Spec) -> np.ndarray:
    if spec.layout == "HWC":
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1))
    return values[:, 0] if spec.layout == "HW" else values
