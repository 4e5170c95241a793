"""Convolutional encoder and decoder for images of any size and number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from twofold.errors import InputError
from twofold.nets.layers import Block, check_layer, limited, linear_block, norm_layer, one_hot, through, whole

Size = tuple[int, int]


def pyramid(height: int, width: int, min_size: int = 4) -> list[Size]:
    """Image sizes from the whole image down to the smallest map, one per convolution after the first entry.

    Each step halves every side that is still larger than `min_size`, rounding up. There is at least one step, which
    changes nothing if both sides are small already.

    >>> pyramid(28, 28)
    [(28, 28), (14, 14), (7, 7), (4, 4)]
    >>> pyramid(8, 30)
    [(8, 30), (4, 15), (4, 8), (4, 4)]
    """
    least = whole("min_size", min_size)
    sizes = [(whole("height", height), whole("width", width))]
    while len(sizes) == 1 or max(sizes[-1]) > least:
        rows, columns = ((n + 1) // 2 if n > least else n for n in sizes[-1])
        sizes.append((rows, columns))
    return sizes


class ConvEncoder(nn.Module):
    """Strided convolutions from images (batch, channels, height, width) to (batch, outputs), the last layer plain.

    One convolution per step of the `pyramid`, its channels doubling from `width` up to `max_width`; then flatten, one
    fully connected block if `hidden` is not 0, and a linear head. An encoder if `outputs` is 2·latent, a
    discriminator if it is 1.

    Labels enter as a learned shift of the first convolution's output, one value per label and channel: what one-hot
    planes would add through a 1×1 convolution, at a cost that does not grow with the image.

    Args:
        shape: (channels, height, width) of the images, any sizes.
        outputs: values per example that come out.
        width: channels of the first convolution.
        max_width: most channels of any convolution.
        norm: "none", "batch", "layer" or "group", before each activation.
        first_norm: whether the first convolution is normalised too (DCGAN's discriminator: not).
        activation: "relu", "leaky" (slope 0.2), "tanh", "elu", "silu", "gelu" or "softplus".
        kernel: side of the convolution kernels, odd.
        min_size: sides of at most this length are not halved further.
        hidden: units of the fully connected block; 0 for none.
        spectral: divide every weight by its largest singular value.
        classes: number of labels; None for a network without labels.

    Raises `InputError` for sizes that are not whole numbers ≥ 1, an even kernel, `max_width` below `width`, an
    unknown activation or norm, images of another shape, and labels that are missing or not expected.

    >>> net = ConvEncoder((3, 17, 30), 2 * 16, hidden=64)
    >>> net(torch.zeros(8, 3, 17, 30)).shape, net.blocks
    (torch.Size([8, 32]), 4)
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        width: int = 32,
        max_width: int = 256,
        norm: str = "none",
        first_norm: bool = True,
        activation: str = "relu",
        kernel: int = 5,
        min_size: int = 4,
        hidden: int = 0,
        spectral: bool = False,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.shape = _image_shape(shape)
        self.outputs = whole("outputs", outputs)
        self.classes = None if classes is None else whole("classes", classes)
        sizes = pyramid(*self.shape[1:], min_size)
        channels = [self.shape[0], *_widths(len(sizes) - 1, width, max_width)]
        self.layers = nn.ModuleList()
        for number, step in enumerate(zip(pairwise(channels), pairwise(sizes), strict=True), 1):
            kind = norm if first_norm or number > 1 else "none"
            self.layers.append(_down(*step, kernel, norm=kind, activation=activation, spectral=spectral))
        features = channels[-1] * sizes[-1][0] * sizes[-1][1]
        if whole("hidden", hidden, least=0):
            self.layers.append(linear_block(features, hidden, norm=norm, activation=activation, spectral=spectral))
        self.head = limited(nn.Linear(hidden or features, outputs), spectral)
        self.label = None if classes is None else limited(nn.Linear(classes, channels[1], bias=False), spectral)

    @property
    def blocks(self) -> int:
        """Number of hidden blocks, convolutions first: the largest `layer` of `forward_with_features`."""
        return len(self.layers)

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, layer: int | None = None, stop: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(batch, outputs); with a `layer`, what `forward_with_features` returns, and if it is to `stop` there, what
        `features` does."""
        check_layer(layer, self.blocks)
        if x.shape[1:] != self.shape:
            raise InputError(
                f"the input is {tuple(x.shape)}; this network takes (batch, {', '.join(map(str, self.shape))})"
            )
        label = one_hot(y, self.classes, like=x)
        shift = None if label is None or self.label is None else self.label(label)[:, :, None, None]
        h, features = through(self.layers[:layer] if stop else self.layers, x, layer=layer, shift=shift)
        if stop and features is not None:
            return features
        output = self.head(h.flatten(1))
        return output if features is None else (output, features)

    def features(self, x: Tensor, y: Tensor | None = None, *, layer: int) -> Tensor:
        """The features of `forward_with_features` alone, without what comes after them."""
        return self(x, y, layer=layer, stop=True)

    def forward_with_features(self, x: Tensor, y: Tensor | None = None, *, layer: int) -> tuple[Tensor, Tensor]:
        """The output and, from the same pass, hidden block `layer`'s (1 … blocks) linear output before its
        normalisation, flattened to (batch, features): Dis_l of Larsen et al. 2016. Raises `InputError` for another
        `layer`."""
        return self(x, y, layer=layer)


class ConvDecoder(nn.Module):
    """Transposed convolutions from codes (batch, latent) to (batch, outputs, height, width), the last layer plain:
    the likelihood or the recipe squashes.

    The mirror of `ConvEncoder`: one fully connected block if `hidden` is not 0, a fully connected layer onto the
    smallest map, and one transposed convolution per step of the `pyramid`, retracing its sizes exactly. The map is
    normalised per channel; the output never is (DCGAN's generator).

    Labels enter one-hot, concatenated to the code.

    Args:
        shape_out: (channels, height, width) of the images, any sizes.
        latent: values per code.
        outputs: channels that come out; None for the image's own (more for a likelihood with more parameters).
        width: channels before the last transposed convolution.
        max_width, norm, activation, kernel, min_size, hidden, spectral, classes: as in `ConvEncoder`.

    Raises `InputError` as `ConvEncoder` does.

    >>> net = ConvDecoder((3, 17, 30), 16, classes=10)
    >>> net(torch.zeros(8, 16), torch.arange(8)).shape
    torch.Size([8, 3, 17, 30])
    """

    def __init__(
        self,
        shape_out: Sequence[int],
        latent: int,
        *,
        outputs: int | None = None,
        width: int = 32,
        max_width: int = 256,
        norm: str = "none",
        activation: str = "relu",
        kernel: int = 5,
        min_size: int = 4,
        hidden: int = 0,
        spectral: bool = False,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.shape_out = _image_shape(shape_out)
        self.latent = whole("latent", latent)
        self.outputs = self.shape_out[0] if outputs is None else whole("outputs", outputs)
        self.classes = None if classes is None else whole("classes", classes)
        sizes = pyramid(*self.shape_out[1:], min_size)[::-1]
        channels = [*_widths(len(sizes) - 1, width, max_width)[::-1], self.outputs]
        inputs = latent + (classes or 0)
        self.layers = nn.ModuleList()
        if whole("hidden", hidden, least=0):
            self.layers.append(linear_block(inputs, hidden, norm=norm, activation=activation, spectral=spectral))
        self.layers.append(
            _onto_map(hidden or inputs, channels[0], sizes[0], norm=norm, activation=activation, spectral=spectral)
        )
        *ups, last = zip(pairwise(channels), pairwise(sizes), strict=True)
        for step in ups:
            up = _up(*step, kernel, spectral=spectral, bias=norm != "batch")
            self.layers.append(Block(up, norm_layer(norm, step[0][1], spatial=True), activation))
        self.head = _up(*last, kernel, spectral=spectral, bias=True)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """(batch, outputs, height, width), any real values."""
        if z.shape[1:] != (self.latent,):
            raise InputError(f"the code is {tuple(z.shape)}; this network takes (batch, {self.latent})")
        label = one_hot(y, self.classes, like=z)
        h, _ = through(self.layers, z if label is None else torch.cat([z, label], dim=1))
        return self.head(h)


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise InputError(f"shape is {tuple(shape)}; give (channels, height, width)")
    channels, height, width = (whole("shape", n) for n in shape)
    return channels, height, width


def _widths(steps: int, width: int, max_width: int) -> list[int]:
    """Channels after each step down."""
    if whole("max_width", max_width) < whole("width", width):
        raise InputError(f"max_width is {max_width}, below width {width}; give at least {width}")
    return [min(width * 2**step, max_width) for step in range(steps)]


def _stride(large: Size, small: Size) -> Size:
    rows, columns = (2 if n > m else 1 for n, m in zip(large, small, strict=True))
    return rows, columns


def _half(kernel: int) -> int:
    """The padding that keeps a side at stride 1, and gives half of it rounded up at stride 2."""
    if whole("kernel", kernel) % 2 == 0:
        raise InputError(f"kernel is {kernel}; give an odd number, so that sizes halve exactly")
    return kernel // 2


def _down(
    channels: Size, sizes: tuple[Size, Size], kernel: int, *, norm: str, activation: str, spectral: bool
) -> Block:
    conv = nn.Conv2d(*channels, kernel, _stride(*sizes), _half(kernel), bias=norm != "batch")
    return Block(limited(conv, spectral), norm_layer(norm, channels[1], spatial=True), activation)


def _onto_map(inputs: int, channels: int, size: Size, *, norm: str, activation: str, spectral: bool) -> Block:
    """A fully connected layer whose output is a map. Keeps its bias under any norm, as it differs by position."""
    linear = limited(nn.Linear(inputs, channels * size[0] * size[1]), spectral)
    onto = nn.Sequential(linear, nn.Unflatten(1, (channels, *size)))
    return Block(onto, norm_layer(norm, channels, spatial=True), activation)


def _up(channels: Size, sizes: tuple[Size, Size], kernel: int, *, spectral: bool, bias: bool) -> nn.Module:
    """The transposed convolution from the smaller to the larger size.

    At stride 2 a side of m gives 2m - 1, or 2m with one row of output padding: the odd and the even size that halve
    to m.
    """
    small, large = sizes
    rows, columns = (int(n == 2 * m and n > m) for m, n in zip(small, large, strict=True))
    stride = _stride(large, small)
    conv = nn.ConvTranspose2d(*channels, kernel, stride, _half(kernel), output_padding=(rows, columns), bias=bias)
    return limited(conv, spectral)
