"""Starting weights, drawn from a given generator. Constructors leave torch's defaults; recipes call these."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

_POWER_ITERATIONS = 15
"""As many as torch's spectral_norm takes when it is attached."""


def dcgan_init(net: nn.Module, *, std: float = 0.02, generator: torch.Generator | None = None) -> None:
    """Weights of convolutions and fully connected layers from N(0, std²), gains of BatchNorm from N(1, std²), all
    their biases 0 (Radford et al. 2016, §4; the gain as in the authors' code). In place."""
    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            nn.init.normal_(module.weight, 1.0, std, generator=generator)
            nn.init.zeros_(module.bias)
    for layer in _linear_layers(net):
        _start(layer, lambda weight: nn.init.normal_(weight, 0.0, std, generator=generator))


def xavier_init(net: nn.Module, *, gain: float = 1.0, generator: torch.Generator | None = None) -> None:
    """Weights of convolutions and fully connected layers from U(-a, a) with a = gain·√(6 / (fan in + fan out))
    (Glorot & Bengio 2010, eq. 16), their biases 0. Normalisation layers stay as they are. In place."""
    for layer in _linear_layers(net):
        _start(layer, lambda weight: nn.init.xavier_uniform_(weight, gain, generator=generator))


def _linear_layers(net: nn.Module) -> Iterator[_ConvNd | nn.Linear]:
    return (module for module in net.modules() if isinstance(module, (_ConvNd, nn.Linear)))


def _start(layer: _ConvNd | nn.Linear, fill: Callable[[Tensor], Tensor]) -> None:
    """Fill a layer's weight in place and set its bias to 0.

    Under spectral normalisation `weight` is computed, and filling it would reach nothing: the parameter is the
    original behind it. Its singular vectors are then found anew, or the first passes would divide by the old weight's.
    """
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if not parametrize.is_parametrized(layer, "weight"):
        fill(layer.weight)
        return
    behind = layer.get_submodule("parametrizations.weight")
    fill(behind.get_parameter("original"))
    was_training = behind.training
    behind.train()
    with torch.no_grad():
        for _ in range(_POWER_ITERATIONS):
            behind()
    behind.train(was_training)
