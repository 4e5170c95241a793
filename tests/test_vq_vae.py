"""VQ-VAE: where each gradient goes, perplexity, moving averages, restarts, what a trained one makes (card A9, D11)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import twofold
from twofold import recipes
from twofold.errors import InputError
from twofold.game import State, begin, step
from twofold.latents import nearest_code
from twofold.model import Model
from twofold.overview import show
from twofold.recipes.vq_vae import Config, paper, released
from twofold.spec import Spec

IMAGE = Spec("image", (1, 8, 8), classes=3, layout="HW")
COLOUR = Spec("image", (3, 32, 32), layout="CHW")


def build(spec: Spec = IMAGE, **options):
    torch.manual_seed(0)
    return recipes.build("vq-vae", spec, {"latent": 3, "width": 8, "codes": 6, **options})[1]


def state_of(game, batch, seed: int = 0) -> State:
    state = State(game.nets, batch, 0, 0, torch.Generator().manual_seed(seed))
    return replace(state, rollout=game.phases[0].rollout(state))


def images(n: int = 8, dtype=torch.float64) -> dict[str, torch.Tensor]:
    return {"x": torch.rand(n, 1, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 2 - 1}


def test_published_routing():
    """systems-images §1: encoder rec + β · commit, decoder rec, codebook the VQ term only; averages get no gradient."""
    (phase,) = show("vq-vae")["stages"][0]["phases"]
    assert {t["name"]: t["to"] for t in phase["terms"]} == {
        "quantisation": {"encoder": 0.25, "codebook": 1.0},
        "reconstruction": {"encoder": 1.0, "decoder": 1.0},
    }
    stage = show("vq-vae-released")["stages"][0]
    assert set(stage["players"]) == {"encoder", "decoder"}
    assert {t["name"]: t["to"] for t in stage["phases"][0]["terms"]} == {
        "quantisation": {"encoder": 0.25},
        "reconstruction": {"encoder": 1.0, "decoder": 1.0},
    }


def test_the_stop_gradients_are_those_of_the_paper():
    """The step's gradients against eq. 3 written out with sg, and against finite differences of each part."""
    recipe = build(restart_examples=0)
    recipe.nets.double()
    game, batch = recipe.stages[0].game, images()
    nets, x = game.nets, batch["x"]
    likelihood = nets["decoder"].likelihood
    z = nets["encoder"](x)
    e = nets["codebook"](nearest_code(z.movedim(1, -1), nets["codebook"].weight)).movedim(-1, 1)
    sg = torch.Tensor.detach
    nll = likelihood.nll(nets["decoder"](z + sg(e - z)), x)
    loss = (nll + (sg(z) - e).square().flatten(1).sum(1) + 0.25 * (z - sg(e)).square().flatten(1).sum(1)).mean()
    expected = torch.autograd.grad(loss, list(nets.parameters()))

    terms = {t.name: t for t in game.phases[0].terms}
    state = state_of(game, batch)
    losses = {name: term.loss(state) for name, term in terms.items()}
    found = []
    for player in ("encoder", "decoder", "codebook"):
        objective = sum(terms[n].to[player] * losses[n] for n in terms if player in terms[n].to)
        found += torch.autograd.grad(objective, list(nets[player].parameters()), retain_graph=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)

    # The codebook's gradient of the reconstruction is none at all, not a small one; and that of the distances is the
    # slope of a finite difference, at which the choice of codes stays.
    assert torch.autograd.grad(losses["reconstruction"], nets["codebook"].weight, allow_unused=True)[0] is None
    weight, gradient = nets["codebook"].weight, found[-1]
    used = int(state["indices"].flatten()[0])
    values = []
    with torch.no_grad():
        for h in (1e-6, -1e-6):
            weight[used, 0] += h
            values.append(terms["quantisation"].loss(state_of(game, batch)).item())
            weight[used, 0] -= h
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(gradient[used, 0].item(), rel=1e-5)


def test_the_encoder_receives_what_the_codes_would():
    """Straight-through: d reconstruction / d z_e is d reconstruction / d z_q, at the codes and not at z_e."""
    recipe = build()
    recipe.nets.double()
    game, batch = recipe.stages[0].game, images()
    state = state_of(game, batch)
    term = game.phases[0].terms[1]
    (at_z,) = torch.autograd.grad(term.loss(state), state["z"])
    z_q = state["z_q"].detach().requires_grad_()
    nll = game.nets["decoder"].likelihood.nll(game.nets["decoder"](z_q), batch["x"]).mean()
    torch.testing.assert_close(at_z, torch.autograd.grad(nll, z_q)[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("codebook", ["loss", "ema"])
def test_perplexity_is_logged_and_codes_restart(codebook):
    recipe = build(codebook=codebook, restart_examples=16, codes=32)
    with torch.no_grad():
        recipe.nets["codebook"].weight[1:] += 100.0  # out of reach: one code serves all
    game = recipe.stages[0].game
    progress, batch = begin(game), images(dtype=torch.float32)
    seen = [step(game, progress, lambda: batch)["perplexity"].item() for _ in range(5)]
    assert seen[0] == pytest.approx(1.0)
    assert all(1 - 1e-5 <= p <= 32 for p in seen) and seen[-1] > 4
    without = build(codebook=codebook, restart_examples=0, codes=32)  # negative control
    with torch.no_grad():
        without.nets["codebook"].weight[1:] += 100.0
    progress = begin(without.stages[0].game)
    assert [step(without.stages[0].game, progress, lambda: batch)["perplexity"].item() for _ in range(5)] == [1.0] * 5


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_averaged_codes_follow_the_encoder_without_gradient(decay):
    """Codes that start elsewhere come to the encoder's vectors; the control is averages that barely move."""
    recipe = build(codebook="ema", decay=decay, restart_examples=0, commitment=0.0)
    game, batch = recipe.stages[0].game, images(dtype=torch.float32)
    assert "codebook" not in game.players and not list(game.nets["codebook"].parameters())
    book = game.nets["codebook"]
    book.weight.add_(3.0)
    book.counts.fill_(10.0)
    book.sums.copy_(10 * book.weight)
    progress = begin(game)
    distances = [step(game, progress, lambda: batch)["quantisation"].item() for _ in range(20)]
    assert (distances[-1] < 0.1 * distances[0]) == (decay == 0.5)


def test_the_rate_is_the_logarithm_of_the_number_of_codes():
    recipe = build()
    bound = Model(recipe, recipe.nets).elbo(np.zeros((3, 8, 8), np.uint8))
    assert bound["rate_nats"] == pytest.approx(4 * math.log(6))  # KL(one of K ‖ uniform), at 2×2 places


def test_codes_are_chosen_vectors_and_others_move_to_the_nearest():
    recipe = build()
    model = Model(recipe, recipe.nets)
    z = model.encode(np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8))
    vectors = torch.from_numpy(z).unflatten(1, (3, 4)).movedim(1, -1).flatten(0, 1)
    book = recipe.nets["codebook"].weight.detach()
    assert all((v == book).all(1).any() for v in vectors)
    assert np.array_equal(model.decode(z), model.decode(z + 1e-4))
    assert model.draw_codes(400).shape == (400, 12)
    drawn = torch.from_numpy(model.draw_codes(400)).unflatten(1, (3, 4)).movedim(1, -1).flatten(0, 1)
    counts = nearest_code(drawn, book).bincount(minlength=6)
    assert (counts / counts.sum() - 1 / 6).abs().max() < 0.05  # uniform, as the docs say


def test_parameters_of_the_published_networks():
    """By hand, 32×32×3 images. Released example: width 128, residual 32; paper: 256 everywhere."""

    def conv(inputs, outputs, kernel):
        return inputs * outputs * kernel**2 + outputs

    for name, width, inner in (("vq-vae-released", 128, 32), ("vq-vae-paper", 256, 256)):
        residual = conv(width, inner, 3) + conv(inner, width, 1)
        encoder = conv(3, width // 2, 4) + conv(width // 2, width, 4) + conv(width, width, 3) + 2 * residual
        decoder = conv(64, width, 3) + 2 * residual + conv(width, width // 2, 4) + conv(width // 2, 3, 4)
        nets = recipes.build(name, COLOUR)[1].nets
        count = {n: sum(w.numel() for w in net.parameters()) for n, net in nets.items()}
        assert count["encoder"] == encoder + conv(width, 64, 1)
        assert count["decoder"] == decoder + (1 if name == "vq-vae-paper" else 0)  # a learned scale
        assert nets["codebook"].weight.shape == (512, 64)
    assert recipes.build("vq-vae-paper", COLOUR)[1].nets["encoder"](torch.zeros(1, 3, 32, 32)).shape == (1, 64, 8, 8)
    assert (paper().learning_rate, released().learning_rate) == (2e-4, 3e-4)
    assert (released().codebook, released().decay, Config().commitment) == ("ema", 0.99, 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": 1}, "codes is 1; a codebook has at least 2"),
        ({"commitment": -0.1}, "commitment is -0.1"),
        ({"decay": 1.0}, "decay is 1.0; it lies from 0 to below 1"),
        ({"smoothing": 0.0}, "smoothing is 0.0"),
        ({"restart_examples": -1}, "restart_examples is -1"),
        ({"halvings": -1}, "halvings is -1"),
        ({"halvings": 4}, "halvings is 4; an image of 8×8 is one place after 3"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"likelihood": "bernoulli", "scale": 0.5}, "scale is 0.5; a bernoulli likelihood has none"),
        ({"blocks": -1}, "blocks is -1"),
        ({"codebook": "kmeans"}, "unknown value for codebook 'kmeans'"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_vectors_need_a_position():
    with pytest.raises(InputError, match="positions is 0"):
        build(Spec("vector", (2,), layout="D"), positions=0)


@pytest.mark.parametrize("halvings", [0, 1, 3])
def test_any_number_of_halvings(halvings):
    recipe = build(Spec("image", (2, 9, 13), layout="CHW"), halvings=halvings)
    game = recipe.stages[0].game
    step(game, begin(game), lambda: {"x": torch.rand(2, 2, 9, 13) * 2 - 1})
    assert Model(recipe, recipe.nets).sample(1).shape == (1, 2, 9, 13)


@pytest.mark.parametrize("likelihood", ["bernoulli", "laplace", "categorical", "logistic-mixture"])
def test_other_likelihoods(likelihood):
    recipe = build(likelihood=likelihood)
    game = recipe.stages[0].game
    assert step(game, begin(game), lambda: images(dtype=torch.float32))["reconstruction"].isfinite()


def test_real_digits_use_their_codes():
    """D11: perplexity above K/4 and reconstruction better than a constant image; the control has not trained."""
    x = twofold.data.load("digits").train.x[torch.arange(1000)].flatten(1).float()
    x = (x - x.mean(0)) / 5
    recipe = build(Spec("vector", (64,), layout="D"), codes=32, latent=8, width=64, restart_examples=500)
    game, draws = recipe.stages[0].game, torch.Generator().manual_seed(0)
    progress = begin(game)

    def error() -> float:
        with torch.no_grad():
            return (recipe.abilities["reconstruct"](recipe.nets, x) - x).square().mean().item()

    untrained, constant = error(), x.square().mean().item()
    for _ in range(400):
        values = step(game, progress, lambda: {"x": x[torch.randint(1000, (64,), generator=draws)]})
    assert error() < 0.6 * constant < untrained
    assert 32 / 4 < values["perplexity"] <= 32
