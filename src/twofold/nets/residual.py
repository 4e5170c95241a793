"""The networks of the VQ-VAE family: 4×4 convolutions that halve, residual blocks, transposed convolutions that double
(van den Oord et al. 2017, section 4.1). Any size of image: odd sides are taken up, and cut off on the way back."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from twofold.errors import InputError


def halved(size: tuple[int, ...], halvings: int) -> list[tuple[int, ...]]:
    """The sizes of a map (height, width) on its way down, the first included: n to ⌈n / 2⌉.

    Raises `InputError` if a single place is to be halved.

    >>> halved((32, 9), 2)
    [(32, 9), (16, 5), (8, 3)]
    """
    sizes = [tuple(size)]
    for done in range(halvings):
        if max(sizes[-1]) <= 1:
            raise InputError(f"halvings is {halvings}; an image of {size[0]}×{size[1]} is one place after {done}")
        sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
    return sizes


class Residual(nn.Module):
    """h + conv1×1(relu(conv3×3(relu(h))))."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.net = nn.Sequential(nn.ReLU(), nn.Conv2d(width, inner, 3, 1, 1), nn.ReLU(), nn.Conv2d(inner, width, 1))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.net(h)


class Halve(nn.Module):
    """A 4×4 convolution with stride 2 that takes odd sides up: n to ⌈n / 2⌉."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, 2, 1)

    def forward(self, h: Tensor) -> Tensor:
        return F.relu(self.conv(F.pad(h, (0, h.shape[3] % 2, 0, h.shape[2] % 2))))


class Double(nn.Module):
    """A 4×4 transposed convolution with stride 2, cut to `size`: the way back from `Halve`."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, ...]):
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)
        self.size = size

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(h)[:, :, : self.size[0], : self.size[1]]


class HalvingTrunk(nn.Sequential):
    """Halvings, the first ones at half the channels, then a 3×3 convolution and residual blocks."""

    def __init__(self, channels: int, width: int, inner: int, blocks: int, halvings: int, *head: nn.Module):
        widths = [channels, *([max(1, width // 2)] * (halvings - 1)), *([width] if halvings else [])]
        super().__init__(
            *(Halve(a, b) for a, b in pairwise(widths)),
            nn.Conv2d(widths[-1], width, 3, 1, 1),
            *(Residual(width, inner) for _ in range(blocks)),
            nn.ReLU(),
            *head,
        )


class HalvingEncoder(HalvingTrunk):
    """The trunk and a 1×1 convolution to vectors of `latent` values."""

    def __init__(self, channels: int, latent: int, width: int, inner: int, blocks: int, halvings: int):
        super().__init__(channels, width, inner, blocks, halvings, nn.Conv2d(width, latent, 1))


class DoublingDecoder(nn.Module):
    """The way back: a 3×3 convolution, residual blocks, and transposed convolutions that retrace `sizes`."""

    def __init__(self, outputs: int, latent: int, width: int, inner: int, blocks: int, sizes: list[tuple[int, ...]]):
        super().__init__()
        halvings = len(sizes) - 1
        widths = [width, *([max(1, width // 2)] * (halvings - 1)), *([outputs] if halvings else [])]
        layers: list[nn.Module] = [nn.Conv2d(latent, width, 3, 1, 1), *(Residual(width, inner) for _ in range(blocks))]
        layers.append(nn.ReLU())
        for k, (a, b) in enumerate(pairwise(widths), 1):
            layers += [Double(a, b, sizes[halvings - k]), *([nn.ReLU()] if k < halvings else [])]
        if not halvings:
            layers.append(nn.Conv2d(width, outputs, 1))
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor, y: None = None) -> Tensor:
        return self.net(z)
