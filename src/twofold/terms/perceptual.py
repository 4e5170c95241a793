"""A distance between images as a network's layers see them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twofold.terms.matching import require_same_shape, single_precision


def perceptual_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Σ over layers of the mean over places of ‖f/‖f‖ - g/‖g‖‖², per example: LPIPS (Zhang et al. 2018, eq. 1) with all
    its channel weights 1. Maps (batch, channels, height, width) of each layer → (batch,), between 0 and 4 a layer.

    >>> a, b = torch.tensor([[3.0, 0.0]]).view(1, 2, 1, 1), torch.tensor([[0.0, 5.0]]).view(1, 2, 1, 1)
    >>> perceptual_distance([a], [b])
    tensor([2.])
    """
    if not features or len(features) != len(others):
        raise ValueError(
            f"there are maps of {len(features)} and {len(others)} layers; give the same layers, at least 1"
        )
    distances = []
    for f, g in zip(features, others, strict=True):
        require_same_shape(features=f, others=g)
        difference = _unit(f) - _unit(g)
        distances.append(difference.square().sum(1).flatten(1).mean(1))
    return torch.stack(distances).sum(0)


def _unit(maps: Tensor) -> Tensor:
    maps = single_precision(maps)
    # The root of a sum that may be 0 has no gradient there: the small number keeps it finite.
    return maps / (maps.square().sum(1, keepdim=True) + 1e-10).sqrt()
