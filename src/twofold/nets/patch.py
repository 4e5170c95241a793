"""PatchGAN discriminators (Isola et al. 2017): one logit per patch of a chosen size."""

from __future__ import annotations

from torch import Tensor, nn

from twofold.errors import InputError
from twofold.nets.layers import limited, norm_layer, whole

PATCHES = {1: 0, 16: 1, 34: 2, 70: 3, 142: 4, 286: 5}
"""Side of the patch that a logit sees, in pixels: number of convolutions of stride 2."""


def patch_for(height: int, width: int) -> int:
    """The largest patch of at most half the smaller side, but 16 or more where the image has 6 pixels: at 256 pixels
    the paper's 70.

    >>> [patch_for(n, n) for n in (5, 28, 64, 128, 256)]
    [1, 16, 16, 34, 70]
    """
    side = min(height, width)
    fits = [patch for patch in PATCHES if patch <= max(side // 2, 16) and _last(side, PATCHES[patch]) >= 1]
    return min(max(fits), 70)


class PatchDiscriminator(nn.Module):
    """Images (batch, channels, height, width) of any size to logits (batch, 1, rows, columns), one per patch.

    4×4 convolutions: some of stride 2, then two of stride 1; for patch 1 three 1×1 convolutions. The first is not
    normalised.

    Args:
        channels: of the image, or of input and image together for a conditional discriminator.
        patch: side of what a logit sees: 1, 16, 34, 70, 142 or 286 pixels.
        width: channels of the first convolution; they double up to 8 · width.
        norm: normalisation of the convolutions between the first and the last.
        spectral: divide every weight by its largest singular value.

    Raises `InputError` for another patch.

    >>> import torch
    >>> PatchDiscriminator(3, patch=16, width=4)(torch.zeros(2, 3, 64, 48)).shape
    torch.Size([2, 1, 30, 22])
    """

    def __init__(
        self, channels: int, *, patch: int = 70, width: int = 32, norm: str = "instance", spectral: bool = False
    ) -> None:
        super().__init__()
        if patch not in PATCHES:
            raise InputError(f"patch is {patch}; allowed: {', '.join(map(str, PATCHES))} pixels")
        strided = PATCHES[patch]
        kernel, padding = (4, 1) if strided else (1, 0)
        strides = [2] * strided + [1] if strided else [1, 1]
        layers: list[nn.Module] = []
        before = whole("channels", channels)
        for k, stride in enumerate(strides):
            after = min(whole("width", width) * 2**k, 8 * width)
            kind = "none" if k == 0 else norm
            conv = nn.Conv2d(before, after, kernel, stride, padding, bias=kind == "none")
            layers += [limited(conv, spectral), norm_layer(kind, after, spatial=True), nn.LeakyReLU(0.2)]
            before = after
        self.layers = nn.Sequential(*layers, limited(nn.Conv2d(before, 1, kernel, 1, padding), spectral))
        self.strided = strided

    def forward(self, x: Tensor) -> Tensor:
        if _last(min(x.shape[2:]), self.strided) < 1:
            raise InputError(f"images of {x.shape[2]}×{x.shape[3]} are too small for this patch; use a smaller one")
        return self.layers(x)


def _last(side: int, strided: int) -> int:
    """Logits along a side of that many pixels."""
    for _ in range(strided):
        side //= 2
    return side - 2 if strided else side
