"""The U-Net of pix2pix (Isola et al. 2017): strided convolutions down, transposed ones up, and a skip at every size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twofold.errors import InputError
from twofold.nets.fitting import cut, padded
from twofold.nets.layers import norm_layer, whole

NOISY = 3
"""The layers on the way up, counted from the smallest map, that have dropout."""


def halvings_for(height: int, width: int) -> int:
    """Halvings after which the smaller side is 2 or 3 pixels; at least 1.

    >>> halvings_for(64, 64), halvings_for(8, 30)
    (5, 2)
    """
    return max(1, min(height, width).bit_length() - 2)


class UNet(nn.Module):
    """Images (batch, inputs, height, width) of any size to (batch, outputs, height, width), the last layer plain.

    4×4 convolutions of stride 2 down and up, channels doubling from `width` to `max_width`. A map on the way up is
    joined with the one of its size on the way down. The outermost and the innermost convolution down are not
    normalised (at 1×1 nothing would be left). Sizes that do not halve evenly are padded and cut back.

    Args:
        inputs, outputs: channels in and out.
        halvings: convolutions down; 256×256 to 1×1 is 8.
        width, max_width: channels of the first and of the widest convolutions.
        norm: normalisation.
        skip: join the maps; without it the network is a plain encoder and decoder.
        dropout: probability in the first three layers up. It is the network's noise, and acts in training and in use,
            whenever `forward` is given a generator to draw it from.
        latent: size of a code z that shifts every map on the way down (after its normalisation, which would remove
            it); 0 for none.

    Raises `InputError` for sizes that are not whole numbers, dropout outside [0, 1), and a code that is missing, not
    expected, or of another size.

    >>> net = UNet(1, 3, halvings=3, width=4, latent=2)
    >>> net(torch.zeros(2, 1, 13, 18), torch.zeros(2, 2)).shape
    torch.Size([2, 3, 13, 18])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        halvings: int,
        width: int = 32,
        max_width: int = 256,
        norm: str = "instance",
        skip: bool = True,
        dropout: float = 0.0,
        latent: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}; allowed: from 0 to below 1")
        self.multiple = 2 ** whole("halvings", halvings)
        self.skip, self.dropout, self.latent = skip, dropout, whole("latent", latent, least=0)
        widths = [min(whole("width", width) * 2**k, max(width, max_width)) for k in range(halvings)]
        befores = [whole("inputs", inputs), *widths[:-1]]
        self.down = nn.ModuleList()
        for k, (before, after) in enumerate(zip(befores, widths, strict=True)):
            kind = "none" if k in (0, halvings - 1) else norm
            conv = nn.Conv2d(before, after, 4, 2, 1, bias=kind == "none")
            # In a list, not a sequence: the code comes in between.
            self.down.append(nn.ModuleList([conv, norm_layer(kind, after, spatial=True)]))
        self.shifts = nn.ModuleList(nn.Linear(latent, after, bias=False) for after in widths if latent)
        self.up = nn.ModuleList()
        for k in reversed(range(1, halvings)):
            joined = widths[k] * (2 if skip and k < halvings - 1 else 1)
            conv_up = nn.ConvTranspose2d(joined, widths[k - 1], 4, 2, 1, bias=norm == "none")
            self.up.append(nn.Sequential(nn.ReLU(), conv_up, norm_layer(norm, widths[k - 1], spatial=True)))
        last = widths[0] * (2 if skip and halvings > 1 else 1)
        self.head = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(last, whole("outputs", outputs), 4, 2, 1))

    def forward(self, a: Tensor, z: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """(batch, outputs, height, width). `generator`: of the dropout; None: without dropout."""
        if (z is None) != (self.latent == 0) or (z is not None and z.shape != (len(a), self.latent)):
            given = "no code" if z is None else f"a code of {tuple(z.shape)}"
            raise InputError(f"the network was given {given}; it takes a code of {self.latent} values, 0 being none")
        h, maps = padded(a, self.multiple), []
        for k, layer in enumerate(self.down):
            conv, norm = layer[0], layer[1]  # type: ignore[index]
            h = norm(conv(h if k == 0 else nn.functional.leaky_relu(h, 0.2)))
            if z is not None:
                h = h + self.shifts[k](z)[:, :, None, None]
            maps.append(h)
        for k, layer in enumerate(self.up):
            h = layer(h)
            if self.dropout and generator is not None and k < NOISY:
                kept = torch.rand(h.shape, generator=generator, device=h.device) >= self.dropout
                h = h * kept / (1 - self.dropout)
            if self.skip:
                h = torch.cat([h, maps[-2 - k]], dim=1)
        return cut(self.head(h), a)
