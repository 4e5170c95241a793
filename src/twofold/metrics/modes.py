"""Mode coverage of a known mixture (Srivastava et al. 2017; Lin et al. 2018)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from twofold.errors import InputError


class Coverage(NamedTuple):
    """What samples do with a mixture's modes."""

    modes: int
    """Modes with at least one high-quality sample."""
    high_quality: float
    """Part of the samples within 3 standard deviations of their nearest mode."""
    reverse_kl: float
    """KL(share of each mode among high-quality samples ‖ uniform), in nats; log(modes) if all fall on one mode.
    Infinite without any high-quality sample."""


def mode_coverage(samples: Tensor, modes: Tensor, std: float, *, sigmas: float = 3.0) -> Coverage:
    """Of samples (n, d) and a mixture with centres (modes, d) of standard deviation `std`, equal in weight.

    >>> mode_coverage(torch.zeros(10, 2), torch.tensor([[0.0, 0.0], [1.0, 0.0]]), 0.1)
    Coverage(modes=1, high_quality=1.0, reverse_kl=0.6931471805599453)
    """
    if samples.dim() != 2 or modes.dim() != 2 or samples.shape[1] != modes.shape[1] or len(samples) == 0 or std <= 0:
        raise InputError(
            f"samples are {tuple(samples.shape)}, modes {tuple(modes.shape)}, std {std}; give (n, d), (k, d), > 0"
        )
    distance, nearest = torch.cdist(samples.double(), modes.double()).min(dim=1)
    good = distance <= sigmas * std
    counts = torch.bincount(nearest[good], minlength=len(modes)).double()
    share = counts / counts.sum()
    divergence = float((torch.xlogy(share, share * len(modes))).sum()) if bool(good.any()) else float("inf")
    return Coverage(int((counts > 0).sum()), float(good.double().mean()), divergence)
