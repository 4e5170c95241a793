"""Differentiable augmentation (Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training").

A discriminator of few images soon knows them by heart. If it sees every image, real or generated, through a random
transformation T that gradient passes through, it cannot, and the generator still learns the distribution itself, not
that of T(x).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from twofold.errors import InputError, unknown
from twofold.spec import Spec

POLICIES = ("none", "translation", "translation-cutout", "color-translation-cutout")
"""The paper's three policies, and no augmentation."""


def check_augment(policy: str, spec: Spec) -> str:
    """`policy`, if it can be applied to data that looks like `spec`. Raises `InputError` otherwise."""
    if policy not in POLICIES:
        raise unknown("augment", policy, POLICIES)
    if policy != "none" and spec.kind != "image":
        raise InputError(f"augment is {policy} and this data is {spec.kind}s; it is for images, use --augment none")
    return policy


def augmentation(policy: str, like: Tensor, *, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """One random transformation per row of `like` (batch, channels, height, width), as a function of such batches.

    Real and generated images of a play go through the same draw, row by row. Each of them still meets the whole
    distribution of T, and features of an image and of its reconstruction stay comparable. "none" draws nothing and
    returns its input.

    - color: brightness + U(-½, ½), then saturation · U(0, 2) about the pixel's mean over channels, then
      contrast · U(½, 1½) about the image's mean, for images in [-1, 1]
    - translation: by up to an eighth of each side, what moves in is 0
    - cutout: a square of half the sides, centred anywhere in the image, becomes 0

    >>> seen = augmentation("translation", torch.ones(2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    >>> seen(torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """
    parts = [] if policy == "none" else [DRAWS[name](like, generator) for name in policy.split("-")]

    def apply(x: Tensor) -> Tensor:
        for part in parts:
            x = part(x)
        return x

    return apply


def _color(like: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    draws = torch.rand(3, len(like), 1, 1, 1, generator=generator, device=like.device, dtype=like.dtype)
    brightness, saturation, contrast = draws[0] - 0.5, 2 * draws[1], draws[2] + 0.5

    def apply(x: Tensor) -> Tensor:
        x = x + brightness
        grey = x.mean(1, keepdim=True)
        x = grey + saturation * (x - grey)
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + contrast * (x - mean)

    return apply


def _translation(like: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    rows, columns = (_shifted(like, side, generator) for side in like.shape[2:])
    example = torch.arange(len(like), device=like.device)[:, None, None, None]
    channel = torch.arange(like.shape[1], device=like.device)[None, :, None, None]

    def apply(x: Tensor) -> Tensor:
        # One row and one column of zeros all around: every place that moves in is read from there.
        framed = torch.nn.functional.pad(x, (1, 1, 1, 1))
        return framed[example, channel, rows[:, None, :, None], columns[:, None, None, :]]

    return apply


def _shifted(like: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Where each place of a side is read from in the framed image, (batch, side)."""
    most = max(1, round(side / 8))
    shift = torch.randint(-most, most + 1, (len(like), 1), generator=generator, device=like.device)
    return (torch.arange(side, device=like.device) + shift + 1).clamp(0, side + 1)


def _cutout(like: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    inside = [_hole(like, side, generator) for side in like.shape[2:]]
    keep = ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
    return lambda x: x * keep


def _hole(like: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Which places of a side the square covers, (batch, side)."""
    size = max(1, round(side / 2))
    centre = torch.randint(side + (1 - size % 2), (len(like), 1), generator=generator, device=like.device)
    start = centre - size // 2
    place = torch.arange(side, device=like.device)
    return (place >= start) & (place < start + size)


DRAWS = {"color": _color, "translation": _translation, "cutout": _cutout}
