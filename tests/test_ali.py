"""ALI and BiGAN: both labels swapped, pairs that belong together, the order of moves, encoders that invert, presets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from test_recipes import IMAGE, VECTOR, batch_for, build, rolled_out
from twofold.errors import InputError
from twofold.game import State, begin, step
from twofold.overview import show
from twofold.recipes import ali, bigan
from twofold.spec import Spec


def terms_of(recipe) -> dict:
    return {t.name: t for p in recipe.stages[0].game.phases for t in p.terms}


def test_published_routing():
    """systems-images §1: encoder and decoder by the joint with swapped labels, the discriminator alone."""
    for name, phases in (("ali", [2, 1]), ("ali-paper", [2]), ("bigan", [2, 1]), ("bigan-paper", [1, 1])):
        (stage,) = show(name)["stages"]
        assert [len(p["terms"]) for p in stage["phases"]] == phases
        assert {t["name"]: t["to"] for p in stage["phases"] for t in p["terms"]} == {
            "adversarial_discriminator": {"discriminator": 1.0},
            **({} if name.endswith("-paper") else {"r1_r2": {"discriminator": 0.01}}),
            "adversarial_inference": {"encoder": 1.0, "decoder": 1.0},
        }


@pytest.mark.parametrize("name", ["ali", "bigan"])
def test_both_labels_are_swapped_for_encoder_and_decoder(name):
    """softplus(D(x, E(x))) + softplus(-D(G(z), z)), and its opposite for the discriminator: values and gradients."""
    recipe = build(name)
    values = torch.tensor([-40.0, -1.0, 0.5, 40.0], dtype=torch.float64)
    logits = {k: (sign * values).requires_grad_() for k, sign in (("inferred_logits", 1), ("generated_logits", -0.5))}
    state = State(recipe.nets, {}, 0, 0, torch.Generator(), rollout=logits)
    inferred, generated = logits.values()
    terms = terms_of(recipe)
    for term, sign in (("adversarial_discriminator", -1), ("adversarial_inference", 1)):
        loss = terms[term].loss(state)
        torch.testing.assert_close(loss, (F.softplus(sign * inferred) + F.softplus(-sign * generated)).mean())
        gradients = torch.autograd.grad(loss, [inferred, generated])
        torch.testing.assert_close(4 * gradients[0], sign * torch.sigmoid(sign * inferred))
        torch.testing.assert_close(4 * gradients[1], -sign * torch.sigmoid(-sign * generated))


@pytest.mark.parametrize("spec", [IMAGE, VECTOR], ids=["image", "vector"])
@pytest.mark.parametrize("conditional", [False, True])
def test_the_discriminator_judges_pairs_that_belong_together(spec, conditional):
    recipe = build("ali", spec, conditional=conditional, norm="none")
    game, batch, calls = recipe.stages[0].game, batch_for(spec), []
    game.nets["discriminator"].register_forward_hook(lambda module, inputs, out: calls.append(len(inputs[0])))
    state = rolled_out(game, game.phases[0], batch)
    assert calls == [16]
    label = F.one_hot(batch["y"], 3) if conditional else torch.zeros(8, 0)
    for logits, x, z in (("inferred_logits", "x", "z"), ("generated_logits", "x_fake", "z_prior")):
        again = game.nets["discriminator"](state[x], torch.cat([state[z], label], 1))
        torch.testing.assert_close(state[logits], again, rtol=1e-4, atol=1e-6)
        others = game.nets["discriminator"](state[x], torch.cat([state[z].roll(1, 0), label], 1))
        assert (others - again).abs().max() > 1e-4


def test_the_penalty_is_that_of_the_slope_in_data_and_in_codes():
    """A discriminator a·x + b·z has R1 + R2 = |a|² + |b|², half of it at each kind of pairs."""
    recipe = build("ali", VECTOR, width=1, depth=1, norm="none")
    game, net = recipe.stages[0].game, torch.nn.Linear(4, 1)
    game.nets["discriminator"].joint = net
    s = rolled_out(game, game.phases[0], batch_for(VECTOR))
    torch.testing.assert_close(terms_of(recipe)["r1_r2"].loss(s), net.weight.square().sum())


def test_a_relativistic_game_has_its_two_sides_exchanged():
    """softplus(D(x, E(x)) - D(G(z), z)) for encoder and decoder, and the opposite for the discriminator."""
    recipe = build("bigan", loss="relativistic")
    inferred, generated = (torch.tensor(v, requires_grad=True) for v in ([-40.0, 0.5, 2.0], [1.0, -0.5, 40.0]))
    rollout = {"inferred_logits": inferred, "generated_logits": generated}
    state = State(recipe.nets, {}, 0, 0, torch.Generator(), rollout=rollout)
    for term, sign in (("adversarial_discriminator", -1), ("adversarial_inference", 1)):
        loss = terms_of(recipe)[term].loss(state)
        torch.testing.assert_close(loss, F.softplus(sign * (inferred - generated)).mean())
        gradients = torch.autograd.grad(loss, [inferred, generated])
        expected = sign * torch.sigmoid(sign * (inferred - generated)).detach() / 3
        torch.testing.assert_close(gradients, (expected, -expected))


def test_the_regression_of_codes_trains_the_encoder_alone():
    recipe = build("bigan", VECTOR, code_weight=0.25, norm="none")
    term, game = terms_of(recipe)["code_regression"], recipe.stages[0].game
    assert term.to == {"encoder": 0.25}
    s = rolled_out(game, game.phases[1], batch_for(VECTOR))
    squares = (game.nets["encoder"](s["x_fake"]) - s["z_prior"]).square().sum(1)
    torch.testing.assert_close(term.loss(s), squares.mean())
    assert "code_regression" not in terms_of(build("bigan"))


def test_alis_encoder_draws_and_bigans_is_a_function():
    for name, same in (("ali", False), ("bigan", True)):
        game = build(name).stages[0].game
        a, b = (rolled_out(game, game.phases[0], batch_for(IMAGE), seed=s)["z"] for s in (1, 2))
        assert torch.equal(a, b) == same


def test_orders():
    """BiGAN's discriminator moves first, and `critic_plays` times on fresh batches; in one phase all move at once."""
    game = build("bigan", critic_plays=3).stages[0].game
    assert [p.name for p in game.phases] == ["discriminator", "inference"]
    assert [p.repeats for p in game.phases] == [3, 1]
    drawn = []
    step(game, begin(game), lambda: drawn.append(1) or batch_for(IMAGE))
    assert len(drawn) == 3
    assert [p.name for p in build("bigan", order="simultaneous", critic_plays=1).stages[0].game.phases] == ["joint"]
    assert [p.repeats for p in build("ali").stages[0].game.phases] == [3, 1]


def digits() -> torch.Tensor:
    """scikit-learn's, in a fixed random order, in [-1, 1]."""
    images = torch.as_tensor(load_digits().images, dtype=torch.float32)
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))][:, None] / 8 - 1


def reconstruction_errors(name: str, steps: int, **options) -> dict[str, float]:
    """Summed squared error of test digits through the averages of the trained encoder and decoder, through that decoder
    behind an untrained encoder (card D7), and of the training digits' mean."""
    x, tiny = digits(), {"arch": "mlp", "width": 128, "latent": 6, "ema_half_life_examples": 2000.0, **options}
    spec = Spec("image", (1, 8, 8), layout="HW")
    recipe, untrained = (build(name, spec, **tiny) for _ in range(2))
    game, order = recipe.stages[0].game, torch.Generator().manual_seed(0)
    progress = begin(game)
    for _ in range(steps):
        step(game, progress, lambda: {"x": x[torch.randint(1500, (64,), generator=order)]})
    encode, decode = (recipe.abilities[ability] for ability in ("encode", "decode"))
    test = x[1500:]

    def error(x_rec: torch.Tensor) -> float:
        return (x_rec - test).square().sum((1, 2, 3)).mean().item()

    with torch.no_grad():
        return {
            "trained": error(decode(progress.averages, encode(progress.averages, test))),
            "untrained": error(decode(progress.averages, encode(untrained.nets.eval(), test))),
            "constant": error(x[:1500].mean(0)),
        }


@pytest.mark.parametrize(("name", "options"), [("ali", {}), ("bigan", {"prior": "normal"})])
def test_encoder_and_decoder_learn_to_undo_each_other(name, options):
    """No term asks for it."""
    errors = reconstruction_errors(name, 250, **options)
    assert errors["trained"] < 0.85 * errors["constant"]
    assert errors["trained"] < 0.6 * errors["untrained"]


# Presets.


def test_the_papers_networks_have_the_parameters_of_their_tables():
    torch.manual_seed(0)
    nets = ali.build(ali.paper(), Spec("image", (3, 32, 32))).nets
    counts = {name: sum(w.numel() for w in net.parameters()) for name, net in nets.items()}
    encoder = 25 * 3 * 32 + 16 * (32 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 512 * 512
    norms = 2 * (32 + 64 + 128 + 256 + 512 + 512)
    assert counts["encoder"] == encoder + norms + 512 * 128 + 128
    decoder = 16 * (64 * 256 + 256 * 128 + 128 * 64 + 64 * 32) + 25 * 32 * 32 + 32 * 32 + 32 * 3
    assert counts["decoder"] == decoder + 2 * (256 + 128 + 64 + 32 + 32 + 32) + 3 * 32 * 32
    pieces = 25 * 3 * 32 + 32 + 16 * (16 * 64 + 32 * 128 + 64 * 256 + 128 * 512)
    joint = (512 * 1024 + 1024) * 2 + 512 + 1
    assert counts["discriminator"] == pieces + 64 * 512 + 256 * 512 + joint
    x, z = torch.zeros(2, 3, 32, 32), torch.zeros(2, 64)
    assert nets["encoder"](x).shape == (2, 128) and nets["decoder"](z).shape == x.shape
    assert nets["discriminator"](x, z).shape == (2,)
    assert 0.009 < nets["encoder"].net[0][0].weight.std() < 0.011


def test_bigans_mnist_networks_have_the_parameters_of_two_layers_of_1024():
    nets = bigan.build(bigan.paper(), Spec("image", (1, 28, 28))).nets
    counts = {name: sum(w.numel() for w in net.parameters()) for name, net in nets.items()}
    normed = 2 * 1024  # gain and shift; a layer before BatchNorm has no bias
    assert counts["encoder"] == 784 * 1024 + 1024 * 1024 + 2 * normed + 1024 * 50 + 50
    assert counts["decoder"] == 50 * 1024 + 1024 * 1024 + 2 * normed + 1024 * 784 + 784
    assert counts["discriminator"] == (784 + 50) * 1024 + 1024 + 1024 * 1024 + normed + 1024 + 1


def test_maxout_takes_the_largest_of_neighbouring_channels():
    h = torch.tensor([[1.0, 5.0, -2.0, -3.0]])[:, :, None, None]
    assert ali.Maxout(2)(h).flatten().tolist() == [5.0, -2.0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ali", {"critic_plays": 2, "order": "simultaneous"}, "critic_plays is 2 and order is simultaneous"),
        ("ali", {"arch": "paper"}, "for images of 32×32 and this data is images of 1×8×8"),
        ("ali", {"latent": 0}, "latent is 0"),
        ("bigan", {"latent": 65}, "latent is 65, but this data has 64 values"),
        ("bigan", {"learning_rate_discriminator": 0.0}, "learning_rate_discriminator is 0.0"),
        ("bigan", {"norm_discriminator": "batch"}, "BatchNorm mixes them"),
        ("bigan", {"code_weight": -1.0}, "code_weight is -1.0"),
        ("ali", {"penalty_weight": -1.0}, "penalty_weight is -1.0"),
        ("bigan", {"order": "both"}, "unknown value for order 'both'"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(InputError, match=message):
        build(name, **options)


@pytest.mark.parametrize("options", [{"conditional": True}, {"spectral": True}])
def test_refusals_of_the_papers_networks(options):
    with pytest.raises(InputError, match="the paper's networks"):
        build("ali", Spec("image", (3, 32, 32), classes=2), arch="paper", **options)
