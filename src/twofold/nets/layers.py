"""What every network here is made of: activations, normalisation, labels, and blocks whose insides can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from twofold.errors import InputError, unknown

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": partial(nn.LeakyReLU, 0.2),
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}
NORMS = ("none", "batch", "layer", "group")
SPATIAL_NORMS = (*NORMS, "instance")
"""What normalises maps."""


def whole(name: str, value: int, *, least: int = 1) -> int:
    """`value`, if it is a whole number of at least `least`; otherwise an `InputError` that says what `name` may be."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}; give a whole number of at least {least}")
    return value


def activation_layer(name: str) -> nn.Module:
    """The activation of that name ("leaky" has slope 0.2 below zero), never in place: a block hands out what comes
    before it."""
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def norm_layer(name: str, features: int, *, spatial: bool) -> nn.Module:
    """The normalisation of that name for (batch, features), or (batch, features, height, width) if `spatial`.

    "batch" normalises each feature over the batch (and positions), so an example's output depends on its neighbours.
    "layer" normalises each example over all features and positions, with one gain and bias per feature (the
    normalisation that WGAN-GP's critic may use). "group" does so within groups of features: the most groups, up to
    32, that divide `features` with at least 4 in each. "instance" normalises each feature of each example over its
    positions, without gain or bias (Ulyanov et al. 2016); it needs positions.
    """
    if name not in (SPATIAL_NORMS if spatial else NORMS):
        raise unknown("norm", name, SPATIAL_NORMS if spatial else NORMS)
    if name == "none":
        return nn.Identity()
    if name == "batch":
        return nn.BatchNorm2d(features) if spatial else nn.BatchNorm1d(features)
    if name == "instance":
        return nn.InstanceNorm2d(features)
    return nn.GroupNorm(_groups(features) if name == "group" else 1, features)


def _groups(features: int) -> int:
    return max((n for n in range(1, 33) if features % n == 0 and features // n >= 4), default=1)


def limited(layer: nn.Module, spectral: bool) -> nn.Module:
    """`layer`, its weight divided by an estimate of its largest singular value if `spectral` (Miyato et al. 2018).

    A convolution's weight is taken as the matrix (its outputs × everything else), as in the paper; that is not the
    norm of the convolution as an operator. Each call in training mode refines the estimate by one power iteration.
    """
    return spectral_norm(layer) if spectral else layer


class Projection(nn.Module):
    """A linear map, as `nn.Linear` and with its first weights, but with the weight stored as (inputs, outputs).

    One row of input, a step of decoding one sequence, takes as long as reading the weight. It is the sum of the
    weight's rows, each times one input, and on a CPU the kernel that adds up rows of an embedding reads ahead: weights
    of a megabyte come from memory in a half to a third of the time that BLAS's products with a vector take.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        first = nn.Linear(inputs, outputs, bias=bias)
        self.inputs = inputs
        self.weight = nn.Parameter(first.weight.detach().t().contiguous())
        self.register_parameter("bias", first.bias)
        self._bag = torch.arange(inputs, device="cpu"), torch.zeros(1, dtype=torch.int64, device="cpu")

    def forward(self, h: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if torch.is_grad_enabled() or h.numel() != self.inputs or not h.is_cpu or h.dtype != weight.dtype:
            return F.linear(h, weight.t(), bias)
        rows, begins = self._bag  # one bag, of all rows of the weight
        out = F.embedding_bag(rows, weight, begins, mode="sum", per_sample_weights=h.reshape(-1))
        if bias is not None:
            out += bias
        return out.view(*h.shape[:-1], -1)


class Block(nn.Module):
    """A linear map (fully connected or convolution), normalisation, activation.

    Returns what comes out at the end, and the linear map's output before normalisation: the features that Larsen et
    al. 2016 compare (their Dis_l).
    """

    def __init__(self, linear: nn.Module, norm: nn.Module, activation: str, *, flat: bool = False) -> None:
        super().__init__()
        self.linear = linear
        self.norm = norm
        self.activation = activation_layer(activation)
        self.flat = flat

    def forward(self, h: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        before = self.linear(h.flatten(1) if self.flat else h)
        if shift is not None:
            before = before + shift
        return self.activation(self.norm(before)), before


def linear_block(inputs: int, outputs: int, *, norm: str, activation: str, spectral: bool = False) -> Block:
    """A fully connected block; flattens its input. Has no bias where batch normalisation would remove it."""
    linear = nn.Linear(inputs, outputs, bias=norm != "batch")
    return Block(limited(linear, spectral), norm_layer(norm, outputs, spatial=False), activation, flat=True)


def through(
    layers: Iterable[nn.Module], h: Tensor, *, layer: int | None = None, shift: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Run blocks in order: the last one's output, and the flattened features of block `layer` (from 1) if asked for.

    `shift` is added in the first block, before its normalisation.
    """
    features = None
    for number, block in enumerate(layers, 1):
        h, before = block(h, shift if number == 1 else None)
        if number == layer:
            features = before.flatten(1)
    return h, features


def check_layer(layer: int | None, blocks: int) -> None:
    """Raise `InputError` unless `layer` is None or counts one of the network's hidden blocks."""
    if layer is None or 1 <= layer <= blocks:
        return
    allowed = f"1 to {blocks}" if blocks else "none, as this network has no hidden blocks"
    raise InputError(f"layer is {layer}; allowed: {allowed}")


def one_hot(y: Tensor | None, classes: int | None, *, like: Tensor) -> Tensor | None:
    """Labels (batch,) int64 as (batch, classes) in the dtype of `like`; None for a network without classes.

    Raises `InputError` if labels are missing, not expected, or not one int64 per example of `like`. A label outside
    0 … classes - 1 is torch's error on a CPU and a device assertion on CUDA: looking at values here would make every
    training step wait for the device.
    """
    if classes is None:
        if y is not None:
            raise InputError("this network takes no labels (classes=None), but y was given; leave y out")
        return None
    if y is None:
        raise InputError(f"this network is conditional on {classes} classes; give labels y, int64 of shape (batch,)")
    if y.dtype != torch.int64 or y.shape != like.shape[:1]:
        raise InputError(f"y is {y.dtype} of shape {tuple(y.shape)}; give int64 of shape ({like.shape[0]},)")
    return F.one_hot(y, classes).to(like.dtype)
