"""Networks: sizes, insides, labels, initial weights, and what they promise to autograd and the compiler."""

from __future__ import annotations

import copy
import doctest
import importlib
from functools import partial

import numpy as np
import pytest
import scipy.signal
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from twofold.errors import InputError
from twofold.nets import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    Discriminator,
    MLPDecoder,
    build_decoder,
    build_discriminator,
    build_encoder,
    call_together,
    dcgan_init,
    mixes_examples,
    pyramid,
    xavier_init,
)
from twofold.nets.layers import ACTIVATIONS, NORMS, norm_layer
from twofold.spec import Spec

IMAGE = Spec("image", (3, 12, 9))
VECTOR = Spec("vector", (5,), layout="D")
SHAPES = [(1, 28, 28), (3, 8, 256), (4, 17, 31), (2, 9, 8), (1, 65, 8), (3, 33, 64), (2, 1, 5), (1, 3, 3)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rand(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear_layers(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]


def small(kind: str, **options) -> nn.Module:
    """A tiny network of each encoder-like kind, for inputs (batch, 2, 9, 10)."""
    if kind == "mlp":
        return MLP(180, (6, 5), 3, **options)
    if kind == "conv":
        return ConvEncoder((2, 9, 10), 3, width=4, hidden=5, kernel=3, min_size=3, **options)
    return Discriminator(ConvEncoder((2, 9, 10), 1, width=4, hidden=5, kernel=3, min_size=3, **options))


def keep_input(kept: list[torch.Tensor], module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
    kept.append(inputs[0].clone())


KINDS = ("mlp", "conv", "discriminator")


# Sizes.


@given(st.integers(1, 256), st.integers(1, 256), st.integers(1, 12))
def test_pyramid_halves_what_is_large_and_nothing_else(height, width, least):
    sizes = pyramid(height, width, least)
    assert sizes[0] == (height, width)
    assert len(sizes) >= 2
    assert max(sizes[-1]) <= least
    for before, after in zip(sizes, sizes[1:], strict=False):
        assert after == tuple(-(-n // 2) if n > least else n for n in before)
    assert all(max(size) > least for size in sizes[:-1]) or len(sizes) == 2


def test_pyramid_of_known_sizes():
    assert pyramid(64, 64) == [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)]
    assert pyramid(8, 256)[1:] == [(4, 128), (4, 64), (4, 32), (4, 16), (4, 8), (4, 4)]
    assert pyramid(4, 3) == [(4, 3), (4, 3)]


@pytest.mark.parametrize(("arguments", "message"), [((8, 8, 0), "min_size is 0"), ((0, 8), "height is 0")])
def test_pyramid_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        pyramid(*arguments)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_encoder_and_decoder_walk_the_same_sizes(shape, kernel):
    sizes = pyramid(*shape[1:])
    encoder = ConvEncoder(shape, 6, width=4, max_width=8, kernel=kernel)
    decoder = ConvDecoder(shape, 5, outputs=7, width=4, max_width=8, kernel=kernel)
    seen: list[tuple[int, ...]] = []
    for layer in linear_layers(encoder) + linear_layers(decoder):
        if not isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape[2:])))
    assert encoder(rand(2, *shape)).shape == (2, 6)
    assert seen == sizes[1:]
    seen.clear()
    assert decoder(rand(2, 5)).shape == (2, 7, *shape[1:])
    assert seen == sizes[-2::-1]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 70), st.integers(1, 70), st.integers(1, 8))
def test_any_image_size_round_trips(channels, height, width, least):
    shape = (channels, height, width)
    x = ConvDecoder(shape, 2, width=1, max_width=2, min_size=least)(torch.zeros(1, 2))
    assert x.shape == (1, *shape)
    assert ConvEncoder(shape, 2, width=1, max_width=2, min_size=least)(x).shape == (1, 2)


def test_channels_double_up_to_the_limit_and_mirror():
    encoder = ConvEncoder((3, 64, 64), 1, width=8, max_width=20)
    decoder = ConvDecoder((3, 64, 64), 2, width=8, max_width=20)
    assert [m.out_channels for m in encoder.modules() if isinstance(m, nn.Conv2d)] == [8, 16, 20, 20]
    assert [m.in_channels for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)] == [20, 20, 16, 8]


def test_default_networks_for_28_by_28_have_the_parameters_of_the_formula():
    conv = 25 * 1 * 32 + 25 * 32 * 64 + 25 * 64 * 128
    encoder = build_encoder(Spec("image", (1, 28, 28)), 32)
    decoder = build_decoder(Spec("image", (1, 28, 28)), 16)
    assert sum(p.numel() for p in encoder.parameters()) == conv + (32 + 64 + 128) + (2048 * 32 + 32)
    assert sum(p.numel() for p in decoder.parameters()) == conv + (64 + 32 + 1) + (16 * 2048 + 2048)


# The computation itself, against numpy and scipy.


def test_mlp_is_the_formula():
    net = MLP(6, (4, 3), 2, activation="tanh").double()
    x = rand(5, 2, 3, dtype=torch.float64)
    h = x.numpy().reshape(5, 6)
    for layer in linear_layers(net)[:-1]:
        h = np.tanh(h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    expected = h @ net.head.weight.detach().numpy().T + net.head.bias.detach().numpy()
    np.testing.assert_allclose(net(x).detach().numpy(), expected, atol=1e-14)


def test_mlp_without_hidden_layers_is_linear():
    net = MLP(3, (), 2)
    a, b = rand(4, 3, seed=1), rand(4, 3, seed=2)
    torch.testing.assert_close(net((a + b) / 2), (net(a) + net(b)) / 2)
    assert net.blocks == 0


def test_mlp_labels_are_one_hot_columns_of_the_input():
    net = MLP(2, (4,), 3, classes=5)
    plain = MLP(7, (4,), 3)
    plain.load_state_dict(net.state_dict())
    x, y = rand(3, 2), torch.tensor([4, 0, 2])
    torch.testing.assert_close(net(x, y), plain(torch.cat([x, torch.eye(5)[y]], dim=1)), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 9, 10), (2, 5, 4)])
def test_first_convolution_is_a_strided_correlation(shape):
    net = ConvEncoder(shape, 1, width=3, kernel=5).double()
    x = rand(1, *shape, dtype=torch.float64)
    weight = linear_layers(net)[0].weight.detach().numpy()
    bias = linear_layers(net)[0].bias.detach().numpy()
    planes = [
        sum(scipy.signal.correlate2d(x[0, c].numpy(), weight[k, c], mode="same") for c in range(2))[
            :: 2 if shape[1] > 4 else 1, :: 2 if shape[2] > 4 else 1
        ]
        + bias[k]
        for k in range(3)
    ]
    _, features = net.forward_with_features(x, layer=1)
    np.testing.assert_allclose(features.detach().numpy(), np.stack(planes).reshape(1, -1), atol=1e-13)


def test_transposed_convolution_is_the_adjoint_of_the_convolution():
    """<down(x), y> = <x, up(y)>: with equal kernels and no biases the decoder's step is the encoder's transpose."""
    for side in (9, 10):
        down = linear_layers(ConvEncoder((1, side, side), 1, width=2).double())[0]
        up = ConvDecoder((1, side, side), 1, width=2).double().head
        # The decoder's last step mirrors the encoder's first.
        up.weight.data = down.weight.data
        x = rand(1, 1, side, side, dtype=torch.float64)
        y = rand(1, 2, 5, 5, seed=2, dtype=torch.float64)
        left = ((down(x) - down.bias[:, None, None]) * y).sum()
        right = (x * (up(y) - up.bias)).sum()
        torch.testing.assert_close(left, right)


def test_conv_labels_shift_the_first_convolution():
    """The same as one-hot planes sent through a 1×1 convolution at stride 2."""
    net = ConvEncoder((1, 9, 9), 2, width=4, classes=3, norm="batch")
    x, y = rand(2, 1, 9, 9), torch.tensor([2, 1])
    planes = torch.eye(3)[y][:, :, None, None].expand(2, 3, 9, 9)
    shift = nn.functional.conv2d(planes, net.label.weight[:, :, None, None], stride=2)
    expected = linear_layers(net)[0](x) + shift
    torch.testing.assert_close(net.forward_with_features(x, y, layer=1)[1], expected.flatten(1))


def test_decoder_labels_are_one_hot_columns_of_the_code():
    net = ConvDecoder((1, 9, 9), 2, width=4, classes=3)
    plain = ConvDecoder((1, 9, 9), 5, width=4)
    plain.load_state_dict(net.state_dict())
    z, y = rand(2, 2), torch.tensor([2, 1])
    torch.testing.assert_close(net(z, y), plain(torch.cat([z, torch.eye(3)[y]], dim=1)), rtol=0, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    references = {
        "relu": lambda v: np.maximum(v, 0),
        "leaky": lambda v: np.where(v > 0, v, 0.2 * v),
        "tanh": np.tanh,
        "elu": lambda v: np.where(v > 0, v, np.expm1(v)),
        "silu": lambda v: v / (1 + np.exp(-v)),
        "gelu": lambda v: v * 0.5 * (1 + scipy.special.erf(v / np.sqrt(2))),
        "softplus": lambda v: np.log1p(np.exp(v)),
    }
    net = MLP(1, (1,), 1, activation=activation).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.fill_(1.0 if weight.dim() == 2 else 0.0)
    v = np.linspace(-3, 3, 13)
    out = net(torch.from_numpy(v)[:, None])[:, 0].detach().numpy()
    np.testing.assert_allclose(out, references[activation](v), atol=1e-12)


# Normalisation.


def test_layer_norm_covers_all_features_and_positions_of_one_example():
    layer = norm_layer("layer", 6, spatial=True).double()
    out = layer(3 + 5 * rand(4, 6, 3, 2, dtype=torch.float64)).flatten(1)
    torch.testing.assert_close(out.mean(1), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(out.var(1, correction=0), torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("features", "groups"), [(1, 1), (3, 1), (4, 1), (6, 1), (8, 2), (12, 3), (32, 8), (128, 32), (256, 32)]
)
def test_groups_have_at_least_four_features(features, groups):
    assert norm_layer("group", features, spatial=False).num_groups == groups


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_only_batch_norm_mixes_examples(kind, norm):
    net = small(kind, norm=norm).double()
    x = rand(4, 2, 9, 10, dtype=torch.float64)
    other = torch.cat([x[:1], 5 + rand(3, 2, 9, 10, seed=2, dtype=torch.float64)])
    same = torch.allclose(net(x)[0], net(other)[0], atol=1e-12)
    assert mixes_examples(net) == (norm == "batch") == (not same)
    net.eval()
    assert torch.allclose(net(x)[0], net(other)[0], atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_first_norm_is_left_out_on_request(kind, norm):
    def norms(net):
        return sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)) for m in net.modules())

    with_first, without = small(kind, norm=norm), small(kind, norm=norm, first_norm=False)
    assert norms(with_first) == with_first.blocks
    assert norms(without) == without.blocks - 1
    assert isinstance(without.layers[0].norm, nn.Identity)


def test_decoder_normalises_everything_but_its_output():
    net = ConvDecoder((1, 16, 16), 3, width=4, norm="batch", hidden=6)
    assert all(not isinstance(block.norm, nn.Identity) for block in net.layers)
    assert isinstance(net.head, nn.ConvTranspose2d)
    assert list(net.children())[-1] is net.head


def test_batch_norm_makes_biases_superfluous_and_they_are_not_there():
    net = ConvEncoder((1, 16, 16), 3, width=4, norm="batch", hidden=6)
    assert all(block.linear.bias is None for block in net.layers)
    assert all(
        block.linear.bias is not None
        for block in ConvEncoder((1, 16, 16), 3, norm="batch", first_norm=False).layers[:1]
    )
    assert all(block.linear.bias is not None for block in ConvEncoder((1, 16, 16), 3, norm="layer").layers)


# Features.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_features_are_what_the_normalisation_receives_and_the_output_is_unchanged(kind, norm):
    net = small(kind, norm=norm)
    inner = net.net if kind == "discriminator" else net
    x = rand(3, 2, 9, 10)
    for layer in range(1, net.blocks + 1):
        received: list[torch.Tensor] = []
        hook = inner.layers[layer - 1].norm.register_forward_hook(partial(keep_input, received))
        output, features = net.forward_with_features(x, layer=layer)
        hook.remove()
        assert torch.equal(features, received[0].flatten(1))
        assert torch.equal(output, net(x))
        assert torch.equal(net.features(x, layer=layer), features)


@pytest.mark.parametrize("kind", KINDS)
def test_every_module_runs_once_with_or_without_features(kind):
    net = small(kind, norm="group", classes=3)
    leaves = [m for m in net.modules() if not list(m.children())]
    calls = {id(m): 0 for m in leaves}

    def count(module, inputs, output):
        calls[id(module)] += 1

    for leaf in leaves:
        leaf.register_forward_hook(count)
    x, y = rand(2, 2, 9, 10), torch.tensor([0, 2])
    net(x, y)
    assert set(calls.values()) == {1}
    net.forward_with_features(x, y, layer=2)
    assert set(calls.values()) == {2}


@pytest.mark.parametrize("kind", KINDS)
def test_features_run_nothing_behind_their_layer(kind):
    net = small(kind, norm="group", classes=3)
    inner, calls = net.net if kind == "discriminator" else net, []
    for module in (*inner.layers[1:], inner.head):
        module.register_forward_hook(lambda *_: calls.append(1))
    x, y = rand(2, 2, 9, 10), torch.tensor([0, 2])
    net.features(x, y, layer=1)
    assert not calls
    net(x, y)
    assert len(calls) == inner.blocks


def test_blocks_counts_convolutions_then_the_hidden_layer():
    assert ConvEncoder((1, 28, 28), 1).blocks == 3
    net = ConvEncoder((1, 28, 28), 1, hidden=7)
    assert net.blocks == 4
    shapes = [net.forward_with_features(rand(2, 1, 28, 28), layer=layer)[1].shape[1] for layer in (1, 2, 3, 4)]
    assert shapes == [32 * 14 * 14, 64 * 7 * 7, 128 * 4 * 4, 7]


def test_larsens_layer_has_the_size_the_released_code_compares():
    """256 maps of 8×8 after the third strided convolution at 64×64."""
    net = ConvEncoder((3, 64, 64), 1, width=64)
    assert net.forward_with_features(torch.zeros(1, 3, 64, 64), layer=3)[1].shape == (1, 256 * 8 * 8)


@pytest.mark.parametrize("layer", [0, -1, 4])
def test_a_layer_that_is_not_there(layer):
    net = ConvEncoder((1, 28, 28), 1)
    with pytest.raises(InputError, match=f"layer is {layer}; allowed: 1 to 3"):
        net.forward_with_features(rand(1, 1, 28, 28), layer=layer)


def test_a_network_without_blocks_has_no_layer():
    with pytest.raises(InputError, match="layer is 1; allowed: none"):
        MLP(3, (), 1).forward_with_features(rand(1, 3), layer=1)


# Labels.


@pytest.mark.parametrize("kind", [*KINDS, "decoder"])
def test_labels_matter_are_required_and_are_refused(kind):
    if kind == "decoder":
        conditional, plain, x = ConvDecoder((1, 9, 9), 4, classes=3), ConvDecoder((1, 9, 9), 4), rand(4, 4)
    else:
        conditional, plain, x = small(kind, classes=3), small(kind), rand(4, 2, 9, 10)
    one, two = conditional(x, torch.tensor([0, 1, 2, 0])), conditional(x, torch.tensor([0, 1, 2, 1]))
    torch.testing.assert_close(one[:3], two[:3])
    assert not torch.allclose(one[3], two[3])
    with pytest.raises(InputError, match="conditional on 3 classes; give labels y"):
        conditional(x)
    with pytest.raises(InputError, match="takes no labels"):
        plain(x, torch.zeros(4, dtype=torch.int64))
    for wrong in (torch.zeros(4), torch.zeros(4, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(InputError, match=r"y is .*give int64 of shape \(4,\)"):
            conditional(x, wrong)
    with pytest.raises(InputError, match=r"of shape \(4, 1\)"):
        conditional(x, torch.zeros(4, 1, dtype=torch.int64))
    for outside in (3, -1):
        with pytest.raises(RuntimeError):
            conditional(x, torch.tensor([0, 1, 2, outside]))


# Bad input.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(0, (3,), 1), "inputs is 0; give a whole number of at least 1"),
        (lambda: MLP(3, (3, 0), 1), "hidden is 0"),
        (lambda: MLP(3, (2.5,), 1), r"hidden is 2\.5"),
        (lambda: MLP(3, (3,), True), "outputs is True"),
        (lambda: MLP(3, (3,), 1, classes=0), "classes is 0"),
        (lambda: MLP(3, (3,), 1, activation="rleu"), "unknown activation 'rleu'; did you mean 'relu'"),
        (lambda: MLP(3, (), 1, activation="rleu"), "unknown activation"),
        (lambda: MLP(3, (3,), 1, norm="bach"), "unknown norm 'bach'; did you mean 'batch'"),
        (lambda: ConvEncoder((8, 8), 1), r"shape is \(8, 8\); give \(channels, height, width\)"),
        (lambda: ConvEncoder((1, 8, 0), 1), "shape is 0"),
        (lambda: ConvEncoder((1, 8, 8), 0), "outputs is 0"),
        (lambda: ConvEncoder((1, 8, 8), 1, kernel=4), "kernel is 4; give an odd number"),
        (lambda: ConvEncoder((1, 8, 8), 1, width=0), "width is 0"),
        (lambda: ConvEncoder((1, 8, 8), 1, width=512), "max_width is 256, below width 512; give at least 512"),
        (lambda: ConvEncoder((1, 8, 8), 1, hidden=-1), "hidden is -1; give a whole number of at least 0"),
        (lambda: ConvEncoder((1, 8, 8), 1, norm="instant"), "unknown norm 'instant'"),
        (lambda: ConvDecoder((1, 8, 8), 0), "latent is 0"),
        (lambda: ConvDecoder((1, 8, 8), 2, outputs=0), "outputs is 0"),
        (lambda: ConvDecoder((1, 8, 8), 2, kernel=2), "kernel is 2"),
        (lambda: ConvDecoder((1, 8, 8), 2, activation="sin"), "unknown activation 'sin'"),
        (lambda: Discriminator(MLP(3, (3,), 2)), "the network has 2 outputs; a discriminator has 1"),
        (lambda: build_encoder(IMAGE, 1, arch="cnov"), "unknown arch 'cnov'; did you mean 'conv'"),
        (lambda: build_encoder(VECTOR, 1, arch="auto"), "unknown arch 'auto'"),
        (lambda: build_encoder(VECTOR, 1, width=0), "width is 0"),
        (lambda: build_encoder(VECTOR, 1, depth=-1), "depth is -1"),
        (lambda: build_decoder(VECTOR, 1, outputs=0), "outputs is 0"),
        (lambda: build_decoder(VECTOR, 1, hidden=-2), "hidden is -2"),
        (lambda: build_discriminator(IMAGE, width=32, max_width=16), "max_width is 16, below width 32"),
        (lambda: MLP(6, (3,), 1)(torch.zeros(2, 5)), "has 5 values per example; this network takes 6"),
        (
            lambda: ConvEncoder((1, 8, 9), 1)(torch.zeros(2, 1, 9, 8)),
            r"the input is \(2, 1, 9, 8\); this network takes \(batch, 1, 8, 9\)",
        ),
        (
            lambda: ConvDecoder((1, 8, 8), 3)(torch.zeros(2, 4)),
            r"the code is \(2, 4\); this network takes \(batch, 3\)",
        ),
    ],
)
def test_bad_input_says_what_is_allowed(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Spectral normalisation.


def matrix(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight.detach()
    return (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).flatten(1)


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (partial(small, "mlp", spectral=True, classes=3), rand(4, 2, 9, 10)),
        (partial(small, "conv", spectral=True, classes=3), rand(4, 2, 9, 10)),
        (partial(ConvDecoder, (1, 9, 9), 6, width=4, hidden=5, spectral=True, classes=3), rand(4, 6)),
    ],
    ids=["mlp", "conv", "decoder"],
)
def test_spectral_normalisation_of_every_weight(net, x):
    net = net()
    y = torch.tensor([0, 1, 2, 0])
    for _ in range(60):
        net(x, y)
    net.eval()
    assert linear_layers(net)
    for layer in linear_layers(net):
        assert parametrize.is_parametrized(layer, "weight")
        assert torch.linalg.svdvals(matrix(layer))[0].item() == pytest.approx(1, abs=2e-2)


def test_spectral_mlp_is_one_lipschitz():
    net = MLP(8, (16, 16), 1, spectral=True, activation="leaky")
    xavier_init(net, gain=5.0, generator=torch.Generator().manual_seed(3))
    for _ in range(60):
        net(rand(2, 8))
    net.eval()
    a, b = rand(200, 8, seed=4), rand(200, 8, seed=5)
    slopes = (net(a) - net(b)).abs()[:, 0] / (a - b).norm(dim=1)
    assert slopes.max() <= 1.01


def test_without_spectral_nothing_is_parametrised():
    assert not any(parametrize.is_parametrized(layer) for layer in linear_layers(small("conv")))


def test_spectral_networks_copy_and_reload():
    net = small("conv", spectral=True, norm="group")
    net(rand(2, 2, 9, 10))
    net.eval()
    clone = copy.deepcopy(net)
    fresh = small("conv", spectral=True, norm="group").eval()
    fresh.load_state_dict(net.state_dict())
    x = rand(3, 2, 9, 10)
    assert torch.equal(net(x), clone(x))
    assert torch.equal(net(x), fresh(x))


# Calls on several batches.


def gradients(net: nn.Module, results, inputs) -> list[torch.Tensor]:
    loss = sum((k + 1) * r.square().sum() for k, r in enumerate(results))
    return list(torch.autograd.grad(loss, [*net.parameters(), *inputs]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["none", "layer", "group"])
@pytest.mark.parametrize("classes", [None, 3])
def test_one_call_equals_separate_calls(kind, norm, classes):
    net = small(kind, norm=norm, classes=classes, activation="tanh").double()
    xs = [rand(n, 2, 9, 10, seed=n, dtype=torch.float64).requires_grad_() for n in (2, 3, 4)]
    ys = [None if classes is None else torch.arange(len(x)) % 3 for x in xs]
    calls: list[int] = []
    hook = net.register_forward_hook(lambda m, i, o: calls.append(len(i[0])))
    together = call_together(net, *xs, ys=ys)
    assert calls == [9]
    hook.remove()
    apart = [net(x, y) for x, y in zip(xs, ys, strict=True)]
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for a, b in zip(gradients(net, together, xs), gradients(net, apart, xs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_one_call_through_a_method_with_features():
    net = small("discriminator", norm="group", classes=3).double()
    xs = [rand(n, 2, 9, 10, seed=n, dtype=torch.float64) for n in (2, 3)]
    ys = [torch.tensor([0, 1]), torch.tensor([2, 1, 0])]
    together = call_together(net, *xs, ys=ys, method=partial(net.forward_with_features, layer=2))
    assert len(together) == 2
    for (logits, features), x, y in zip(together, xs, ys, strict=True):
        expected_logits, expected_features = net.forward_with_features(x, y, layer=2)
        torch.testing.assert_close(logits, expected_logits, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(features, expected_features, rtol=1e-10, atol=1e-12)


def test_batch_norm_keeps_real_and_fake_apart_in_training_and_joins_them_in_eval():
    net = small("conv", norm="batch").double()
    reference = copy.deepcopy(net)
    real, fake = rand(4, 2, 9, 10, dtype=torch.float64), 3 + rand(5, 2, 9, 10, seed=2, dtype=torch.float64)
    calls: list[int] = []
    net.register_forward_hook(lambda m, i, o: calls.append(len(i[0])))
    a, b = call_together(net, real, fake)
    assert calls == [4, 5]
    assert torch.equal(a, reference(real)) and torch.equal(b, reference(fake))
    for name, buffer in reference.named_buffers():
        assert torch.equal(buffer, net.get_buffer(name))
    assert not torch.allclose(a, copy.deepcopy(reference)(torch.cat([real, fake]))[:4])
    calls.clear()
    net.eval()
    reference.eval()
    a, b = call_together(net, real, fake)
    assert calls == [9]
    torch.testing.assert_close(a, reference(real), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(b, reference(fake), rtol=1e-10, atol=1e-12)


def test_layers_that_mix_can_say_so_and_statistics_without_memory_mix_in_eval():
    class BatchSpread(nn.Module):
        mixes_examples = True

        def forward(self, x):
            return x / x.std()

    for net in (nn.Sequential(BatchSpread()), nn.BatchNorm1d(2, track_running_stats=False)):
        net.eval()
        assert mixes_examples(net)
        a, b = call_together(net, rand(3, 2), 9 * rand(4, 2, seed=2))
        torch.testing.assert_close(a, net(rand(3, 2)))
        torch.testing.assert_close(b, net(9 * rand(4, 2, seed=2)))
    assert not mixes_examples(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2), nn.InstanceNorm1d(2)))


def test_call_together_refuses():
    net = nn.Linear(2, 1)
    x, y = torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match="given no batches"):
        call_together(net)
    with pytest.raises(InputError, match="given 1 ys for 2 batches"):
        call_together(net, x, x, ys=[y])
    with pytest.raises(InputError, match="ys for 1 of 2 batches; give all or none"):
        call_together(net, x, x, ys=[y, None])


# Initial weights.


@pytest.mark.parametrize("spectral", [False, True])
def test_dcgan_init(spectral):
    net = ConvEncoder((3, 32, 32), 1, norm="batch", first_norm=False, spectral=spectral, hidden=40)
    net.eval()
    dcgan_init(net, generator=torch.Generator().manual_seed(0))
    assert not any(module.training for module in net.modules())
    for layer in linear_layers(net):
        weight = layer.parametrizations.weight.original if spectral else layer.weight
        spread = 0.02 / (2 * weight.numel()) ** 0.5
        assert abs(weight.std().item() - 0.02) < 5 * spread
        assert abs(weight.mean().item()) < 5 * 0.02 / weight.numel() ** 0.5
        assert layer.bias is None or not layer.bias.any()
    gains = torch.cat([m.weight for m in net.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))])
    assert abs(gains.mean().item() - 1) < 5 * 0.02 / len(gains) ** 0.5
    assert abs(gains.std().item() - 0.02) < 0.004


def test_init_finds_the_singular_vectors_of_the_new_weight():
    """Negative control: filling `weight` itself reaches nothing under spectral normalisation."""
    net = MLP(40, (30,), 20, spectral=True)
    before = {name: p.clone() for name, p in net.named_parameters()}
    for layer in linear_layers(net):
        with torch.no_grad():
            nn.init.normal_(layer.weight, 0.0, 0.02)
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())
    dcgan_init(net, generator=torch.Generator().manual_seed(0))
    net.eval()
    for layer in linear_layers(net):
        assert torch.linalg.svdvals(layer.weight.detach())[0].item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("init", [dcgan_init, xavier_init])
def test_init_repeats_under_a_seed_and_leaves_the_global_generator_alone(init):
    nets = [ConvDecoder((1, 16, 16), 4, width=8, norm="batch") for _ in range(3)]
    state = torch.random.get_rng_state()
    for net, seed in zip(nets, (7, 7, 8), strict=True):
        init(net, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(state, torch.random.get_rng_state())
    one, two, three = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_xavier_init_has_glorots_bound_and_variance():
    net = ConvDecoder((3, 16, 16), 40, width=16, norm="batch")
    xavier_init(net, gain=2.0, generator=torch.Generator().manual_seed(0))
    for layer in linear_layers(net):
        area = 1 if layer.weight.dim() == 2 else 25
        bound = 2.0 * (6 / (area * sum(layer.weight.shape[:2]))) ** 0.5
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not layer.bias.any() if layer.bias is not None else True
    assert all(
        torch.equal(m.weight, torch.ones(m.num_features)) for m in net.modules() if isinstance(m, nn.BatchNorm2d)
    )


def test_mlp_takes_an_init():
    a, b = (MLP(4, (8,), 2, init=partial(xavier_init, generator=torch.Generator().manual_seed(1))) for _ in range(2))
    assert torch.equal(a.head.weight, b.head.weight)
    assert not a.head.bias.any()


# What autograd, memory formats and the compiler may rely on.


@pytest.mark.parametrize("norm", ["none", "layer", "group", "batch"])
def test_second_derivatives_of_the_convolutional_encoder(norm):
    net = ConvEncoder((1, 5, 6), 1, width=4, kernel=3, norm=norm, hidden=4, activation="tanh").double()
    x = rand(2, 1, 5, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(net, (x,))
    assert torch.autograd.gradgradcheck(net, (x,))


@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("activation", ["relu", "leaky"])
def test_gradient_penalty_reaches_every_weight_and_agrees_with_finite_differences(spectral, activation):
    net = ConvEncoder(
        (1, 9, 8), 1, width=4, kernel=3, norm="layer", activation=activation, spectral=spectral, classes=2
    )
    net = net.double()
    x, y = rand(3, 1, 9, 8, dtype=torch.float64).requires_grad_(), torch.tensor([0, 1, 1])
    for _ in range(30 if spectral else 0):
        net(x, y)
    # Eval mode: a forward pass in training mode moves the spectral estimate, and a difference of two would see it.
    net.eval()

    def penalty() -> torch.Tensor:
        (slope,) = torch.autograd.grad(net(x, y).sum(), x, create_graph=True)
        return (slope.flatten(1).norm(dim=1) - 1).square().mean()

    weights = [p for p in net.parameters() if p.dim() > 1]
    computed = torch.autograd.grad(penalty(), weights, allow_unused=True)
    assert all(g is not None and g.isfinite().all() for g in computed)
    assert computed[0].abs().max() > 0
    weight, step = weights[0], 1e-6
    for index in [(0, 0, 1, 1), (2, 0, 0, 2)]:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[index] += sign * step
            values.append(penalty().item())
            with torch.no_grad():
                weight[index] -= sign * step
        assert computed[0][index].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("norm", NORMS)
def test_channels_last_gives_the_same_numbers(norm):
    encoder = ConvEncoder((3, 9, 10), 4, width=4, norm=norm, hidden=5)
    decoder = ConvDecoder((3, 9, 10), 4, width=4, norm=norm)
    x, z = rand(4, 3, 9, 10), rand(4, 4)
    expected = encoder.forward_with_features(x, layer=2), decoder(z)
    encoder.to(memory_format=torch.channels_last)
    decoder.to(memory_format=torch.channels_last)
    got = encoder.forward_with_features(x.to(memory_format=torch.channels_last), layer=2), decoder(z)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_into_one_graph(kind):
    net = small(kind, norm="layer", classes=3)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    x, y = rand(3, 2, 9, 10), torch.tensor([0, 1, 2])
    torch.testing.assert_close(compiled(x, y), net(x, y))
    torch.testing.assert_close(compiled(x, y, layer=1), net.forward_with_features(x, y, layer=1))


def test_decoder_compiles_into_one_graph():
    net = ConvDecoder((2, 9, 10), 4, width=4, classes=3, norm="group")
    z, y = rand(3, 4), torch.tensor([0, 1, 2])
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(z, y), net(z, y))


def test_runs_under_bfloat16_autocast():
    net = build_discriminator(IMAGE, width=4, classes=2, norm="group", hidden=4)
    x, y = rand(2, 3, 12, 9), torch.tensor([0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x, y)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), net(x, y), atol=0.05, rtol=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_cpu_numbers():
    for net, x in (
        (small("conv", norm="group", classes=3), rand(4, 2, 9, 10)),
        (small("mlp", classes=3), rand(4, 180)),
    ):
        y = torch.tensor([0, 1, 2, 0])
        expected = net(x, y)
        torch.testing.assert_close(net.cuda()(x.cuda(), y.cuda()).cpu(), expected, rtol=1e-2, atol=1e-3)


def test_an_autoencoder_of_these_parts_learns():
    encoder = build_encoder(Spec("image", (1, 9, 8)), 4, width=8)
    decoder = build_decoder(Spec("image", (1, 9, 8)), 4, width=8)
    x = rand(8, 1, 9, 8)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (decoder(encoder(x)) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


# Networks from a Spec.


def test_images_get_convolutions_and_vectors_get_mlps():
    assert isinstance(build_encoder(IMAGE, 4), ConvEncoder)
    assert isinstance(build_decoder(IMAGE, 4), ConvDecoder)
    assert isinstance(build_discriminator(IMAGE).net, ConvEncoder)
    for arch in ("conv", "mlp"):
        assert isinstance(build_encoder(VECTOR, 4, arch=arch), MLP)
        assert isinstance(build_decoder(VECTOR, 4, arch=arch), MLP)
        assert isinstance(build_discriminator(VECTOR, arch=arch).net, MLP)


@pytest.mark.parametrize("spec", [IMAGE, VECTOR, Spec("vector", (1,), layout="D"), Spec("image", (4, 8, 21))])
@pytest.mark.parametrize("arch", ["conv", "mlp"])
@pytest.mark.parametrize("classes", [None, 3])
def test_shapes_from_a_spec(spec, arch, classes):
    options = {"arch": arch, "width": 4, "hidden": 5, "classes": classes}
    y = None if classes is None else torch.tensor([0, 2])
    x, z = rand(2, *spec.shape), rand(2, 3)
    assert build_encoder(spec, 6, **options)(x, y).shape == (2, 6)
    assert build_decoder(spec, 3, **options)(z, y).shape == x.shape
    doubled = (2 * spec.shape[0], *spec.shape[1:])
    assert build_decoder(spec, 3, outputs=2 * spec.shape[0], **options)(z, y).shape == (2, *doubled)
    discriminator = build_discriminator(spec, **options)
    assert discriminator(x, y).shape == (2,)
    assert discriminator(x[:1], None if y is None else y[:1]).shape == (1,)
    logits, features = discriminator.forward_with_features(x, y, layer=discriminator.blocks)
    assert logits.shape == (2,) and features.shape == (2, 5)


def test_mlps_for_images_are_larsens():
    """Two layers of 1024 with BatchNorm, as for MNIST."""
    net = build_encoder(Spec("image", (1, 28, 28)), 128, arch="mlp", width=1024, norm="batch")
    assert [layer.out_features for layer in linear_layers(net)] == [1024, 1024, 128]
    decoder = build_decoder(Spec("image", (1, 28, 28)), 64, arch="mlp", width=1024, depth=2)
    assert isinstance(decoder, MLPDecoder)
    assert [layer.out_features for layer in linear_layers(decoder)] == [1024, 1024, 784]


def test_mlp_decoder_is_its_mlp_reshaped():
    decoder = build_decoder(IMAGE, 4, arch="mlp", width=8, outputs=6)
    z = rand(2, 4)
    torch.testing.assert_close(decoder(z), decoder.net(z).reshape(2, 6, 12, 9), rtol=0, atol=0)


def test_hidden_is_next_to_the_code_in_every_network():
    def sizes(net):
        return [layer.out_features for layer in linear_layers(net)]

    assert sizes(build_encoder(VECTOR, 3, width=7, depth=2, hidden=4)) == [7, 7, 4, 3]
    assert sizes(build_decoder(VECTOR, 3, width=7, depth=2, hidden=4)) == [4, 7, 7, 5]
    assert sizes(build_discriminator(VECTOR, depth=1)) == [256, 1]
    linear = [layer for layer in linear_layers(build_encoder(IMAGE, 3, hidden=4)) if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [4, 3]


def test_widths_follow_the_arch():
    def first(net):
        return linear_layers(net)[0].weight.shape[0]

    assert first(build_encoder(IMAGE, 1)) == 32
    assert first(build_encoder(IMAGE, 1, arch="mlp")) == 256
    assert first(build_encoder(VECTOR, 1)) == 256
    wide = build_encoder(Spec("image", (1, 32, 32)), 1, width=300)
    assert [m.out_channels for m in wide.modules() if isinstance(m, nn.Conv2d)] == [300, 300, 300]


def test_a_discriminators_input_layer_is_not_normalised_unless_asked():
    assert isinstance(build_discriminator(IMAGE, norm="batch").net.layers[0].norm, nn.Identity)
    assert isinstance(build_discriminator(IMAGE, norm="batch", first_norm=True).net.layers[0].norm, nn.BatchNorm2d)
    assert isinstance(build_discriminator(IMAGE).net.layers[0].activation, nn.LeakyReLU)


@pytest.mark.parametrize("module", ["build", "conv", "init", "layers", "mlp", "norm"])
def test_examples_in_the_docs_run(module):
    failed, _ = doctest.testmod(importlib.import_module(f"twofold.nets.{module}"))
    assert failed == 0
