"""Operations on image tensors of any value range: number of channels, size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.errors import InputError

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights of red, green and blue: what "grey" means in JPEG and in Pillow."""
CHANNELS = (1, 3, 4)
"""Grey, RGB, RGB with opacity."""


def with_channels(x: Tensor, channels: int, *, low: float, high: float) -> Tensor:
    """(batch, c, height, width) with another number of channels, in the dtype of `x`.

    Grey is repeated, colour becomes luma, opacity is added as opaque (`high`), and removed by laying the picture on
    white (`high`). Raises `InputError` for anything but 1, 3 or 4 channels.
    """
    given = x.shape[1]
    if given == channels:
        return x
    if given not in CHANNELS or channels not in CHANNELS:
        raise InputError(
            f"images with {given} channels cannot be given {channels}; allowed: 1, 3 and 4, or as they are"
        )
    y = x.double()
    if given == 4:
        opacity = (y[:, 3:] - low) / (high - low)
        y = y[:, :3] * opacity + high * (1 - opacity)
    if channels == 1:
        y = (y * torch.tensor(LUMA, dtype=y.dtype)[:, None, None]).sum(1, keepdim=True) if y.shape[1] == 3 else y
    elif y.shape[1] == 1:
        y = y.expand(-1, 3, -1, -1)
    if channels == 4:
        y = torch.cat([y, torch.full_like(y[:, :1], high)], dim=1)
    return _like(y, x)


def resized(x: Tensor, size: tuple[int, int], *, low: float, high: float) -> Tensor:
    """(batch, channels, height, width) at `size` = (height, width), in the dtype of `x`.

    Bicubic with antialiasing to the smallest size that covers `size` at the picture's own aspect, then the centre is
    cut out. Bicubic weights overshoot at edges: values are clipped to [low, high].
    """
    if tuple(x.shape[2:]) == size:
        return x
    height, width = covering(x.shape[2], x.shape[3], size)
    y = F.interpolate(x.float(), size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return _like(y[:, :, top : top + size[0], left : left + size[1]].clamp(low, high), x)


def covering(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest (height, width) of the given aspect that covers `size`."""
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], round(height * scale)), max(size[1], round(width * scale))


def _like(y: Tensor, x: Tensor) -> Tensor:
    return (y if x.dtype.is_floating_point else y.round()).to(x.dtype).contiguous()
