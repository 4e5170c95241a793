"""High-frequency power: how much of an image's variance is fine detail. Blurred samples have too little of it."""

from __future__ import annotations

import torch
from torch import Tensor

from twofold.errors import InputError


def high_frequency_power(x: Tensor, *, cutoff: float = 0.25) -> Tensor:
    """The fraction of spectral power above `cutoff` cycles per pixel (radially), without the mean: a scalar in [0, 1].

    Power is averaged over images (batch, channels, height, width) and channels before the fraction is taken, so that
    an image without contrast weighs nothing. `cutoff` 0.25 is half the highest frequency an axis can carry.

    Raises `InputError` for images smaller than 4 on a side, which have no such frequencies, or without any contrast.

    >>> checkerboard = torch.ones(1, 1, 8, 8)
    >>> checkerboard[..., ::2, ::2] = checkerboard[..., 1::2, 1::2] = -1
    >>> float(high_frequency_power(checkerboard))
    1.0
    """
    if x.dim() != 4 or min(x.shape[2:]) < 4:
        raise InputError(f"x has shape {tuple(x.shape)}; give images (batch, channels, height, width) of 4×4 or more")
    x = x.double()
    power = torch.fft.fft2(x - x.mean(dim=(2, 3), keepdim=True)).abs().square().mean(dim=(0, 1))
    rows, columns = (torch.fft.fftfreq(n, device=x.device, dtype=x.dtype) for n in x.shape[2:])
    radius = (rows[:, None] ** 2 + columns[None, :] ** 2).sqrt()
    total = power.sum()
    if not total > 0:
        raise InputError("the images have no contrast, so no spectrum to speak of")
    return power[radius > cutoff].sum() / total


def high_frequency_power_ratio(samples: Tensor, data: Tensor, *, cutoff: float = 0.25) -> float:
    """`high_frequency_power` of samples relative to data's: 1 is the data's own sharpness, below 1 is smoother."""
    return float(high_frequency_power(samples, cutoff=cutoff) / high_frequency_power(data, cutoff=cutoff))
