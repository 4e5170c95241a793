"""IWAE: routing, its step against the formula, the schedule, binary images, the paper's network, refusals."""

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
from twofold.model import Model
from twofold.overview import EXAMPLE, show
from twofold.recipes.iwae import Stages, paper
from twofold.rollouts import draw_binary
from twofold.spec import Spec

IMAGE = Spec("image", (1, 8, 8), classes=3, layout="HW")


def build(spec: Spec = IMAGE, **options):
    torch.manual_seed(0)
    return recipes.build("iwae", spec, {"latent": 3, "width": 4, "hidden": 5, **options})[1]


def batch_of(n: int = 6, dtype=torch.float64) -> dict[str, torch.Tensor]:
    return {"x": torch.rand(n, 1, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 2 - 1}


def rolled_out(recipe, batch, examples: int = 0) -> State:
    game = recipe.stages[0].game
    state = State(game.nets, batch, examples, 0, torch.Generator().manual_seed(0))
    return replace(state, rollout=game.phases[0].rollout(state))


def test_published_routing():
    (phase,) = show("iwae")["stages"][0]["phases"]
    assert {t["name"]: t["to"] for t in phase["terms"]} == {"importance_bound": {"encoder": 1.0, "decoder": 1.0}}


@pytest.mark.parametrize(("examples", "warmth"), [(0, 0.0), (30, 0.3), (500, 1.0)])
def test_the_loss_is_minus_the_bound_of_k_draws(examples, warmth):
    """Against the weights written out with torch's own distributions, on the same noise, along a warm-up."""
    recipe = build(draws=4, norm="none", kl_warmup_examples=100)
    recipe.nets.double()
    batch = batch_of()
    state = rolled_out(recipe, batch, examples)
    nets, x = recipe.nets, batch["x"]
    mean, log_var = nets["encoder"](x).chunk(2, 1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(6 * 4, 3, dtype=torch.float64, generator=generator).unflatten(0, (6, 4))
    posterior = torch.distributions.Normal(mean[:, None], (log_var[:, None] / 2).exp())
    z = posterior.mean + posterior.stddev * noise
    output = nets["decoder"](z.flatten(0, 1)).tanh()
    scale = nets["decoder"].likelihood.log_scale_of(output).exp()
    log_x = torch.distributions.Normal(output, scale).log_prob(x.repeat_interleave(4, 0)).flatten(1).sum(1)
    log_ratio = torch.distributions.Normal(0, 1).log_prob(z).sum(2) - posterior.log_prob(z).sum(2)
    log_w = log_x.unflatten(0, (6, 4)) + warmth * log_ratio
    (term,) = recipe.stages[0].game.phases[0].terms
    expected = -(log_w.logsumexp(1) - math.log(4)).mean()
    torch.testing.assert_close(term.loss(state), expected, rtol=1e-9, atol=1e-9)


def test_more_draws_are_a_tighter_bound():
    """The same networks and examples: the loss falls with k, averaged over noise."""
    losses = []
    for draws in (1, 5, 50):
        recipe = build(draws=draws, norm="none")
        (term,) = recipe.stages[0].game.phases[0].terms
        batch = {"x": batch_of(64, torch.float32)["x"]}
        with torch.no_grad():
            recipe.nets["encoder"].head.bias[:3] += 2.0  # a posterior far from the true one
            losses.append(term.loss(rolled_out(recipe, batch)).item())
    assert losses[0] > losses[1] + 0.1 > losses[2] + 0.2


def test_the_rate_falls_in_eight_stages():
    """Burda's 10^(-i/7), rounded: stage i of 3^(i-1) passes."""
    rates = Stages(100)
    ends = np.cumsum([100 * 3**i for i in range(8)])
    assert ends[-1] == 328_000

    def at(examples):
        return rates(State(torch.nn.ModuleDict(), {}, int(examples), 0, torch.Generator()))

    expected = [round(10 ** (1 - i / 7), 1) / 10 for i in range(8)]
    assert [at(end - 1) for end in ends] == expected and expected[0] == 1.0 and expected[-1] == 0.1
    assert [at(end) for end in ends] == [*expected[1:], 0.1]
    recipe = build(stage_examples=12, learning_rate=1e-2)
    progress = begin(recipe.stages[0].game)
    seen = []
    for _ in range(5):
        step(recipe.stages[0].game, progress, lambda: batch_of(6, torch.float32))
        seen.append(progress.optimizers["encoder"].param_groups[0]["lr"])
    assert seen == pytest.approx([1e-2, 1e-2, 7.2e-3, 7.2e-3, 7.2e-3])


def test_binary_images_are_drawn_anew_with_the_grey_values_as_probabilities():
    grey = torch.tensor([-1.0, -0.5, 0.0, 1.0]).expand(20_000, 4)
    drawn = draw_binary(grey, generator=torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(drawn.mean(0), grey[0], atol=0.03, rtol=0)
    recipe = build(likelihood="bernoulli", binarise=True)
    model = Model(recipe, recipe.nets)
    x = np.full((3, 8, 8), 128, np.uint8)
    a, b = (model.log_prob(x, k=5, seed=s)["log_prob_nats"] for s in (0, 1))
    assert not np.array_equal(a, b) and np.array_equal(a, model.log_prob(x, k=5, seed=0)["log_prob_nats"])
    assert (a < 0).all() and (model.elbo(x)["distortion_nats"] > 0).all()  # probabilities, not densities
    assert np.array_equal(*(model.log_prob(np.zeros_like(x), k=1, seed=0)["log_prob_nats"] for _ in range(2)))


def test_the_papers_network_and_settings():
    """By hand: 784-200-200-(50, 50) and 50-200-200-784, tanh."""
    recipe = recipes.build("iwae-paper", EXAMPLE)[1]
    count = {n: sum(w.numel() for w in net.parameters()) for n, net in recipe.nets.items()}
    assert count == {
        "encoder": (784 * 200 + 200) + (200 * 200 + 200) + (200 * 100 + 100),
        "decoder": (50 * 200 + 200) + (200 * 200 + 200) + (200 * 784 + 784),
    }
    assert sum(isinstance(m, torch.nn.Tanh) for m in recipe.nets.modules()) == 4
    optimizer = begin(recipe.stages[0].game).optimizers["encoder"].param_groups[0]
    assert (optimizer["betas"], optimizer["eps"], optimizer["lr"]) == ((0.99, 0.999), 1e-4, 1e-3)
    weight = recipe.nets["encoder"].layers[0].linear.weight
    assert 0.9 * math.sqrt(6 / 984) < weight.abs().max() <= math.sqrt(6 / 984)  # Glorot's range
    assert paper().draws == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws is 0; it starts at 1"),
        ({"stage_examples": -1}, "stage_examples is -1"),
        ({"kl_warmup_examples": -1}, "kl_warmup_examples is -1; it starts at 0"),
        ({"binarise": True}, "use --likelihood bernoulli with --binarise"),
        ({"beta1": 1.0}, "beta1 is 1.0"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"activation": "cosine"}, "unknown value for activation"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_a_tighter_bound_on_real_digits():
    """D12 in small: on held-out binary digits L_50 lies above the ELBO, and both far above the untrained model's."""
    data = twofold.data.load("digits")
    recipe = build(
        data.spec, arch="mlp", width=64, latent=8, likelihood="bernoulli", binarise=True, norm="none",
        learning_rate=3e-3,
    )  # fmt: skip
    model = Model(recipe, recipe.nets)
    train, test = (
        twofold.data.to_model(part.x[torch.arange(n)], data.spec) for part, n in ((data.train, 1000), (data.test, 200))
    )
    x = twofold.data.from_model(test, data.spec)

    def bounds() -> tuple[float, float]:
        parts = model.elbo(x)
        return -(parts["rate_nats"] + parts["distortion_nats"]).mean(), model.log_prob(x, k=50)["log_prob_nats"].mean()

    before = bounds()
    game, draws = recipe.stages[0].game, torch.Generator().manual_seed(0)
    progress = begin(game)
    for _ in range(300):
        step(game, progress, lambda: {"x": train[torch.randint(1000, (64,), generator=draws)]})
    elbo, tight = bounds()
    assert elbo + 0.3 < tight and before[1] + 5 < elbo
