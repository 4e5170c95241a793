"""α-GAN: the constant gradients of its log ratios, what each critic is told, codes that follow the prior, a preset."""

from __future__ import annotations

import pytest
import torch

from test_recipes import IMAGE, VECTOR, batch_for, build, rolled_out
from twofold.errors import InputError
from twofold.game import State, begin, step
from twofold.recipes import alpha_gan
from twofold.spec import Spec


def terms_of(recipe) -> dict:
    return {t.name: t for p in recipe.stages[0].game.phases for t in p.terms}


def test_every_log_ratio_pushes_with_one_per_logit_and_each_critic_learns_its_sign():
    """Card A4, and the convention C = P(code came from the prior)."""
    recipe = build("alpha-gan")
    terms = terms_of(recipe)
    names = ("real", "rec", "fake", "code", "prior")
    logits = {f"{n}_logits": torch.tensor([-30.0, -1.0, 0.5, 30.0], requires_grad=True) for n in names}
    state = State(recipe.nets, {}, 0, 0, torch.Generator(), rollout=logits)
    d = {k: v.detach().sigmoid() for k, v in logits.items()}
    one = torch.ones(4)
    expected = {
        "adversarial_decoder": {"rec_logits": -one, "fake_logits": -one},
        "code_adversarial_encoder": {"code_logits": -one},
        "adversarial_discriminator": {
            "real_logits": d["real_logits"] - 1, "rec_logits": d["rec_logits"], "fake_logits": d["fake_logits"],
        },
        "code_adversarial_discriminator": {
            "prior_logits": d["prior_logits"] - 1, "code_logits": d["code_logits"],
        },
    }  # fmt: skip
    for name, own in expected.items():
        gradients = torch.autograd.grad(terms[name].loss(state), list(logits.values()), allow_unused=True)
        for key, gradient in zip(logits, gradients, strict=True):
            if key in own:
                torch.testing.assert_close(4 * gradient, own[key], rtol=1e-6, atol=1e-12)
            else:
                assert gradient is None


def test_the_reconstruction_is_lambda_times_a_summed_l1():
    recipe = build("alpha-gan", reconstruction_weight=0.25)
    game = recipe.stages[0].game
    state = rolled_out(game, game.phases[0], batch_for(IMAGE))
    term = terms_of(recipe)["reconstruction"]
    by_hand = (state["x_rec"] - state["x"]).abs().flatten(1).sum(1).mean()
    torch.testing.assert_close(term.loss(state), by_hand)
    assert term.to == {"encoder": 0.25, "decoder": 0.25}


def test_nothing_is_computed_that_nobody_reads():
    """The first phase does not judge real data or the prior's draws; the second makes no gradient of what is judged."""
    game = build("alpha-gan", norm="none").stages[0].game
    calls: dict[str, list[int]] = {n: [] for n in game.nets}
    for name, net in game.nets.items():
        net.register_forward_hook(lambda module, inputs, out, name=name: calls[name].append(len(inputs[0])))
    first = rolled_out(game, game.phases[0], batch_for(IMAGE))
    assert calls == {"encoder": [8], "decoder": [16], "discriminator": [16], "code_discriminator": [8]}
    assert "real_logits" not in first.rollout and "prior_logits" not in first.rollout
    rolled_out(game, game.phases[1], batch_for(IMAGE))
    assert [calls[n][-1] for n in calls] == [8, 16, 24, 16]


def codes_after(steps: int, **options) -> torch.Tensor:
    """Codes (2000, 2) of points in a square, with a discriminator of data that stands still: a moving one ties the
    codes to the prior by itself, through the decoder, whose samples and reconstructions it likens to the data."""
    recipe = build(
        "alpha-gan", VECTOR, width=32, code_width=32, learning_rate=2e-3, learning_rate_discriminator=1e-9,
        norm="none", **options,
    )  # fmt: skip
    game = recipe.stages[0].game
    data = torch.Generator().manual_seed(0)

    def draw(n: int = 64) -> dict[str, torch.Tensor]:
        return {"x": 6 * torch.rand(n, 2, generator=data) - torch.tensor([0.0, 3.0])}

    progress = begin(game)
    for _ in range(steps):
        step(game, progress, draw)
    with torch.no_grad():
        return recipe.abilities["encode"](game.nets, draw(2000)["x"])


def distance_to_normal(codes: torch.Tensor) -> float:
    """Largest error of a mean (0) or a standard deviation (1)."""
    return max(codes.mean(0).abs().max().item(), (codes.std(0) - 1).abs().max().item())


def test_codes_follow_the_prior_and_without_the_code_critic_they_do_not():
    assert distance_to_normal(codes_after(120)) < 0.7
    assert distance_to_normal(codes_after(120, code_weight=0.0)) > 1.2


@pytest.mark.parametrize("posterior", ["deterministic", "normal", "implicit"])
def test_posteriors(posterior):
    """Only a deterministic one gives the same code twice; none has an ELBO."""
    recipe = build("alpha-gan", posterior=posterior)
    game = recipe.stages[0].game
    batch = batch_for(IMAGE)
    a, b, c = (rolled_out(game, game.phases[0], batch, seed=s)["z"] for s in (1, 1, 2))
    assert torch.equal(a, b) and torch.equal(a, c) == (posterior == "deterministic")
    assert "elbo" not in recipe.abilities


# The preset.


def test_the_papers_networks_have_the_parameters_of_their_tables():
    torch.manual_seed(0)
    nets = alpha_gan.build(alpha_gan.paper(), Spec("image", (3, 64, 64))).nets
    counts = {name: sum(w.numel() for w in net.parameters()) for name, net in nets.items()}
    convolutions = 25 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 9 * 512 * 1024
    norms = 2 * (64 + 128 + 256 + 512 + 1024)
    features = 4 * 4 * 1024
    assert counts["encoder"] == convolutions + norms + features * 128 + 128
    assert counts["discriminator"] == convolutions + norms + features + 1
    ups = 25 * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 3
    assert counts["decoder"] == 128 * features + features + 2 * (1024 + 512 + 256 + 128 + 64) + ups
    assert counts["code_discriminator"] == 128 * 750 + 750 + 2 * (750 * 750 + 750) + 750 + 1
    x = torch.zeros(2, 3, 64, 64)
    assert nets["encoder"](x).shape == (2, 128) and nets["decoder"](torch.zeros(2, 128)).shape == x.shape
    assert nets["discriminator"](x).shape == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reconstruction_weight": 0.0}, "reconstruction_weight is 0.0, not above 0"),
        ({"code_weight": -1.0}, "code_weight is -1.0; it starts at 0"),
        ({"generator_plays": 0}, "generator_plays is 0; it starts at 1"),
        ({"real_label": 0.0}, "real_label is 0.0"),
        ({"latent": 0}, "latent is 0; it starts at 1"),
        ({"latent": 65}, "latent is 65, but this data has 64 values"),
        ({"learning_rate": 0.0}, "learning rate of learning_rate is 0.0|learning_rate is 0.0"),
        ({"arch": "paper"}, "for images of 64×64 and this data is images of 1×8×8"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        build("alpha-gan", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditional": True}, "the paper's networks take no labels"),
        ({"posterior": "implicit"}, "the paper's encoder takes no noise"),
        ({"spectral": True}, "the paper's networks have no spectral normalisation"),
    ],
)
def test_refusals_of_the_papers_networks(options, message):
    with pytest.raises(InputError, match=message):
        build("alpha-gan", Spec("image", (3, 64, 64), classes=2), arch="paper", **options)


def test_a_normal_posterior_may_have_more_dimensions_than_the_data():
    assert build("alpha-gan", VECTOR, latent=5, posterior="normal").abilities
