"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from twofold.errors import InputError
from twofold.nets.layers import activation_layer, check_layer, limited, linear_block, one_hot, through, whole


class MLP(nn.Module):
    """A multilayer perceptron from (batch, …) with `inputs` values per example to (batch, outputs), its last layer
    plain.

    Labels enter one-hot, concatenated to the input.

    Args:
        inputs: values per example; the input is flattened.
        hidden: units of each hidden block; empty for a linear map.
        outputs: values per example that come out.
        activation: "relu", "leaky" (slope 0.2), "tanh", "elu", "silu", "gelu" or "softplus".
        norm: "none", "batch", "layer" or "group", before each activation.
        first_norm: whether the first hidden block is normalised too.
        spectral: divide every weight by its largest singular value.
        classes: number of labels; None for a network without labels.
        init: called once on the finished network, e.g. `xavier_init`; None keeps torch's default weights.

    Raises `InputError` for sizes that are not whole numbers ≥ 1, an unknown activation or norm, an input of another
    size, and labels that are missing or not expected.

    >>> net = MLP(784, (200, 200), 2 * 50, activation="tanh")
    >>> net(torch.zeros(8, 1, 28, 28)).shape
    torch.Size([8, 100])
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        activation: str = "relu",
        norm: str = "none",
        first_norm: bool = True,
        spectral: bool = False,
        classes: int | None = None,
        init: Callable[[nn.Module], object] | None = None,
    ) -> None:
        super().__init__()
        self.inputs = whole("inputs", inputs)
        self.outputs = whole("outputs", outputs)
        self.classes = None if classes is None else whole("classes", classes)
        activation_layer(activation)
        sizes = [inputs + (classes or 0), *(whole("hidden", units) for units in hidden)]
        self.layers = nn.ModuleList()
        for number, (before, after) in enumerate(pairwise(sizes), 1):
            kind = norm if first_norm or number > 1 else "none"
            self.layers.append(linear_block(before, after, norm=kind, activation=activation, spectral=spectral))
        self.head = limited(nn.Linear(sizes[-1], outputs), spectral)
        if init is not None:
            init(self)

    @property
    def blocks(self) -> int:
        """Number of hidden blocks: the largest `layer` of `forward_with_features`."""
        return len(self.layers)

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, layer: int | None = None, stop: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(batch, outputs); with a `layer`, what `forward_with_features` returns, and if it is to `stop` there, what
        `features` does."""
        check_layer(layer, self.blocks)
        x = x.flatten(1)
        if x.shape[1] != self.inputs:
            raise InputError(f"the input has {x.shape[1]} values per example; this network takes {self.inputs}")
        label = one_hot(y, self.classes, like=x)
        layers = self.layers[:layer] if stop else self.layers
        h, features = through(layers, x if label is None else torch.cat([x, label], dim=1), layer=layer)
        if stop and features is not None:
            return features
        output = self.head(h)
        return output if features is None else (output, features)

    def features(self, x: Tensor, y: Tensor | None = None, *, layer: int) -> Tensor:
        """The features of `forward_with_features` alone, without what comes after them."""
        return self(x, y, layer=layer, stop=True)

    def forward_with_features(self, x: Tensor, y: Tensor | None = None, *, layer: int) -> tuple[Tensor, Tensor]:
        """The output and, from the same pass, hidden block `layer`'s (1 … blocks) linear output before its
        normalisation, (batch, units). Raises `InputError` for another `layer`."""
        return self(x, y, layer=layer)
