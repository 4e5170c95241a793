"""InfoGAN: its routing, its codes, the bound on clusters with its control, the MNIST network, refusals (card D11)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from twofold import recipes
from twofold.errors import InputError
from twofold.game import State, begin, step
from twofold.model import Model
from twofold.overview import EXAMPLE, show
from twofold.recipes.infogan import Codes
from twofold.spec import Spec

IMAGE = Spec("image", (1, 8, 8), layout="HW")
VECTOR = Spec("vector", (2,), layout="D", dtype="float32")


def build(spec: Spec = IMAGE, seed: int = 0, **options):
    torch.manual_seed(seed)
    return recipes.build("infogan", spec, {"latent": 3, "width": 8, "hidden": 8, **options})[1]


def test_published_routing():
    """systems-images §1: G and trunk adv + λ·MI, the heads one each; the bound is maximised, hence -λ."""
    for information in (1.0, 0.5):
        d, g = show("infogan", options={"information": information})["stages"][0]["phases"]
        assert {t["name"]: t["to"] for t in d["terms"]} == {
            "adversarial_discriminator": {"trunk": 1.0, "discriminator": 1.0},
            "information_discriminator": {"trunk": -information, "posterior": -information},
        }
        assert {t["name"]: t["to"] for t in g["terms"]} == {
            "adversarial_generator": {"generator": 1.0},
            "information_generator": {"generator": -information},
        }


def test_codes_are_drawn_from_their_prior():
    codes = Codes(4, "uniform", 2, 3, 2, 1.0)
    z = codes.draw(20_000, like=torch.zeros(1), generator=torch.Generator().manual_seed(0))
    assert z.shape == (20_000, codes.size) == (20_000, 4 + 2 * 3 + 2)
    one_hot, uniform = codes.split(z[:, 4:])
    assert torch.equal(one_hot.sum(2), torch.ones(20_000, 2)) and set(one_hot.unique().tolist()) == {0.0, 1.0}
    assert (one_hot.mean(0) - 1 / 3).abs().max() < 0.02
    first, second = one_hot.argmax(2).T
    joint = torch.stack([(first == a) & (second == b) for a in range(3) for b in range(3)]).float().mean(1)
    assert (joint - 1 / 9).abs().max() < 0.01  # independent
    assert uniform.abs().max() <= 1 and uniform.var(0) == pytest.approx(torch.full((2,), 1 / 3), abs=0.01)


def test_the_bound_reads_the_codes_that_made_the_example():
    codes = Codes(1, "normal", 2, 5, 3, 0.5)
    z = codes.draw(6, like=torch.zeros(1, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    one_hot, uniform = codes.split(z[:, 1:])
    told = torch.cat([30 * one_hot.flatten(1), uniform], 1)
    categorical, continuous = codes.information(told, z)
    torch.testing.assert_close(categorical, torch.full((6,), 2 * math.log(5), dtype=torch.float64))
    most = math.log(2) - math.log(0.5 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(continuous, torch.full((6,), 3 * most, dtype=torch.float64))
    shuffled, _ = codes.information(told.roll(1, 0), z)  # negative control: another example's codes
    assert shuffled.mean() < 0


@pytest.mark.parametrize(("categorical", "continuous"), [(0, 2), (1, 0), (3, 1)])
def test_any_number_of_codes(categorical, continuous):
    recipe = build(categorical_codes=categorical, continuous_codes=continuous, categories=4)
    game = recipe.stages[0].game
    values = step(game, begin(game), lambda: {"x": torch.rand(4, 1, 8, 8) * 2 - 1})
    assert all(v.isfinite() for v in values.values())
    model = Model(recipe, recipe.nets)
    assert model.draw_codes(2).shape == (2, 3 + 4 * categorical + continuous)
    assert ("classify" in model.abilities) == (categorical > 0)


def test_the_step_is_the_papers_objective():
    """Generator and trunk move by V - λ L_I with the signs of eq. 6, written out beside the terms."""
    recipe = build(information=0.7)
    recipe.nets.double()
    game, nets = recipe.stages[0].game, recipe.nets
    batch = {"x": torch.rand(4, 1, 8, 8, dtype=torch.float64) * 2 - 1}
    phase = game.phases[1]
    state = State(nets, batch, 0, 0, torch.Generator().manual_seed(1))
    state = replace(state, rollout=phase.rollout(state))
    z = state["z"]
    h = nets["trunk"](state["x_fake"])
    said = nets["posterior"](h)
    q = said[:, :10].log_softmax(1)[torch.arange(4), z[:, 3:13].argmax(1)]
    normal = torch.distributions.Normal(said[:, 10:], 1.0).log_prob(z[:, 13:]).sum(1)
    bound = (q + normal).mean() + math.log(10) + 2 * math.log(2)
    objective = -torch.nn.functional.logsigmoid(nets["discriminator"](h)).mean() - 0.7 * bound
    weights = list(nets["generator"].parameters())
    expected = torch.autograd.grad(objective, weights, retain_graph=True)
    losses = {t.name: t.loss(state) for t in phase.terms}
    torch.testing.assert_close(losses["information_generator"], bound)
    found = torch.autograd.grad(sum(t.to["generator"] * losses[t.name] for t in phase.terms), weights)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(phase.measures["categorical_information"](state), q.mean() + math.log(10))


def clusters(n: int, k: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.randint(k, (n,), generator=generator)
    angle = 2 * math.pi * y / k
    x = 1.4 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(n, 2, generator=generator)
    return x, y.numpy()


def learned(information: float) -> tuple[float, float]:
    """(categorical information, purity) after training on six clusters."""
    recipe = build(
        VECTOR,
        categories=6,
        continuous_codes=0,
        width=32,
        learning_rate_discriminator=1e-3,
        information=information,
    )
    game, draws = recipe.stages[0].game, torch.Generator().manual_seed(0)
    progress = begin(game)
    for _ in range(200):
        values = step(game, progress, lambda: {"x": clusters(128, 6, draws)[0]})
    x, y = clusters(1000, 6, draws)
    cluster = Model(recipe, recipe.nets).classify(x.numpy()).argmax(1)
    purity = sum(np.bincount(y[cluster == k]).max() for k in range(6) if (cluster == k).any()) / 1000
    return values["categorical_information"].item(), purity


def test_the_bound_comes_to_log_k_and_the_code_finds_the_clusters():
    """D11. The control trains the same game with hardly any weight on the information."""
    information, purity = learned(1.0)
    assert information > 0.9 * math.log(6) and purity > 0.9
    control, _ = learned(1e-4)
    assert control < 0.75 * math.log(6)


def test_parameters_of_the_mnist_network():
    """By hand: 62 + 10 + 2 inputs, 28×28 images; BatchNorm's gains and biases beside each layer's own."""
    nets = recipes.build("infogan-paper", EXAMPLE)[1].nets
    maps = 128 * 7 * 7
    generator = (74 * 1024 + 1024 + 2 * 1024) + (1024 * maps + maps + 2 * maps)
    generator += (128 * 64 * 16 + 64 + 2 * 64) + (64 * 1 * 16 + 1)
    trunk = (1 * 64 * 16 + 64) + (64 * 128 * 16 + 128 + 2 * 128) + (maps * 1024 + 1024 + 2 * 1024)
    posterior = (1024 * 128 + 2 * 128) + (128 * 12 + 12)  # BatchNorm's bias stands for the layer's
    expected = {"generator": generator, "trunk": trunk, "discriminator": 1024 + 1, "posterior": posterior}
    assert {n: sum(w.numel() for w in net.parameters()) for n, net in nets.items()} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": 1}, "categories is 1"),
        ({"categorical_codes": -1}, "categorical_codes is -1"),
        ({"continuous_codes": -1}, "continuous_codes is -1"),
        ({"categorical_codes": 0, "continuous_codes": 0}, "there are no codes to tell"),
        ({"continuous_std": 0.0}, "continuous_std is 0.0"),
        ({"information": 0.0}, "information is 0.0"),
        ({"hidden": 0}, "hidden is 0"),
        ({"depth": 0}, "depth is 0"),
        ({"loss": "wasserstein"}, "unknown value for loss 'wasserstein'"),
        ({"arch": "paper", "spectral": True}, "no spectral normalisation"),
        ({"conditional": True}, "unknown option 'conditional'"),
        ({"latent": 0}, "latent is 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_the_mnist_network_refuses_other_sides():
    with pytest.raises(InputError, match="the images are 9×8; use --arch conv"):
        build(Spec("image", (1, 9, 8), layout="HW"), arch="paper")
    assert build(VECTOR, arch="paper").nets["trunk"](torch.zeros(3, 2)).shape == (3, 8)  # vectors always get an MLP
