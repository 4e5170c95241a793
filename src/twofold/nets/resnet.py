"""The residual generator from image to image of Johnson et al. 2016, as CycleGAN uses it."""

from __future__ import annotations

from torch import Tensor, nn

from twofold.errors import InputError
from twofold.nets.fitting import cut, padded
from twofold.nets.layers import norm_layer, whole


class ResNetGenerator(nn.Module):
    """Images (batch, inputs, height, width) of any size to (batch, outputs, height, width), the last layer plain.

    A 7×7 convolution, `halvings` strided 3×3 convolutions that double the channels, `blocks` residual blocks of two 3×3
    convolutions, as many transposed convolutions back up, and a 7×7 convolution. Borders are reflected. Sizes that do
    not halve evenly are padded and cut back.

    Args:
        inputs, outputs: channels in and out.
        width: channels of the first convolution.
        blocks: residual blocks (the paper: 6 at 128 pixels, 9 at 256).
        halvings: strided convolutions.
        norm: normalisation after every convolution but the last.

    Raises `InputError` for numbers below these.

    >>> import torch
    >>> ResNetGenerator(3, 1, width=4, blocks=1)(torch.zeros(2, 3, 13, 18)).shape
    torch.Size([2, 1, 13, 18])
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int = 32, blocks: int = 6, halvings: int = 2, norm: str = "instance"
    ) -> None:
        super().__init__()
        self.multiple = 2 ** whole("halvings", halvings, least=0)
        bias = norm == "none"
        channels = whole("width", width)
        layers: list[nn.Module] = [_wide(whole("inputs", inputs), channels, bias), *_after(norm, channels)]
        for _ in range(halvings):
            layers += [nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=bias), *_after(norm, 2 * channels)]
            channels *= 2
        layers += [Residual(channels, norm=norm) for _ in range(whole("blocks", blocks, least=0))]
        for _ in range(halvings):
            up = nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, output_padding=1, bias=bias)
            channels //= 2
            layers += [up, *_after(norm, channels)]
        self.layers = nn.Sequential(*layers, _wide(channels, whole("outputs", outputs), True))

    def forward(self, a: Tensor) -> Tensor:
        if min(a.shape[2:]) < 4:
            raise InputError(f"the image is {a.shape[2]}×{a.shape[3]}; this network takes 4×4 pixels or more")
        return cut(self.layers(padded(a, max(self.multiple, 4))), a)


class Residual(nn.Module):
    """h + two 3×3 convolutions of h, each with its normalisation, a ReLU between them."""

    def __init__(self, channels: int, *, norm: str) -> None:
        super().__init__()
        bias = norm == "none"

        def conv() -> nn.Conv2d:
            return nn.Conv2d(channels, channels, 3, 1, 1, padding_mode="replicate", bias=bias)

        def normal() -> nn.Module:
            return norm_layer(norm, channels, spatial=True)

        self.layers = nn.Sequential(conv(), normal(), nn.ReLU(), conv(), normal())

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


def _wide(inputs: int, outputs: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 7, 1, 3, padding_mode="reflect", bias=bias)


def _after(norm: str, channels: int) -> list[nn.Module]:
    return [norm_layer(norm, channels, spatial=True), nn.ReLU()]
