"""IntroVAE and Soft-IntroVAE: the routing of margins and exponentials, the stop-gradient, an encoder that tells samples
from data, presets."""

from __future__ import annotations

import math

import pytest
import torch

from test_ali import digits
from test_recipes import IMAGE, batch_for, build, rolled_out
from twofold.errors import InputError
from twofold.game import begin, step
from twofold.latents import split_mean_log_var
from twofold.overview import show
from twofold.recipes import intro_vae, soft_intro_vae
from twofold.spec import Spec
from twofold.terms.divergence import kl_normal

DIGITS = Spec("image", (1, 8, 8), layout="HW")

NAMES = ["intro-vae", "soft-intro-vae"]


def rows(name: str, **options) -> list[dict]:
    (stage,) = show(name, options=options)["stages"]
    return [{t["name"]: t["to"] for t in phase["terms"]} for phase in stage["phases"]]


def test_published_routing():
    """systems-images §1."""
    assert rows("intro-vae", alpha=0.5, beta=3.0) == [
        {
            "reconstruction_encoder": {"encoder": 3.0},
            "kl_real": {"encoder": 1.0},
            "margin_rec": {"encoder": 0.25},
            "margin_fake": {"encoder": 0.25},
        },
        {"reconstruction_decoder": {"decoder": 3.0}, "kl_rec": {"decoder": 0.25}, "kl_fake": {"decoder": 0.25}},
    ]
    # The released script: 0.05 of the whole squared error, margins 0.5 · 0.5 each, the decoder's KLs 0.5 each.
    assert rows("intro-vae-paper") == [
        {
            "reconstruction_encoder": {"encoder": 0.1},
            "kl_real": {"encoder": 1.0},
            "margin_rec": {"encoder": 0.25},
            "margin_fake": {"encoder": 0.25},
        },
        {"reconstruction_decoder": {"decoder": 0.1}, "kl_rec": {"decoder": 0.5}, "kl_fake": {"decoder": 0.5}},
    ]
    assert rows("soft-intro-vae", beta_rec=2.0, beta_kl=4.0, scale=0.5) == [
        {
            "reconstruction_encoder": {"encoder": 1.0},
            "kl_real": {"encoder": 2.0},
            "exp_elbo_rec": {"encoder": 0.25},
            "exp_elbo_fake": {"encoder": 0.25},
        },
        {"reconstruction_decoder": {"decoder": 1.0}, "kl_rec": {"decoder": 1.0}, "kl_fake": {"decoder": 1.0}},
    ]


def test_the_margin_holds_for_each_example_and_lets_go_above_it():
    game = build("intro-vae", margin_nats=2.0).stages[0].game
    s = rolled_out(game, game.phases[0], batch_for(IMAGE))
    mean = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 3.0]], requires_grad=True)
    s.rollout.update(rec_mean=mean, rec_log_var=torch.zeros(2, 3))  # KLs of 1 and 4.5 nats
    term = next(t for t in game.phases[0].terms if t.name == "margin_rec")
    assert term.loss(s).item() == pytest.approx((2 - 1) / 2)
    (gradient,) = torch.autograd.grad(term.loss(s), mean)
    torch.testing.assert_close(gradient, -mean.detach() / 2 * torch.tensor([[1.0], [0.0]]))


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_those_of_the_paper(name):
    """Every loss of both phases from the rollout's own tensors, by hand."""
    game = (
        build(name, **({"margin_nats": 3.0} if name == "intro-vae" else {"scale": 0.1, "beta_neg": 2.0})).stages[0].game
    )
    nets = game.nets.eval()
    for phase in game.phases:
        s = rolled_out(game, phase, batch_for(IMAGE))
        losses = {t.name: t.loss(s) for t in phase.terms}
        square = (s["x_rec"] - s["x"]).square().flatten(1).sum(1).mean()
        half = 0.5 if name == "intro-vae" else 1.0
        torch.testing.assert_close(losses[f"reconstruction_{phase.name}"], half * square)
        for kind in ("rec", "fake"):
            kl = kl_normal(*split_mean_log_var(nets["encoder"](s[f"x_{kind}"])))
            if phase.name == "decoder":
                torch.testing.assert_close(losses[f"kl_{kind}"], kl.mean())
            elif name == "intro-vae":
                torch.testing.assert_close(losses[f"margin_{kind}"], (3.0 - kl).clamp(min=0).mean())
            else:
                again = (s[f"x_{kind}_rec"] - s[f"x_{kind}"]).square().flatten(1).sum(1)
                expected = (-2 * 0.1 * (4.0 * again + 2.0 * kl)).exp().mean()
                torch.testing.assert_close(losses[f"exp_elbo_{kind}"], expected)


@pytest.mark.parametrize(("name", "term"), [("intro-vae", "margin_rec"), ("soft-intro-vae", "exp_elbo_rec")])
def test_the_encoders_verdict_on_a_reconstruction_takes_it_as_given(name, term):
    """sg[x_r]: the same gradient as for constant pictures; without the stop-gradient it is another."""
    game = build(name, norm="none").stages[0].game
    game.nets.double()
    batch = {"x": batch_for(IMAGE, dtype=torch.float64)["x"]}
    s = rolled_out(game, game.phases[0], batch)
    loss = next(t for t in game.phases[0].terms if t.name == term).loss
    weights = list(game.nets["encoder"].parameters())
    gradient = torch.autograd.grad(loss(s), weights, retain_graph=True, allow_unused=True)

    def judged(x_rec: torch.Tensor) -> list[torch.Tensor]:
        mean, log_var = split_mean_log_var(game.nets["encoder"](x_rec))
        out = {"rec_mean": mean, "rec_log_var": log_var, "x_rec_shown": x_rec}
        if name == "soft-intro-vae":
            noise = torch.Generator().manual_seed(5)
            for _ in range(3):  # the rollout's third draw: after q(z|x) and the prior
                e = torch.randn(8, 3, generator=noise, dtype=torch.float64)
            out["x_rec_rec"] = game.nets["decoder"](mean + (0.5 * log_var).exp() * e)
        s.rollout.update(out)
        return torch.autograd.grad(loss(s), weights, retain_graph=True, allow_unused=True)

    def distance(a, b) -> float:
        return max((p - q).abs().max().item() for p, q in zip(a, b, strict=True) if p is not None and q is not None)

    x_rec = s["x_rec"]
    assert distance(gradient, judged(x_rec.detach())) < 1e-12
    assert distance(gradient, judged(x_rec)) > 1e-6 * max(g.abs().max().item() for g in gradient if g is not None)


def kls_after(name: str, steps: int, **options) -> tuple[float, float, float]:
    """After training on digits: mean KL of test digits and of samples, and the error of reconstructions over that of
    the mean digit."""
    x = digits()
    recipe = build(name, DIGITS, arch="mlp", width=64, latent=6, norm="none", learning_rate=1e-3, **options)
    game, order = recipe.stages[0].game, torch.Generator().manual_seed(0)
    progress = begin(game)
    for _ in range(steps):
        step(game, progress, lambda: {"x": x[torch.randint(1500, (64,), generator=order)]})
    test = x[1500:]
    with torch.no_grad():
        samples = recipe.abilities["sample"](game.nets, 300, generator=order)
        real, fake = (kl_normal(*split_mean_log_var(game.nets["encoder"](v))).mean().item() for v in (test, samples))
        error = (recipe.abilities["reconstruct"](game.nets, test) - test).square().mean()
        return real, fake, (error / (test - x[:1500].mean(0)).square().mean()).item()


HARD = {"alpha": 1.0, "alpha_decoder": 0.02, "beta": 4.0}
SOFT = {"beta_rec": 2.0, "beta_kl": 0.3, "beta_neg": 1.0}


@pytest.mark.parametrize(
    ("name", "options", "control"),
    [
        ("intro-vae", HARD, HARD | {"alpha": 0.0}),
        ("soft-intro-vae", SOFT, SOFT | {"vae_examples": 10**9}),
    ],
)
def test_the_encoder_tells_samples_from_data_and_that_of_a_vae_does_not(name, options, control):
    """Card D8: KL(E(fake)) > KL(E(real)), and reconstructions are better than a constant."""
    real, fake, error = kls_after(name, 250, **options)
    assert fake > real + 1 and error < 0.8
    real, fake, _ = kls_after(name, 250, **control)
    assert fake < real + 1


@pytest.mark.parametrize("name", NAMES)
def test_the_elbo_is_the_objective_on_data_up_to_a_factor_and_a_constant(name):
    """β ½ ‖x - x_r‖² + KL, or (β_rec ‖x - x_r‖² + β_kl KL) / β_kl."""
    recipe = build(name, **({"beta": 3.0} if name == "intro-vae" else {"beta_rec": 3.0, "beta_kl": 2.0}))
    nets, x = recipe.nets.eval(), batch_for(IMAGE)["x"]
    with torch.no_grad():
        bound = recipe.abilities["elbo"](nets, x, generator=torch.Generator().manual_seed(0))
        mean, log_var = split_mean_log_var(nets["encoder"](x))
        e = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
        square = (recipe.abilities["decode"](nets, mean + (0.5 * log_var).exp() * e) - x).square().sum((1, 2, 3))
    precision = 3.0  # β, and 2 β_rec / β_kl
    constant = 0.5 * 64 * math.log(2 * math.pi / precision)
    torch.testing.assert_close(bound["distortion_nats"], 0.5 * precision * square + constant, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(bound["rate_nats"], kl_normal(mean, log_var))


def test_before_its_time_the_exponential_has_no_weight():
    game = build("soft-intro-vae", vae_examples=8).stages[0].game
    progress = begin(game)
    weights = [step(game, progress, lambda: batch_for(IMAGE)) for _ in range(3)]
    assert [v["exp_elbo_fake → encoder"].item() for v in weights] == [0.0, 0.0, 0.25]
    assert [v["kl_rec → decoder"].item() > 0 for v in weights] == [False, False, True]


# Presets.


def residual(before: int, after: int) -> int:
    beside = before * after if before != after else 0
    return beside + 9 * (before * after + after * after) + 2 * 2 * after


def test_the_released_networks_have_the_parameters_of_their_code():
    torch.manual_seed(0)
    config = intro_vae.paper()
    nets = intro_vae.build(config, Spec("image", (3, 256, 256))).nets
    counts = {name: sum(w.numel() for w in net.parameters()) for name, net in nets.items()}
    channels = (32, 64, 128, 256, 512, 512)
    down = sum(residual(a, b) for a, b in zip(channels, (*channels[1:], 512), strict=True))
    assert counts["encoder"] == 25 * 3 * 32 + 2 * 32 + down + 512 * 16 * 1024 + 1024
    up = sum(residual(a, b) for a, b in zip((512, *channels[::-1]), (*channels[::-1], 32), strict=True))
    assert counts["decoder"] == 512 * 512 * 16 + 512 * 16 + up + 25 * 32 * 3 + 3
    small = intro_vae.build(config, Spec("image", (1, 28, 20))).nets
    assert small["encoder"](torch.zeros(2, 1, 28, 20)).shape == (2, 1024)
    assert small["decoder"](torch.zeros(2, 512)).shape == (2, 1, 28, 20)


def test_the_plane_has_four_layers_of_256():
    nets = soft_intro_vae.build(soft_intro_vae.plane(), Spec("vector", (2,), layout="D")).nets
    layers = 3 * (256 * 256 + 256)
    counts = {name: sum(w.numel() for w in net.parameters()) for name, net in nets.items()}
    assert counts == {
        "encoder": 2 * 256 + 256 + layers + 256 * 4 + 4, "decoder": 2 * 256 + 256 + layers + 256 * 2 + 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("intro-vae", {"margin_nats": -1.0}, "margin_nats is -1.0; it starts at 0"),
        ("intro-vae", {"alpha": -1.0}, "alpha is -1.0; it starts at 0"),
        ("intro-vae", {"beta": 0.0}, "beta is 0.0; it must be above 0"),
        ("intro-vae", {"latent": 0}, "latent is 0; it starts at 1"),
        ("soft-intro-vae", {"beta_neg": 0.0}, "beta_neg is 0.0; it must be above 0"),
        ("soft-intro-vae", {"scale": 0.0}, "scale is 0.0; it must be above 0"),
        ("soft-intro-vae", {"vae_examples": -1}, "vae_examples is -1; it starts at 0"),
        ("soft-intro-vae", {"learning_rate_decoder": 0.0}, "learning_rate_decoder is 0.0|decoder is 0.0"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(InputError, match=message):
        build(name, **options)


def test_the_released_networks_halve_at_least_once():
    with pytest.raises(InputError, match="halve even sides of 8 and more and these images are 9×8"):
        build("intro-vae-paper", Spec("image", (1, 9, 8)))
