"""How alike two images are: squared error, PSNR, SSIM and MS-SSIM; and how alike the samples of a set are.

The window and the number of scales follow from the image's size, because the published choice (11×11, five scales)
needs 176 pixels; they belong to the protocol and stand in the name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.errors import InputError

RANGE = 2.0
"""Largest difference of two values: images lie in [-1, 1]."""
WINDOW, SIGMA = 11, 1.5
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales, finest first (Wang et al. 2003); fewer are rescaled to add up to 1."""


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of each example (n,), a mean over values: the one distance here that is not summed."""
    _require_pair(x, y)
    return (x.double() - y.double()).square().flatten(1).mean(1)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """10 log₁₀(range² / error) of each image (n,), in decibels; infinite for equal images."""
    return 10 * torch.log10(RANGE**2 / mse(x, y))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each pair of images (n,), in [-1, 1] (Wang et al. 2004).

    Gaussian window of deviation 1.5 and `window_for` pixels, K = 0.01 and 0.03, averaged over channels and over the
    places where the window fits inside.
    """
    _require_pair(x, y, images=True)
    return _similarities(_intensity(x), _intensity(y), window_for(x.shape[2:]))[0]


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Multi-scale SSIM of each pair of images (n,), in [0, 1] (Wang et al. 2003), on `scales_for` scales.

    Negative contrast terms count as 0, where the definition has no real value.
    """
    _require_pair(x, y, images=True)
    window, scales = window_for(x.shape[2:]), scales_for(x.shape[2:])
    weights = torch.tensor(SCALE_WEIGHTS[:scales], dtype=torch.float64)
    x, y, product = _intensity(x), _intensity(y), torch.ones(len(x), dtype=torch.float64)
    for scale, weight in enumerate(weights / weights.sum()):
        whole, contrast = _similarities(x, y, window)
        last = scale == scales - 1
        product = product * (whole if last else contrast).clamp(min=0) ** weight
        if not last:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product


def window_for(size: torch.Size | tuple[int, ...]) -> int:
    """Side of the window: 11, or the largest odd number that fits into the image.

    >>> window_for((28, 28)), window_for((8, 8))
    (11, 7)
    """
    side = min(size)
    return min(WINDOW, side - 1 + side % 2)


def scales_for(size: torch.Size | tuple[int, ...]) -> int:
    """Number of scales at which the window still fits, at most 5.

    >>> scales_for((28, 28)), scales_for((256, 256))
    (2, 5)
    """
    side, window, scales = min(size), window_for(size), 1
    while scales < len(SCALE_WEIGHTS) and side // 2 >= window:
        side, scales = side // 2, scales + 1
    return scales


def mean_similarity(x: Tensor, *, pairs: int, generator: torch.Generator) -> Tensor:
    """MS-SSIM of `pairs` random pairs of different images of one set (pairs,); 1 minus its mean is a diversity
    (Odena et al. 2017; Rosca et al. 2017). It suits sets of one kind of image; compare it with the data's own."""
    if len(x) < 2 or pairs < 1:
        raise InputError(f"{pairs} pairs of {len(x)} images; give at least 1 pair and 2 images")
    first = torch.randint(len(x), (pairs,), generator=generator)
    other = (first + torch.randint(1, len(x), (pairs,), generator=generator)) % len(x)
    return torch.cat([ms_ssim(x[a], x[b]) for a, b in zip(first.split(256), other.split(256), strict=True)])


def _similarities(x: Tensor, y: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """(SSIM, its contrast-structure factor), each (n,)."""
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = _windowed(x, window), _windowed(y, window)
    var_x = _windowed(x * x, window) - mean_x**2
    var_y = _windowed(y * y, window) - mean_y**2
    covariance = _windowed(x * y, window) - mean_x * mean_y
    contrast = (2 * covariance + c2) / (var_x + var_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * contrast).flatten(1).mean(1), contrast.flatten(1).mean(1)


def _intensity(x: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]: the comparison of means is defined for intensities, which are not negative."""
    return (x.double() + 1) / 2


def _windowed(x: Tensor, window: int) -> Tensor:
    place = torch.arange(window, dtype=x.dtype) - (window - 1) / 2
    row = torch.exp(-(place**2) / (2 * SIGMA**2))
    row = row / row.sum()
    channels = x.shape[1]
    x = F.conv2d(x, row.view(1, 1, -1, 1).expand(channels, 1, window, 1), groups=channels)
    return F.conv2d(x, row.view(1, 1, 1, -1).expand(channels, 1, 1, window), groups=channels)


def _require_pair(x: Tensor, y: Tensor, *, images: bool = False) -> None:
    if x.shape != y.shape or (images and x.dim() != 4) or x.dim() < 2 or len(x) == 0:
        wanted = "images (n, channels, height, width)" if images else "(n, …)"
        raise InputError(f"x is {tuple(x.shape)} and y is {tuple(y.shape)}; give equal {wanted}")
