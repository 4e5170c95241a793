"""LPIPS (Zhang et al. 2018), where its weights are there."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from twofold.errors import InputError

TRUNK = "alexnet-owt-7be5be79.pth"
"""torchvision's file of AlexNet's weights, in torch's hub folder. The linear weights come with torchmetrics."""


def missing() -> str | None:
    """Why LPIPS cannot be computed here, or None if it can. Nothing is downloaded."""
    if find_spec("torchmetrics") is None or find_spec("torchvision") is None:
        return "LPIPS needs torchmetrics and torchvision: pip install 'twofold[metrics]'"
    if not (Path(torch.hub.get_dir()) / "checkpoints" / TRUNK).is_file():
        return f"LPIPS needs AlexNet's weights: put {TRUNK} of torchvision into the folder of torch.hub.get_dir()"
    return None


def lpips(x: Tensor, y: Tensor) -> Tensor:
    """Distance of each pair of images (n,), version 0.1 on AlexNet, images in [-1, 1] of 64 pixels or more.

    Grey images count as three equal channels. Raises `InputError` if packages or weights are missing.
    """
    if reason := missing():
        raise InputError(reason)
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    x, y = (z.float().clamp(-1, 1).expand(-1, 3, -1, -1) for z in (x, y))
    pairs = zip(x.split(1), y.split(1), strict=True)
    return torch.stack([learned_perceptual_image_patch_similarity(a, b, net_type="alex") for a, b in pairs])
