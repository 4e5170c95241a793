"""The papers' networks: parameter counts against sums written out by hand, and what their presets set."""

from __future__ import annotations

import pytest
import torch

from twofold import recipes
from twofold.errors import InputError
from twofold.overview import EXAMPLE, example
from twofold.recipe import optimizer_text
from twofold.spec import Spec


def built(name: str, spec: Spec | None = None):
    torch.manual_seed(0)
    return recipes.build(name, spec or example(name))


def count(net: torch.nn.Module) -> int:
    return sum(w.numel() for w in net.parameters())


def dense(*sizes: int) -> int:
    """Parameters of fully connected layers with biases."""
    return sum(a * b + b for a, b in zip(sizes[:-1], sizes[1:], strict=True))


def conv(*channels: int, kernel: int, norm: bool = True) -> int:
    """Convolutions: with BatchNorm's gain and shift instead of a bias, or with a bias; as many numbers per channel in
    one case as twice that in the other."""
    pairs = zip(channels[:-1], channels[1:], strict=True)
    return sum(a * b * kernel**2 + (2 * b if norm else b) for a, b in pairs)


def test_vae_paper():
    config, recipe = built("vae-paper", EXAMPLE)
    assert count(recipe.nets["encoder"]) == dense(784, 500, 40)
    assert count(recipe.nets["decoder"]) == dense(20, 500, 784)
    assert any(isinstance(m, torch.nn.Tanh) for m in recipe.nets.modules())
    assert not any(isinstance(m, torch.nn.ReLU) for m in recipe.nets.modules())
    assert optimizer_text(recipe.stages[0].game.players["encoder"].optimizer) == "Adagrad, lr 0.01"
    assert config.likelihood == "bernoulli"


def test_beta_vae_paper():
    config, recipe = built("beta-vae-paper", Spec("image", (1, 64, 64)))
    assert count(recipe.nets["encoder"]) == dense(4096, 1200, 1200, 20) == 6_381_620
    assert count(recipe.nets["decoder"]) == dense(10, 1200, 1200, 1200, 4096) == 7_814_896
    kinds = {name: {type(m) for m in recipe.nets[name].modules()} for name in ("encoder", "decoder")}
    assert torch.nn.ReLU in kinds["encoder"] and torch.nn.Tanh not in kinds["encoder"]
    assert torch.nn.Tanh in kinds["decoder"] and torch.nn.ReLU not in kinds["decoder"]
    assert (config.beta, config.latent) == (4.0, 10)
    assert optimizer_text(recipe.stages[0].game.players["decoder"].optimizer) == "Adagrad, lr 0.01"


def test_dcgan_paper():
    _, recipe = built("dcgan-paper", Spec("image", (3, 64, 64)))
    onto = dense(100, 1024 * 4 * 4) + 2 * 1024
    generator = onto + conv(1024, 512, 256, 128, kernel=5) + conv(128, 3, kernel=5, norm=False)
    critic = conv(3, 128, kernel=5, norm=False) + conv(128, 256, 512, 1024, kernel=5) + dense(1024 * 4 * 4, 1)
    assert count(recipe.nets["generator"]) == generator
    assert count(recipe.nets["discriminator"]) == critic


def test_vae_gan_paper():
    config, recipe = built("vae-gan-paper")
    encoder = conv(3, 64, 128, 256, kernel=5) + 256 * 8 * 8 * 1024 + 2 * 1024 + dense(1024, 2 * 128)
    onto = dense(128, 256 * 8 * 8) + 2 * 256
    decoder = onto + conv(256, 256, 128, 32, kernel=5) + conv(32, 3, kernel=5, norm=False)
    critic = conv(3, 32, kernel=5, norm=False) + conv(32, 128, 256, 256, kernel=5)
    critic += 256 * 8 * 8 * 512 + 2 * 512 + dense(512, 1)
    for name, parameters in {"encoder": encoder, "decoder": decoder, "discriminator": critic}.items():
        assert count(recipe.nets[name]) == parameters, name
    x = torch.rand(2, 3, 64, 64)
    logits, features = recipe.nets["discriminator"].forward_with_features(x, layer=config.feature_layer)
    assert torch.equal(recipe.nets["discriminator"].features(x, layer=config.feature_layer), features)
    assert logits.shape == (2,) and features.shape == (2, 256 * 8 * 8)
    # The layer is read before its BatchNorm: it is linear in what the block before gives.
    blocks = list(recipe.nets["discriminator"].layers)
    h = x
    for block in blocks[:3]:
        h, _ = block(h)
    assert torch.allclose(features, blocks[3].linear(h).flatten(1), atol=1e-5)
    assert recipe.nets["decoder"](torch.zeros(2, 128)).shape == (2, 3, 64, 64)
    assert config.gamma == pytest.approx(1e-6, rel=1e-5)
    assert optimizer_text(recipe.stages[0].game.players["decoder"].optimizer).startswith("RMSprop, lr 0.0003")


def test_factor_vae_paper():
    config, recipe = built("factor-vae-paper", Spec("image", (1, 64, 64)))
    maps = conv(1, 32, 32, 64, 64, kernel=4, norm=False)
    assert count(recipe.nets["encoder"]) == maps + dense(64 * 4 * 4, 128, 20)
    maps = conv(64, 64, 32, 32, 1, kernel=4, norm=False)
    assert count(recipe.nets["decoder"]) == dense(10, 128, 64 * 4 * 4) + maps
    assert count(recipe.nets["discriminator"]) == dense(10, *[1000] * 6, 1)
    assert config.gamma == 35.0


@pytest.mark.parametrize("name", ["vae-gan-paper", "alpha-gan-paper", "factor-vae-paper"])
def test_other_sizes_are_refused(name):
    with pytest.raises(InputError, match=r"for (images of )?64×64.*--size 64"):
        built(name, EXAMPLE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditional": True}, "take no labels"),
        ({"spectral": True}, "no spectral normalisation"),
        ({"norm": "none"}, "have BatchNorm"),
    ],
)
def test_what_the_vae_gan_papers_networks_do_not_have_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        recipes.build("vae-gan-paper", Spec("image", (3, 64, 64), classes=2), options)
