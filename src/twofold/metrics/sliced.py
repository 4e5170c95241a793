"""Sliced Wasserstein distances: of whole examples, and of patches at each scale (Karras et al. 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.errors import InputError
from twofold.metrics.record import require_sets

PATCH = 7
LEAST_SIDE = 16
_BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)


def sliced_wasserstein(a: Tensor, b: Tensor, *, projections: int = 512, generator: torch.Generator) -> float:
    """Mean over random unit directions of the 1-Wasserstein distance of the projected sets (n, d) and (n, d).

    Exact in one dimension; 0 for equal sets. A shift by v costs |v| times E|cos| of a random angle to it.
    Raises `InputError` if the sets have different counts or `projections` is below 1.
    """
    require_sets(a, b)
    if len(a) != len(b) or projections < 1:
        raise InputError(
            f"sliced_wasserstein of {len(a)} and {len(b)} examples, {projections} directions: equal counts"
        )
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    x, y = (z.double() @ directions for z in (a, b))
    return float((x.sort(0).values - y.sort(0).values).abs().mean())


def patch_distances(
    a: Tensor, b: Tensor, *, patches: int = 128, projections: int = 512, generator: torch.Generator
) -> dict[int, float]:
    """{height of the level: distance · 1000} of 7×7 patches of images (n, channels, height, width), level by level of
    a Laplacian pyramid down to 16 pixels (Karras et al. 2018, their section 5).

    `patches` from each image and level, each colour channel normalised to mean 0 and deviation 1 over the set.
    """
    require_sets(a, b, dimensions=4)
    if min(a.shape[2:]) < LEAST_SIDE or len(a) != len(b):
        raise InputError(
            f"the images are {tuple(a.shape)} and {tuple(b.shape)}; give as many of each, {LEAST_SIDE} pixels or more"
        )
    found = {}
    for level_a, level_b in zip(laplacian_pyramid(a.float()), laplacian_pyramid(b.float()), strict=True):
        x, y = (_patches(level, patches, generator) for level in (level_a, level_b))
        distance = sliced_wasserstein(x, y, projections=projections, generator=generator)
        found[level_a.shape[2]] = 1000 * distance
    return found


def laplacian_pyramid(x: Tensor) -> list[Tensor]:
    """Levels of detail, finest first; the last is the rest, not below 16 pixels. Their sum, enlarged, is x."""
    levels = []
    while min(x.shape[2:]) >= 2 * LEAST_SIDE:
        small = _blur(x)[:, :, ::2, ::2]
        levels.append(x - _enlarge(small, x.shape))
        x = small
    return [*levels, x]


def _blur(x: Tensor) -> Tensor:
    row = torch.tensor(_BINOMIAL, dtype=x.dtype) / sum(_BINOMIAL)
    kernel = (row[:, None] * row[None, :]).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])


def _enlarge(small: Tensor, shape: torch.Size) -> Tensor:
    spread = small.new_zeros((len(small), *shape[1:]))
    spread[:, :, ::2, ::2] = small
    return _blur(spread) * 4


def _patches(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(n · count, channels · 49), each channel normalised over all patches."""
    n, _, height, width = x.shape
    top = torch.randint(height - PATCH + 1, (n, count), generator=generator)[..., None, None]
    left = torch.randint(width - PATCH + 1, (n, count), generator=generator)[..., None, None]
    rows, columns = top + torch.arange(PATCH)[:, None], left + torch.arange(PATCH)
    taken = x[torch.arange(n)[:, None, None, None], :, rows, columns].flatten(0, 1)  # (n·count, 7, 7, channels)
    mean, std = taken.mean((0, 1, 2)), taken.std((0, 1, 2))
    return ((taken - mean) / std.clamp(min=1e-8)).flatten(1)
