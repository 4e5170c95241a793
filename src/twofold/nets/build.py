"""Networks sized from a Spec: convolutions for images, fully connected layers for vectors."""

from __future__ import annotations

from torch import Tensor, nn

from twofold.errors import InputError, unknown
from twofold.nets.conv import ConvDecoder, ConvEncoder
from twofold.nets.layers import whole
from twofold.nets.mlp import MLP
from twofold.spec import Spec

ARCHS = ("conv", "mlp")
CONV_WIDTH = 32
MLP_WIDTH = 256


class Discriminator(nn.Module):
    """Gives a network with one output per example the shape of logits, (batch,).

    >>> import torch
    >>> critic_of_codes = Discriminator(MLP(8, (64, 64), 1))
    >>> critic_of_codes(torch.zeros(5, 8)).shape
    torch.Size([5])
    """

    def __init__(self, net: MLP | ConvEncoder) -> None:
        super().__init__()
        if net.outputs != 1:
            raise InputError(f"the network has {net.outputs} outputs; a discriminator has 1")
        self.net = net

    @property
    def blocks(self) -> int:
        """Number of hidden blocks: the largest `layer` of `forward_with_features`."""
        return self.net.blocks

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, layer: int | None = None, stop: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (batch,), any real values; with a `layer`, what `forward_with_features` returns, and if it is to
        `stop` there, what `features` does."""
        if layer is None:
            return self.net(x, y).squeeze(1)
        if stop:
            return self.net(x, y, layer=layer, stop=True)
        output, features = self.net(x, y, layer=layer)
        return output.squeeze(1), features

    def forward_with_features(self, x: Tensor, y: Tensor | None = None, *, layer: int) -> tuple[Tensor, Tensor]:
        """Logits (batch,) and the features (batch, …) of hidden block `layer`, as in the network inside."""
        return self(x, y, layer=layer)

    def features(self, x: Tensor, y: Tensor | None = None, *, layer: int) -> Tensor:
        """The features of `forward_with_features` alone, without what comes after them."""
        return self(x, y, layer=layer, stop=True)


class MLPDecoder(nn.Module):
    """A fully connected network whose output is reshaped to images (batch, channels, height, width)."""

    def __init__(self, net: MLP, shape_out: tuple[int, int, int]) -> None:
        super().__init__()
        self.net = net
        self.shape_out = shape_out

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """(batch, channels, height, width), any real values."""
        return self.net(z, y).unflatten(1, self.shape_out)


def build_encoder(
    spec: Spec,
    outputs: int,
    *,
    arch: str = "conv",
    width: int | None = None,
    depth: int = 2,
    max_width: int | None = None,
    norm: str = "none",
    first_norm: bool = True,
    activation: str = "relu",
    kernel: int = 5,
    min_size: int | None = None,
    hidden: int = 0,
    spectral: bool = False,
    classes: int | None = None,
) -> MLP | ConvEncoder:
    """A network from the Spec's data to (batch, outputs).

    Args:
        arch: "conv" or "mlp", for images; vectors have no neighbours to convolve and always get an MLP.
        width: conv: channels of the first convolution (None: 32). MLP: units of each hidden layer (None: 256).
        depth: MLP only: number of hidden layers of `width` units; the image's size decides for conv.
        max_width: conv only: most channels of any convolution. None: 256, or `width` if that is more.
        hidden: units of one more fully connected block before the head; 0 for none.
        kernel: conv only.
        min_size: conv only: the side at which halving stops. None: 4, or 2 for images smaller than 16, whose networks
            would otherwise have a single convolution.
        norm, first_norm, activation, spectral, classes: as in `ConvEncoder` and `MLP`. `classes` is not taken from
            the Spec: a recipe may leave labels out.

    Raises `InputError` for an unknown arch and whatever the networks refuse.

    >>> import torch
    >>> net = build_encoder(Spec("image", (1, 28, 28)), 2 * 16)
    >>> net(torch.zeros(4, 1, 28, 28)).shape
    torch.Size([4, 32])
    """
    if not _convolves(arch, spec):
        units = _hidden_units(width, depth) + ((hidden,) if whole("hidden", hidden, least=0) else ())
        return MLP(
            spec.size,
            units,
            outputs,
            activation=activation,
            norm=norm,
            first_norm=first_norm,
            spectral=spectral,
            classes=classes,
        )
    channels, widest = _conv_widths(width, max_width)
    return ConvEncoder(
        spec.shape,
        outputs,
        width=channels,
        max_width=widest,
        norm=norm,
        first_norm=first_norm,
        activation=activation,
        kernel=kernel,
        min_size=_min_size(min_size, spec),
        hidden=hidden,
        spectral=spectral,
        classes=classes,
    )


def build_decoder(
    spec: Spec,
    latent: int,
    *,
    outputs: int | None = None,
    arch: str = "conv",
    width: int | None = None,
    depth: int = 2,
    max_width: int | None = None,
    norm: str = "none",
    activation: str = "relu",
    kernel: int = 5,
    min_size: int | None = None,
    hidden: int = 0,
    spectral: bool = False,
    classes: int | None = None,
) -> MLP | MLPDecoder | ConvDecoder:
    """A network from codes (batch, latent) to the Spec's data, its last layer plain: no tanh, no sigmoid.

    Images come out as (batch, outputs, height, width), whichever the `arch`; vectors as (batch, outputs).

    Args:
        outputs: channels, or features of a vector, that come out. None: as many as the data has; a likelihood that
            needs more per value asks for more.
        hidden: units of one more fully connected block after the code; 0 for none.
        arch, width, depth, max_width, norm, activation, kernel, min_size, spectral, classes: as in `build_encoder`.

    Raises `InputError` as `build_encoder` does.

    >>> import torch
    >>> net = build_decoder(Spec("vector", (2,), layout="D"), 8, outputs=2 * 2)
    >>> net(torch.zeros(5, 8)).shape
    torch.Size([5, 4])
    """
    emitted = spec.shape[0] if outputs is None else whole("outputs", outputs)
    if not _convolves(arch, spec):
        units = ((hidden,) if whole("hidden", hidden, least=0) else ()) + _hidden_units(width, depth)
        values = emitted * (spec.size // spec.shape[0])
        mlp = MLP(latent, units, values, activation=activation, norm=norm, spectral=spectral, classes=classes)
        return mlp if spec.kind == "vector" else MLPDecoder(mlp, (emitted, spec.shape[1], spec.shape[2]))
    channels, widest = _conv_widths(width, max_width)
    return ConvDecoder(
        spec.shape,
        latent,
        outputs=emitted,
        width=channels,
        max_width=widest,
        norm=norm,
        activation=activation,
        kernel=kernel,
        min_size=_min_size(min_size, spec),
        hidden=hidden,
        spectral=spectral,
        classes=classes,
    )


def build_discriminator(
    spec: Spec,
    *,
    arch: str = "conv",
    width: int | None = None,
    depth: int = 2,
    max_width: int | None = None,
    norm: str = "none",
    first_norm: bool = False,
    activation: str = "leaky",
    kernel: int = 5,
    min_size: int | None = None,
    hidden: int = 0,
    spectral: bool = False,
    classes: int | None = None,
) -> Discriminator:
    """A network from the Spec's data to one logit each, (batch,). Arguments as in `build_encoder`; the first block is
    not normalised unless asked for, so that the discriminator sees the data's own scale (DCGAN).

    >>> import torch
    >>> net = build_discriminator(Spec("image", (3, 16, 12)), hidden=64)
    >>> logits, features = net.forward_with_features(torch.zeros(4, 3, 16, 12), layer=2)
    >>> logits.shape, features.shape
    (torch.Size([4]), torch.Size([4, 768]))
    """
    net = build_encoder(
        spec,
        1,
        arch=arch,
        width=width,
        depth=depth,
        max_width=max_width,
        norm=norm,
        first_norm=first_norm,
        activation=activation,
        kernel=kernel,
        min_size=min_size,
        hidden=hidden,
        spectral=spectral,
        classes=classes,
    )
    return Discriminator(net)


def _convolves(arch: str, spec: Spec) -> bool:
    if arch not in ARCHS:
        raise unknown("arch", arch, ARCHS)
    return arch == "conv" and spec.kind == "image"


def _min_size(min_size: int | None, spec: Spec) -> int:
    if min_size is not None:
        return min_size
    return 4 if max(spec.shape[1:]) >= 16 else 2


def _hidden_units(width: int | None, depth: int) -> tuple[int, ...]:
    units = MLP_WIDTH if width is None else whole("width", width)
    return (units,) * whole("depth", depth, least=0)


def _conv_widths(width: int | None, max_width: int | None) -> tuple[int, int]:
    channels = CONV_WIDTH if width is None else whole("width", width)
    return channels, max(256, channels) if max_width is None else max_width
