"""Gradients of convolutions as matrix products: against torch's own, in every layout, and only where they pay."""

from __future__ import annotations

import copy
import itertools
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from twofold import convolutions, recipes
from twofold.convolutions import as_products, pays
from twofold.game import begin, step
from twofold.spec import Spec

CPU = torch.device("cpu")
SIZES = tuple(itertools.product((1, 2, 3, 5), (1, 2, 3, 4), (1, 2, 3), (0, 1, 2)))


def convolution(
    dims: int, transposed: bool, inputs: int, outputs: int, kernel: int, stride: int, padding: int
) -> nn.Module:
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    return kind(inputs, outputs, kernel, stride, padding)


@contextmanager
def everywhere():
    """Products for every convolution in float32 or float64, and how often they were taken."""
    net = nn.Conv2d(1, 1, 1)
    net.weight.data = torch.zeros(convolutions.LARGE, 1, 1, 1)
    with (
        as_products(net, CPU, "float32"),
        mock.patch.object(convolutions, "pays", return_value=True),
        mock.patch.object(convolutions, "weight_gradient", wraps=convolutions.weight_gradient) as taken,
    ):
        yield taken


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_are_torchs_own_for_all_sizes(dims, transposed):
    torch.manual_seed(0)
    seen = 0
    for side, kernel, stride, padding in SIZES:
        if (side - 1) * stride - 2 * padding + kernel < 1 if transposed else side + 2 * padding < kernel:
            continue  # torch refuses it
        net = convolution(dims, transposed, 2, 3, kernel, stride, padding).double()
        x = torch.randn(2, 2, *[side] * dims, dtype=torch.float64, requires_grad=True)
        out = net(x)
        towards = torch.randn_like(out)
        wanted = (x, *net.parameters())
        own = torch.autograd.grad(out, wanted, towards)
        with everywhere() as taken:
            products = torch.autograd.grad(net(x), wanted, towards)
        assert taken.call_count == 1
        for a, b in zip(products, own, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
            assert a.is_contiguous()
        seen += 1
    assert seen > 50


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("side", [1, 3])
def test_they_can_be_differentiated_again(side, transposed):
    net = convolution(2, transposed, 2, 3, 3, 2, 1).double()
    x = torch.randn(2, 2, side, side, dtype=torch.float64, requires_grad=True)

    def out(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(net, {"weight": weight, "bias": bias}, x)

    with everywhere() as taken:
        assert torch.autograd.gradcheck(out, (x, net.weight, net.bias))
        assert torch.autograd.gradgradcheck(out, (x, net.weight, net.bias))
    assert taken.called


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_lies_as_its_weight_does(layout):
    net = nn.Conv2d(4, 6, 3, 2, 1).to(memory_format=layout)
    out = net(torch.randn(2, 4, 5, 5).to(memory_format=layout)).sum()
    with everywhere() as taken:
        gradient = torch.autograd.grad(out, net.weight)[0]  # as it is computed: `.grad` is laid out by autograd
    assert taken.called
    assert gradient.stride() == net.weight.stride()
    assert net.weight.is_contiguous(memory_format=layout)


def test_only_what_is_wanted_is_computed_and_what_products_cannot_do_is_torchs():
    x = torch.randn(2, 4, 3, 3)
    frozen, grouped, dilated = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 2, dilation=2)
    frozen.requires_grad_(False)
    for net in (frozen, grouped, dilated):
        inputs = x.clone().requires_grad_()
        own = torch.autograd.grad(net(inputs).square().sum(), inputs)[0]
        with everywhere() as taken:
            again = torch.autograd.grad(net(inputs).square().sum(), inputs)[0]
        assert not taken.called and torch.equal(own, again)


@pytest.mark.parametrize(
    ("dtype", "fast", "pixels", "stride", "faster"),
    [
        (torch.float32, True, (1, 1), [1, 1], True),
        (torch.float32, False, (1, 1), [2, 2], True),
        (torch.float32, True, (1, 2), [1, 1], False),
        (torch.bfloat16, True, (8, 8), [2, 2], True),
        (torch.bfloat16, True, (8, 8), [1, 1], False),
        (torch.bfloat16, True, (4, 4), [1, 1], True),
        (torch.bfloat16, True, (9, 8), [2, 2], False),
        (torch.bfloat16, False, (1, 1), [1, 1], False),
        (torch.float64, True, (1, 1), [1, 1], False),
    ],
)
def test_where_they_pay(monkeypatch, dtype, fast, pixels, stride, faster):
    monkeypatch.setattr(convolutions, "fast_bf16", lambda: fast)
    assert pays(torch.zeros(2, 3, *pixels, dtype=dtype), stride) is faster


def test_processors_that_multiply_by_tiles_are_left_alone(monkeypatch, tmp_path):
    for flags, fast in (("fpu avx512_bf16", True), ("fpu avx512_bf16 amx_bf16", False), ("fpu avx2", False)):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
        monkeypatch.setattr(convolutions, "PROCESSOR", tmp_path / "cpuinfo")
        assert convolutions.fast_bf16.__wrapped__() is fast
    monkeypatch.setattr(convolutions, "PROCESSOR", tmp_path / "none")
    assert convolutions.fast_bf16.__wrapped__() is False


def exchanged() -> bool:
    with mock.patch.object(convolutions, "pays", wraps=pays) as asked:
        nn.Conv2d(1, 1, 3)(torch.randn(1, 1, 3, 3)).sum().backward()
    return asked.called


def test_the_kernel_is_exchanged_while_somebody_trains_what_gains():
    small, large = nn.Conv2d(1, 1, 3), nn.Conv2d(128, 64, 4)
    text = nn.Embedding(1000, 1000)
    for nets, device, precision in (
        (small, CPU, "float32"),
        (text, CPU, "bf16"),
        (large, CPU, "fp16"),
        (large, torch.device("meta"), "float32"),
    ):
        with as_products(nets, device, precision):
            assert not exchanged()
    with as_products(large, CPU, "float32"):
        with as_products(large, CPU, "float32"):
            assert exchanged()
        assert exchanged()
    assert not exchanged()
    with pytest.raises(RuntimeError, match="broken"), as_products(large, CPU, "float32"):
        raise RuntimeError("broken step")
    assert not exchanged()


@pytest.mark.parametrize("name", ["vae-gan", "wgan-gp", "vqgan"])
def test_a_step_in_bf16_is_the_same_with_them_up_to_rounding(monkeypatch, name):
    """Both are off from the step in float32 by what bfloat16 costs; they are much nearer to each other."""
    monkeypatch.setattr(convolutions, "fast_bf16", lambda: True)
    spec = Spec("image", (1, 16, 16), layout="HW")
    own_options = {
        "vqgan": {"prior_width": 16, "prior_layers": 1, "perceptual": "none"},
        "wgan-gp": {"arch": "conv"},
    }
    options = {"width": 8, **own_options.get(name, {})}
    torch.manual_seed(0)
    first = recipes.build(name, spec, options)[1]
    x = torch.rand(8, 1, 16, 16) * 2 - 1

    def gradients(precision: str, products: bool) -> Tensor:
        game = copy.deepcopy(first).stages[0].game
        found: list[Tensor] = []
        for player in game.players.values():
            for w in player.net.parameters():
                w.register_post_accumulate_grad_hook(lambda w: found.append(w.grad.flatten().clone()))
        progress = begin(game)
        torch.manual_seed(0)
        with (
            as_products(game.nets if products else nn.ReLU(), CPU, precision),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            step(game, progress, lambda: {"x": x})
        return torch.cat(found)

    exact, own = gradients("float32", False), gradients("bf16", False)
    with mock.patch.object(convolutions, "weight_gradient", wraps=convolutions.weight_gradient) as taken:
        products = gradients("bf16", True)
    assert taken.called
    assert 10 * (own - products).norm() < (own - exact).norm()
