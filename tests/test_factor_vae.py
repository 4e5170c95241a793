"""FactorVAE: the discriminator's loss stays away from the encoder, TC falls, the paper's network, refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from twofold import recipes
from twofold.errors import InputError
from twofold.game import Game, State, begin, step
from twofold.overview import show
from twofold.recipes import factor_vae
from twofold.spec import Spec

IMAGE = Spec("image", (1, 8, 8), layout="HW")
SPRITES = Spec("image", (1, 64, 64), layout="HW")


def build(spec: Spec = IMAGE, **options):
    torch.manual_seed(0)
    return recipes.build("factor-vae", spec, {"latent": 3, "width": 4, "hidden": 8, **options})[1]


def test_published_routing():
    (phase,) = show("factor-vae", options={"gamma": 35.0})["stages"][0]["phases"]
    assert {t["name"]: t["to"] for t in phase["terms"]} == {
        "kl": {"encoder": 1.0},
        "total_correlation": {"encoder": 35.0},
        "reconstruction": {"encoder": 1.0, "decoder": 1.0},
        "adversarial_discriminator": {"discriminator": 1.0},
    }


def test_the_discriminators_loss_does_not_reach_the_encoder():
    """It depends on the codes, so a sum of losses would leak; in the game the encoder moves as if it were not there."""
    moved = {}
    for scale in (1.0, 1000.0):
        recipe = build()
        game = recipe.stages[0].game
        (phase,) = game.phases
        loud = replace(
            phase, terms=[t if t.name != "adversarial_discriminator" else _scaled(t, scale) for t in phase.terms]
        )
        loud_game = Game(game.players, [loud])
        batch = {"x": torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1}
        start = {k: v.clone() for k, v in game.nets.state_dict().items()}
        step(loud_game, begin(loud_game), lambda batch=batch: batch)
        moved[scale] = {k: v - start[k] for k, v in game.nets.state_dict().items()}
    for key in moved[1.0]:
        if key.startswith(("encoder", "decoder")):
            assert torch.equal(moved[1.0][key], moved[1000.0][key])
    state = State(game.nets, batch, 0, 0, torch.Generator().manual_seed(0))
    state = replace(state, rollout=phase.rollout(state))
    loss = next(t for t in phase.terms if t.name == "adversarial_discriminator").loss(state)
    gradient = torch.autograd.grad(loss, state["z"])[0]  # negative control: there is something that could leak
    assert gradient.abs().max() > 0


def _scaled(term, scale):
    return replace(term, loss=lambda state: scale * term.loss(state))


def test_the_discriminator_reads_the_total_correlation_and_the_encoder_takes_it_away():
    """Codes that start as correlated data. The recipe's discriminator alone finds the closed form, -½ log det R; with
    the encoder's row beside it the correlation goes. Both correlations are those of draws of q(z)."""
    spec = Spec("vector", (2,), layout="D", dtype="float32")
    recipe = build(
        spec, latent=2, width=16, depth=1, width_discriminator=32, depth_discriminator=2, norm="none",
        learning_rate_discriminator=3e-3, learning_rate=3e-3,
    )  # fmt: skip
    game, draws = recipe.stages[0].game, torch.Generator().manual_seed(0)
    _identity(game.nets["encoder"])

    def draw():
        shared, own = torch.randn(256, 1, generator=draws), torch.randn(256, 2, generator=draws)
        return {"x": 2 * shared + 0.3 * own}

    def correlation() -> float:
        state = State(game.nets, {"x": torch.cat([draw()["x"] for _ in range(8)])}, 0, 0, draws)
        return torch.corrcoef(game.phases[0].rollout(state)["z"].detach().T)[0, 1].item()

    def play(players: list[str], terms: list[str], steps: int) -> float:
        chosen = [t for t in game.phases[0].terms if t.name in terms]
        part = Game(
            {n: game.players[n] for n in players},
            [replace(game.phases[0], terms=chosen)],
            frozen={n: net for n, net in game.nets.items() if n not in players},
        )
        progress = begin(part)
        for _ in range(steps):
            step(part, progress, draw)
        values = []
        for _ in range(10):
            state = State(game.nets, draw(), 0, 0, draws)
            state = replace(state, rollout=game.phases[0].rollout(state))
            values.append(game.phases[0].terms[1].loss(state).item())
        return sum(values) / len(values)

    before = correlation()
    exact = -0.5 * math.log(1 - before**2)
    assert before > 0.85 and abs(play(["discriminator"], ["adversarial_discriminator"], 300) - exact) < 0.3 * exact
    assert correlation() == pytest.approx(before, abs=0.05)  # the discriminator moved, the codes did not
    after = play(["encoder", "discriminator"], ["adversarial_discriminator", "total_correlation"], 200)
    assert abs(correlation()) < 0.4 and abs(after) < 0.5 * exact


def _identity(encoder):
    """One hidden layer of 16 ReLUs that passes ±x, read out as mean x and log variance -3."""
    with torch.no_grad():
        for w in encoder.parameters():
            w.mul_(0.1)
        first, head = encoder.layers[0].linear, encoder.head
        for j in range(2):
            first.weight[2 * j, j], first.weight[2 * j + 1, j] = 1.0, -1.0
            head.weight[j, 2 * j], head.weight[j, 2 * j + 1] = 0.5, -0.5
        head.bias[2:] = -3.0


def test_parameters_of_the_papers_network():
    """By hand, for 64×64 grey images and 10 dimensions."""
    nets = recipes.build("factor-vae", SPRITES, vars(factor_vae.paper()))[1].nets

    def conv(inputs, outputs):
        return inputs * outputs * 16 + outputs

    encoder = conv(1, 32) + conv(32, 32) + conv(32, 64) + conv(64, 64) + (1024 * 128 + 128) + (128 * 20 + 20)
    decoder = (10 * 128 + 128) + (128 * 1024 + 1024) + conv(64, 64) + conv(64, 32) + conv(32, 32) + conv(32, 1)
    discriminator = (10 * 1000 + 1000) + 5 * (1000 * 1000 + 1000) + (1000 + 1)
    expected = {"encoder": encoder, "decoder": decoder, "discriminator": discriminator}
    assert {n: sum(w.numel() for w in net.parameters()) for n, net in nets.items()} == expected
    colour = recipes.build(
        "factor-vae", Spec("image", (3, 64, 64), classes=2), vars(factor_vae.paper()) | {"conditional": True}
    )[1]
    y = torch.tensor([0, 1])
    assert colour.nets["encoder"](torch.zeros(2, 3, 64, 64), y).shape == (2, 20)
    assert colour.nets["decoder"](torch.zeros(2, 10), y).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1.0}, "gamma is -1.0; it starts at 0"),
        ({"latent": 1}, "latent is 1; a code of one dimension has no correlation"),
        ({"arch": "paper"}, "for 64×64 images and these are 8×8"),
        ({"depth_discriminator": -1}, "depth_discriminator is -1"),
        ({"arch": "convv"}, "unknown value for arch"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_the_papers_network_refuses_what_it_does_not_have():
    with pytest.raises(InputError, match="norm is batch; the paper's networks have none"):
        build(SPRITES, arch="paper", norm="batch")
    with pytest.raises(InputError, match="hidden is 0"):
        build(SPRITES, arch="paper", norm="none", hidden=0)
    assert build(Spec("vector", (5,), layout="D"), arch="paper").nets["encoder"](torch.zeros(3, 5)).shape == (3, 6)
