"""PatchGAN: a discriminator that judges overlapping patches of an image, each by a logit of its own."""

from __future__ import annotations

from torch import Tensor, nn

from twofold.errors import InputError
from twofold.nets.layers import activation_layer, limited, norm_layer, whole

KERNEL = 4
WIDEST = 8
"""Channels stop doubling at this multiple of `width`."""
PATCHES = {1: 0, 16: 1, 34: 2, 70: 3, 142: 4, 286: 5}
"""Side of the patch that a logit sees, in pixels: `layers` of the discriminator (Isola et al. 2017)."""


def receptive_field(layers: int) -> int:
    """Side of the patch that one logit sees, in pixels: 1, 16, 34, 70, 142 for 0 … 4 layers (Isola et al. 2017,
    appendix 6.1.2).

    >>> [receptive_field(n) for n in range(4)]
    [1, 16, 34, 70]
    """
    if whole("layers", layers, least=0) == 0:
        return 1
    field = 1
    for stride in (1, 1, *[2] * layers):  # from the logit back to the image
        field = (field - 1) * stride + KERNEL
    return field


def most_layers(height: int, width: int) -> int:
    """The largest `layers` whose logits are still a map: each halves the sides, and the last two convolutions take one
    from each.

    >>> most_layers(8, 32), most_layers(256, 256)
    (1, 6)
    """
    layers, side = 0, min(height, width)
    while (side := side // 2) >= 3:
        layers += 1
    return layers


def patch_for(height: int, width: int) -> int:
    """The largest patch of at most half the smaller side, but 16 or more where the image has 6 pixels: at 256 pixels
    the paper's 70.

    >>> [patch_for(n, n) for n in (5, 28, 64, 128, 256)]
    [1, 16, 16, 34, 70]
    """
    largest, most = max(min(height, width) // 2, 16), most_layers(height, width)
    return min(max(patch for patch, layers in PATCHES.items() if patch <= largest and layers <= most), 70)


def layers_of(patch: int) -> int:
    """The `layers` whose logits see patches of that side. Raises `InputError` for another side than `PATCHES` has.

    >>> layers_of(70)
    3
    """
    if patch not in PATCHES:
        raise InputError(f"patch is {patch}; allowed: {', '.join(map(str, PATCHES))} pixels")
    return PATCHES[patch]


class PatchDiscriminator(nn.Module):
    """Images (batch, channels, height, width) → logits (batch, 1, rows, columns), one for each patch.

    `layers` convolutions of stride 2 and one of stride 1, with 4×4 kernels, padding 1 and slope 0.2 below zero, then
    one to a single channel (Isola et al. 2017, appendix 6.1.2). The first is not normalised. With 0 layers, three 1×1
    convolutions: each pixel is a patch. A conditional discriminator sees condition and image concatenated: give their
    `channels` together.

    Args:
        width: channels of the first convolution; doubled by each further one, to 8 times at most.
        norm: "none", "batch" (the paper's), "layer", "group" or "instance".
        spectral: divide every weight by its largest singular value.

    Raises `InputError` for sizes that are not whole numbers, and at the call for images too small for the layers.

    >>> import torch
    >>> PatchDiscriminator(3, layers=3)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 1, 2, 2])
    """

    def __init__(
        self, channels: int, *, width: int = 64, layers: int = 3, norm: str = "none", spectral: bool = False
    ) -> None:
        super().__init__()
        self.layers = whole("layers", layers, least=0)
        outputs = [width * min(2**k, WIDEST) for k in range(max(layers, 1) + 1)]
        inputs = [whole("channels", channels), *outputs[:-1]]
        parts: list[nn.Module] = []
        for number, (a, b) in enumerate(zip(inputs, outputs, strict=True)):
            first, last = number == 0, number == len(outputs) - 1
            shape = (KERNEL, 1 if last else 2, 1) if layers else (1, 1, 0)
            conv = nn.Conv2d(a, b, *shape, bias=first or norm not in ("batch", "instance"))
            parts += [limited(conv, spectral), norm_layer("none" if first else norm, b, spatial=True)]
            parts.append(activation_layer("leaky"))
        head = nn.Conv2d(outputs[-1], 1, *((KERNEL, 1, 1) if layers else (1, 1, 0)))
        self.net = nn.Sequential(*parts, limited(head, spectral))

    @property
    def field(self) -> int:
        """Side of a patch in pixels."""
        return receptive_field(self.layers)

    def forward(self, x: Tensor, y: None = None) -> Tensor:
        """Logits (batch, 1, rows, columns), any real values."""
        if self.layers > (most := most_layers(x.shape[-2], x.shape[-1])):
            raise InputError(
                f"images of {x.shape[-2]}×{x.shape[-1]} are too small for {self.layers} layers of a patch "
                f"discriminator; use at most {most}"
            )
        return self.net(x)
