"""PatchGAN: what a logit sees, sizes, parameters."""

from __future__ import annotations

import pytest
import torch

from twofold.errors import InputError
from twofold.nets.patch import PatchDiscriminator, most_layers, receptive_field


@pytest.mark.parametrize(("layers", "field"), [(0, 1), (1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_exactly_its_patch(layers, field):
    """The published sizes, and where the gradient of one logit is not zero."""
    torch.manual_seed(0)
    net = PatchDiscriminator(1, width=2, layers=layers)
    x = torch.randn(1, 1, 128, 128, requires_grad=True)
    logits = net(x)
    row = logits.shape[2] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, row, row], x)
    seen = gradient[0, 0].abs().sum(1).nonzero().flatten()
    assert int(seen[-1] - seen[0]) + 1 == field == receptive_field(layers) == net.field


def test_parameters_of_the_70_pixel_network():
    """C64-C128-C256-C512 and the head: kernels 4×4, biases where there is no BatchNorm."""
    net = PatchDiscriminator(3, width=64, layers=3, norm="batch")
    convs = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    assert sum(w.numel() for w in net.parameters()) == convs + 64 + 1 + 2 * (128 + 256 + 512)
    assert PatchDiscriminator(3, layers=5).net[-1].in_channels == 512  # eight times the width at most


@pytest.mark.parametrize(("size", "layers"), [((5, 40), 0), ((6, 7), 1), ((12, 12), 2), ((24, 33), 3)])
def test_the_most_layers_that_fit(size, layers):
    assert most_layers(*size) == layers
    assert PatchDiscriminator(2, width=1, layers=layers)(torch.zeros(1, 2, *size)).numel() >= 1
    with pytest.raises(InputError, match=f"too small for {layers + 1} layers .* use at most {layers}"):
        PatchDiscriminator(2, width=1, layers=layers + 1)(torch.zeros(1, 2, *size))


def test_refuses_and_limits():
    with pytest.raises(InputError, match="layers is -1"):
        PatchDiscriminator(3, layers=-1)
    net = PatchDiscriminator(1, width=4, layers=1, spectral=True).train()
    for _ in range(30):
        net(torch.zeros(1, 1, 8, 8))
    norms = [torch.linalg.matrix_norm(m.weight.flatten(1), 2) for m in net.net if isinstance(m, torch.nn.Conv2d)]
    assert all(abs(norm - 1) < 0.05 for norm in norms)
