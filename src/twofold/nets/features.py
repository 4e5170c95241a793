"""A small classifier whose layers serve as features of images."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from twofold.nets.layers import whole


class FeatureClassifier(nn.Module):
    """Images (batch, channels, height, width) → logits (batch, classes), through `layers` 3×3 convolutions of which all
    but the first halve the sides; the maps behind each are what `maps` returns. Any size: odd sides are taken up.

    >>> import torch
    >>> net = FeatureClassifier(3, 10, width=8, layers=3)
    >>> [tuple(m.shape) for m in net.maps(torch.zeros(2, 3, 32, 32))]
    [(2, 8, 32, 32), (2, 16, 16, 16), (2, 32, 8, 8)]
    """

    def __init__(self, channels: int, classes: int, *, width: int = 32, layers: int = 4) -> None:
        super().__init__()
        widths = [whole("channels", channels), *(width * 2**k for k in range(whole("layers", layers)))]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 1 if k == 0 else 2, 1), nn.ReLU())
            for k, (a, b) in enumerate(pairwise(widths))
        )
        self.head = nn.Linear(widths[-1], whole("classes", classes, least=2))

    def maps(self, x: Tensor) -> list[Tensor]:
        """The map behind each layer, (batch, channels of the layer, height, width)."""
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x)[-1].mean((2, 3)))
