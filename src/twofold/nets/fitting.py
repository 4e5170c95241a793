"""Sizes that a network cannot halve evenly: padded for it, and its output cut back."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def padded(x: Tensor, multiple: int) -> Tensor:
    """(batch, channels, height, width) with both sides enlarged to a multiple, below and to the right, by reflection;
    by repeating the border where the picture is too small to be reflected.

    >>> import torch
    >>> padded(torch.zeros(1, 1, 6, 9), 4).shape
    torch.Size([1, 1, 8, 12])
    """
    height, width = x.shape[2:]
    down, right = -height % multiple, -width % multiple
    if not down and not right:
        return x
    mode = "reflect" if down < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, down), mode=mode)


def cut(x: Tensor, like: Tensor) -> Tensor:
    """The top left part of `x` with the height and width of `like`: what undoes `padded`."""
    return x[:, :, : like.shape[2], : like.shape[3]]
