"""AGE: the signs of its KLs, which player each reconstruction trains, the sphere, codes that reach the prior."""

from __future__ import annotations

import pytest
import torch

from test_recipes import IMAGE, VECTOR, batch_for, build, rolled_out
from twofold.errors import InputError
from twofold.game import begin, step
from twofold.latents import onto_sphere, prior
from twofold.overview import show
from twofold.recipes import age
from twofold.spec import Spec
from twofold.terms.divergence import kl_moments
from twofold.terms.matching import cosine_distance


def test_published_routing():
    """systems-images §1: the encoder maximises what the generator minimises, and no reconstruction reaches both."""
    (stage,) = show("age", options={"data_weight": 10.0, "code_weight": 7.0})["stages"]
    encoder, decoder = stage["phases"]
    assert {t["name"]: t["to"] for t in encoder["terms"]} == {
        "kl_real": {"encoder": 1.0},
        "kl_fake": {"encoder": -1.0},
        "reconstruction_data": {"encoder": 10.0},
    }
    assert {t["name"]: t["to"] for t in decoder["terms"]} == {
        "kl_generated": {"decoder": 1.0},
        "reconstruction_codes": {"decoder": 7.0},
    }
    assert (encoder["repeats"], decoder["repeats"]) == (1, 2)


@pytest.mark.parametrize("spec", [IMAGE, VECTOR], ids=["image", "vector"])
def test_terms_are_those_of_the_paper(spec):
    game = build("age", spec, norm="none", norm_encoder="none").stages[0].game
    nets = game.nets.double()
    for phase in game.phases:
        s = rolled_out(game, phase, batch_for(spec, dtype=torch.float64))
        losses = {t.name: t.loss(s) for t in phase.terms}
        z_fake = nets["encoder"](nets["decoder"](s["z_prior"]))
        m, v = z_fake.mean(0), z_fake.var(0, correction=0)
        by_hand = (0.5 * (m**2 + v - 1) - (v + 1e-9).sqrt().log()).sum()  # 1e-9: its floor
        torch.testing.assert_close(losses.get("kl_fake", losses.get("kl_generated")), by_hand, rtol=1e-4, atol=1e-4)
        if phase.name == "encoder":
            z = nets["encoder"](s["x"])
            torch.testing.assert_close(losses["kl_real"], kl_moments(z))
            l1 = (nets["decoder"](z) - s["x"]).abs().flatten(1).sum(1).mean()
            torch.testing.assert_close(losses["reconstruction_data"], l1)
        else:
            cos = (z_fake * s["z_prior"]).sum(1) / (z_fake.norm(dim=1) * s["z_prior"].norm(dim=1))
            torch.testing.assert_close(losses["reconstruction_codes"], 1 - cos.mean(), rtol=1e-4, atol=1e-4)


def test_codes_lie_on_the_sphere_of_radius_root_latent():
    recipe = build("age")
    z = recipe.abilities["encode"](recipe.nets, batch_for(IMAGE)["x"])
    torch.testing.assert_close(z.square().mean(1), torch.ones(8))
    drawn = recipe.abilities["prior"](recipe.nets, 500, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.square().mean(1), torch.ones(500))
    assert kl_moments(drawn) < 0.05 and drawn.mean(0).abs().max() < 0.1
    free = build("age", prior="normal")
    assert free.abilities["encode"](free.nets, batch_for(IMAGE)["x"]).square().mean(1).std() > 1e-3
    assert torch.equal(onto_sphere(torch.tensor([[3.0, 4.0]])), 2**0.5 * torch.tensor([[0.6, 0.8]]))


def test_cosine_distance_is_half_the_squared_distance_on_the_unit_sphere():
    a, b = (prior(6, 4, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (0, 1))
    unit = [v / v.norm(dim=1, keepdim=True) for v in (a, b)]
    torch.testing.assert_close(cosine_distance(a, b), 0.5 * (unit[0] - unit[1]).square().sum(1))
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(cosine_distance(a, b).sum(), a)
    assert (gradient * a).sum(1).abs().max() < 1e-12 and ((gradient * b).sum(1) < 0).all()


def batch_kls(steps: int, **options) -> tuple[float, float]:
    """KL of codes of data and of samples, each of 2,000, for points in a square."""
    recipe = build("age", VECTOR, width=32, latent=2, norm="none", norm_encoder="none", learning_rate=2e-3, **options)
    game, data = recipe.stages[0].game, torch.Generator().manual_seed(0)

    def draw(n: int = 128) -> dict[str, torch.Tensor]:
        angle = 2 * torch.pi * torch.rand(n, generator=data)
        return {"x": 2 * torch.stack([angle.cos(), angle.sin()], 1) + torch.tensor([1.0, 0.0])}

    progress = begin(game)
    for _ in range(steps):
        step(game, progress, draw)
    encode = recipe.abilities["encode"]
    with torch.no_grad():
        samples = recipe.abilities["sample"](game.nets, 2000, generator=data)
        return kl_moments(encode(game.nets, draw(2000)["x"])).item(), kl_moments(encode(game.nets, samples)).item()


def test_both_kls_go_to_zero_and_against_a_generator_that_stands_still_they_do_not():
    """Card D8."""
    real, fake = batch_kls(250)
    assert real < 0.1 and fake < 0.1
    assert batch_kls(60, learning_rate_decoder=1e-9)[1] > 1.0


# The preset.


def test_the_released_networks_have_the_parameters_of_their_code():
    torch.manual_seed(0)
    nets = age.build(age.paper(), Spec("image", (3, 32, 32))).nets
    counts = {name: sum(w.numel() for w in net.parameters()) for name, net in nets.items()}
    assert counts["encoder"] == 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 128) + 128 + 2 * (128 + 256)
    ups = 16 * (128 * 512 + 512 * 256 + 256 * 128 + 128 * 128)
    assert counts["decoder"] == ups + 2 * (512 + 256 + 128 + 128) + 128 * 3 + 3
    x, z = torch.rand(2, 3, 32, 32), torch.zeros(2, 128)
    assert nets["encoder"](x).shape == (2, 128) and nets["decoder"](z).shape == x.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_weight": -1.0}, "data_weight is -1.0; it starts at 0"),
        ({"code_weight": -1.0}, "code_weight is -1.0; it starts at 0"),
        ({"generator_plays": 0}, "generator_plays is 0; it starts at 1"),
        ({"arch": "paper"}, "for images of 32×32 and this data is images of 1×8×8"),
        ({"latent": 0}, "latent is 0; it starts at 1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        build("age", **options)


def test_the_released_networks_take_no_labels():
    with pytest.raises(InputError, match="take no labels"):
        build("age", Spec("image", (3, 32, 32), classes=2), arch="paper", conditional=True)
