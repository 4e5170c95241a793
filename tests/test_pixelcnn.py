"""PixelCNN: who sees whom, probabilities that sum to one, what is learned, completion; and PixelGAN and the adversarial
PixelCNN, which are built on it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import twofold
from twofold import recipes
from twofold.autoregressive import MixtureHead, Pixels, pixel_nll
from twofold.cli import main
from twofold.errors import InputError
from twofold.game import State, begin, step
from twofold.model import Model
from twofold.nets.pixelcnn import PixelCNN
from twofold.overview import EXAMPLE
from twofold.spec import Spec

TINY = {"width": 8, "layers": 2, "first_kernel": 3}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scattered(net: nn.Module) -> nn.Module:
    source = generator(1)
    for weight in net.parameters():
        nn.init.normal_(weight, std=(2 / weight[0].numel()) ** 0.5 if weight.ndim > 1 else 0.3, generator=source)
    return net.eval().double()


def tokens_of(*shape: int, levels: int) -> torch.Tensor:
    return torch.randint(levels, shape, generator=generator(2))


# Who sees whom.


@pytest.mark.parametrize("attention_every", [0, 2])
def test_a_pixel_sees_exactly_the_pixels_before_it(attention_every):
    """The Jacobian of every pixel's features by every pixel: zero at the pixel itself and after it, not before it."""
    side = 5
    net = scattered(PixelCNN(2, side, side, levels=4, width=8, layers=4, attention_every=attention_every, heads=2))
    values = torch.rand(1, side, side, 2, generator=generator(), dtype=torch.float64) * 2 - 1
    jacobian = torch.autograd.functional.jacobian(lambda v: net.features(v).sum(-1)[0], values)[:, :, 0]
    seen = (jacobian.abs().amax(-1) > 0).flatten(2).flatten(0, 1)  # (by whom, who)
    # ReLUs at zero would hide what is seen; with these weights none of the pixels' features are all zero.
    assert torch.equal(seen, torch.ones(side**2, side**2, dtype=torch.bool).tril(-1))


@pytest.mark.parametrize("kernels", [(3, 3), (5, 7)])
def test_there_is_no_blind_spot_and_no_reach_beyond_the_kernels(kernels):
    """One layer after the input's: the receptive field by hand."""
    kernel, first = kernels
    side, r, r0 = 11, kernel // 2, first // 2
    net = scattered(PixelCNN(1, side, side, levels=2, width=8, layers=1, kernel=kernel, first_kernel=first))
    values = torch.rand(1, side, side, 1, generator=generator(), dtype=torch.float64)
    values.requires_grad_(True)
    row, column = 8, 5
    net.features(values)[0, row, column].sum().backward()
    seen = values.grad[0, :, :, 0] != 0
    expected = torch.zeros(side, side, dtype=torch.bool)
    for i in range(side):
        for j in range(side):
            up, left = row - i, column - j
            above = 1 <= up <= r0 + r and abs(left) <= r0 + r
            beside = (up == 0 and 1 <= left <= r0 + r) or (1 <= up <= r0 and -r0 <= left <= r0 + r)
            expected[i, j] = above or beside
    assert torch.equal(seen, expected)


def test_channels_of_a_pixel_come_in_order():
    net = scattered(PixelCNN(3, 2, 2, levels=4, width=8, layers=2))
    tokens = tokens_of(1, 12, levels=4)
    seen = torch.zeros(12, 12, dtype=torch.bool)
    with torch.no_grad():
        base = net(tokens)
        for place in range(12):
            changed = tokens.clone()
            changed[0, place] = (changed[0, place] + 2) % 4
            seen[place] = (net(changed) - base)[0].abs().amax(1) > 1e-12
    assert torch.equal(seen, torch.ones(12, 12, dtype=torch.bool).triu(1))


# Probabilities.


def all_images(size: int, levels: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(levels), repeat=size)))


@pytest.mark.parametrize("likelihood", ["categorical", "mixture"])
def test_the_probabilities_of_all_binary_3x3_images_sum_to_one(likelihood):
    torch.manual_seed(0)
    spec = Spec("image", (1, 3, 3), layout="HW", low=0, high=1)
    _, recipe = recipes.build("pixelcnn", spec, {**TINY, "likelihood": likelihood, "components": 3})
    net = scattered(recipe.nets["pixelcnn"])
    with torch.no_grad():
        p = (-pixel_nll(net, all_images(9, 2))).exp()
    assert len(p) == 2**9 and p.std() > 1e-4
    torch.testing.assert_close(p.sum(), torch.ones((), dtype=torch.float64), rtol=1e-10, atol=1e-10)
    # And the ability says the same of images.
    x = np.array(list(itertools.product(range(2), repeat=9)), dtype=np.uint8).reshape(-1, 3, 3)
    recipe.nets.float()
    exact = Model(recipe, recipe.nets).log_prob(x)
    assert np.exp(exact["log_prob_nats"]).sum() == pytest.approx(1, abs=1e-5)
    assert np.allclose(exact["bits_per_dim"] * 9 * math.log(2), -exact["log_prob_nats"])


def test_a_colour_pixels_mixture_is_a_distribution_and_draws_as_it_scores():
    head = scattered(MixtureHead(6, 3, 3, 4))
    net = PixelCNN(3, 1, 1, levels=3, width=6, layers=1, head=head)
    net = net.double().eval()
    tokens = all_images(3, 3)
    with torch.no_grad():
        direct = pixel_nll(net, tokens)
        logits = net(tokens)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones_like(logits[..., 0]))
    by_token = -logits.gather(2, tokens.unsqueeze(2)).sum((1, 2))
    torch.testing.assert_close(by_token, direct, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close((-direct).exp().sum(), torch.ones((), dtype=torch.float64), rtol=1e-8, atol=1e-8)


def test_parameters_by_hand():
    def by_hand(width: int, layers: int, kernel: int, first: int, inputs: int) -> int:
        r, r0 = kernel // 2, first // 2
        start = width * inputs * r0 * first + width + width * width + width + width * inputs * r0
        layer = 2 * width * width * (r + 1) * kernel + 2 * width + 4 * width * width + 2 * width
        layer += 2 * width * width * (r + 1) + width * width + width
        return start + layers * layer

    for name, options, head in (
        ("pixelcnn", {}, 32 * 32 + 32 + 32 * 256 + 256),
        ("pixelcnn-pp", {}, (64 + 1) * 10 * 3),
    ):
        config, recipe = recipes.build(name, EXAMPLE, options)
        expected = by_hand(config.width, config.layers, config.kernel, config.first_kernel, 2) + head
        assert sum(w.numel() for w in recipe.nets["pixelcnn"].parameters()) == expected


# Learning and drawing.


def trained(name: str, x: torch.Tensor, steps: int, spec: Spec, **options) -> tuple[Model, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    _, recipe = recipes.build(name, spec, options)
    game = recipe.stages[0].game
    progress, values = begin(game, seed=0), {}
    for _ in range(steps):
        chosen = torch.randint(len(x), (32,), generator=progress.generator)
        values = step(game, progress, lambda chosen=chosen: {"x": x[chosen]})
    return Model(recipe, recipe.nets), values


BITS = Spec("image", (1, 4, 4), layout="HW", low=0, high=1)


def test_it_learns_the_entropy_of_the_data():
    """Images all black or all white hold log 2 nats; a control of independent pixels 16 log 2."""
    one = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    noise = torch.randint(2, (4096, 1, 4, 4), generator=generator()) * 2.0 - 1
    for x, nats, room in ((one, math.log(2), 0.05), (noise, 16 * math.log(2), 0.3)):
        model, _ = trained("pixelcnn", x, 300, BITS, **TINY, learning_rate=1e-2)
        images = ((x[:256, 0] + 1) / 2).to(torch.uint8).numpy()
        assert -model.log_prob(images)["log_prob_nats"].mean() == pytest.approx(nats, abs=room)
    # What it has learned of the first set shows in what it draws and in how it completes.
    model, _ = trained("pixelcnn", one, 300, BITS, **TINY, learning_rate=1e-2)
    drawn = model.sample(64, seed=1)
    flat = drawn.reshape(64, -1)
    assert (flat == flat[:, :1]).mean() > 0.98 and 10 < flat[:, 0].sum() < 54
    given = np.zeros((8, 4, 4), dtype=np.uint8)
    given[:, :2] = np.arange(8).reshape(-1, 1, 1) % 2
    completed = model.complete(given, known=0.5)
    assert np.array_equal(completed[:, :2], given[:, :2])
    assert (completed[:, 2:] == given[:, :1, :1]).mean() > 0.98
    assert np.array_equal(model.complete(given, known=1), given)


def test_images_and_tokens_are_the_same_thing():
    pixels = Pixels((3, 2, 4), 17)
    tokens = tokens_of(5, 24, levels=17)
    assert torch.equal(pixels.tokens(pixels.images(tokens)), tokens)
    x = pixels.images(tokens)
    assert x.shape == (5, 3, 2, 4)
    # Raster order, channels innermost.
    assert torch.equal(x[:, :, 0, 1], tokens[:, 3:6].float() / 8 - 1)
    grey = torch.full((2000, 1, 1, 1), 0.4)
    binary = Pixels((1, 1, 1), 2, binarise=True)
    assert binary.tokens(grey, generator=generator()).float().mean() == pytest.approx(0.7, abs=0.04)
    assert (binary.tokens(grey) == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"binarise": True, "levels": 4}, "levels is 4, but --binarise gives 2"),
        ({"levels": 1}, "levels is 1; a pixel has at least 2"),
        ({"levels": 5000}, "5000 levels are too many tokens"),
        ({"kernel": 4}, "kernel is 4; give an odd number"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"layers": -1}, "layers is -1"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"guidance": 2.0}, "guidance is by labels"),
        ({"guidance": 2.0, "conditional": True}, "trained with label_dropout 0"),
        ({"likelihood": "mixture", "components": 0}, "components is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        recipes.build("pixelcnn", Spec("image", (1, 4, 4), classes=3, layout="HW"), options)


def test_the_command_line_completes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ["--width", "4", "--layers", "1", "--levels", "17"]
    assert main(["train", "pixelcnn", "--data", "digits", "--out", "run", "--examples", "64", *size]) == 0
    assert main(["complete", "run", "-n", "3", "--variants", "2", "--known", "0.25", "--out", "c.npz"]) == 0
    arrays = np.load("c.npz")
    x, completed = arrays["x"], arrays["x_completed"]
    assert completed.shape == (3, 2, 8, 8) and np.array_equal(completed[:, 0, :2], x[:, :2])
    assert not np.array_equal(completed[:, 0], completed[:, 1])
    assert main(["complete", "run", "-n", "2"]) == 0
    assert (tmp_path / "run" / "completions-seed0.png").is_file()
    metrics = twofold.load("run").run.metrics()
    assert any("test_bits_per_dim" in record for record in metrics)
    capsys.readouterr()
    assert main(["complete", "run", "--known", "1.5"]) == 2
    assert "known is 1.5; give the part" in capsys.readouterr().err
    assert main(["reconstruct", "run"]) == 2
    assert "this model cannot reconstruct; it can sample, complete, log_prob" in capsys.readouterr().err


# PixelGAN.


def patterns(n: int = 2048) -> torch.Tensor:
    """One of four patterns of 6×6 random pixels, a twentieth of the pixels turned over."""
    of_four = torch.randint(2, (4, 1, 6, 6), generator=generator(3)) * 2.0 - 1
    x = of_four[torch.randint(4, (n,), generator=generator(4))]
    return torch.where(torch.rand(x.shape, generator=generator(5)) < 0.05, -x, x)


PATTERNS = Spec("image", (1, 6, 6), layout="HW", low=0, high=1)


@pytest.mark.parametrize(("name", "bias"), [("pixelgan", "invariant"), ("pixelgan-clustering", "dependent")])
def test_the_decoder_listens_to_the_code(name, bias):
    """Its cost with another image's code is far above that with its own; untrained, the two are alike."""
    options = {**TINY, "width_encoder": 8, "hidden": 16, "code_width": 16, "bias": bias, "learning_rate": 3e-3}
    options |= {"clusters": 4} if name == "pixelgan-clustering" else {"latent": 4}
    x, gap = patterns(), {}
    for steps in (0, 200):
        model, _ = trained(name, x, steps, PATTERNS, **options)
        tokens = Pixels((1, 6, 6), 2).tokens(x[:256])
        with torch.no_grad():
            nets = model.nets.eval()
            z = model.recipe.abilities["encode"](nets, x[:256])
            true, shuffled = (nets["decoder"](tokens, code).mean() for code in (z, z.roll(1, 0)))
        gap[steps] = float(shuffled - true)
    assert abs(gap[0]) < 0.3 and gap[200] > 3
    if name == "pixelgan-clustering":
        assert len(model.classify(((x[:256, 0] + 1) / 2).byte().numpy()).argmax(1)) == 256
    assert model.sample(3, seed=0).shape == (3, 6, 6)


def test_routing_and_refusals_of_pixelgan():
    for name in ("pixelgan", "pixelgan-clustering"):
        _, recipe = recipes.build(name, EXAMPLE)
        rows = {term.name: dict(term.to) for phase in recipe.stages[0].game.phases for term in phase.terms}
        assert rows == {
            "reconstruction": {"encoder": 1.0, "decoder": 1.0},
            "code_adversarial_discriminator": {"code_discriminator": 1.0},
            "code_adversarial_encoder": {"encoder": 10.0},
        }
    for options, message in (
        ({"clusters": 1}, "clusters is 1"),
        ({"map_channels": 0}, "map_channels is 0"),
        ({"category_noise": -1.0}, "category_noise is -1"),
        ({"adversarial_weight": -1.0}, "adversarial_weight is -1"),
        ({"learning_rate_code_discriminator": 0.0}, "learning_rate_code_discriminator is 0|must be above 0"),
    ):
        with pytest.raises(InputError, match=message):
            recipes.build("pixelgan", EXAMPLE, options)


def test_the_categorical_prior_is_one_hot_and_even():
    _, recipe = recipes.build("pixelgan-clustering", PATTERNS, {**TINY, "width_encoder": 4, "hidden": 4, "clusters": 5})
    codes = recipe.abilities["prior"](recipe.nets, 5000, generator=generator())
    assert torch.equal(codes.sum(1), torch.ones(5000)) and set(codes.unique().tolist()) == {0.0, 1.0}
    assert (codes.mean(0) - 0.2).abs().max() < 0.03


# The adversarial PixelCNN.

PAIR = Spec("image", (1, 1, 3), layout="HW", low=0, high=1)


def adversary(**options):
    """An adversarial PixelCNN of three binary pixels, its game, and all eight images."""
    torch.manual_seed(0)
    _, recipe = recipes.build("pixelcnn-adv", PAIR, {**TINY, "width_discriminator": 4, "samples": 256, **options})
    net, critic = recipe.nets["pixelcnn"], recipe.nets["discriminator"]
    recipe.nets.eval()
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.4, generator=generator(1) if weight.ndim > 1 else None)
    return recipe, net, critic, all_images(3, 2)


def gradient(loss: torch.Tensor, net: nn.Module) -> torch.Tensor:
    parts = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(parts, net.parameters(), strict=True)]
    )


def estimated(recipe, net, plays: int = 60) -> torch.Tensor:
    """The mean gradient of the adversarial term over many plays."""
    phase = recipe.stages[0].game.phases[1]
    total = torch.zeros(())
    for seed in range(plays):
        state = State(recipe.nets, {"x": torch.ones(256, 1, 1, 3)}, 0, 0, generator(seed))
        state = State(recipe.nets, state.batch, 0, 0, state.generator, rollout=phase.rollout(state))
        total = total + gradient(phase.terms[1].loss(state), net)
    return total / plays


def expected_gradient(recipe, net, critic, images) -> torch.Tensor:
    """Of minus the expected logit, every image weighed by its exact probability."""
    p = (-pixel_nll(net, images)).exp()
    with torch.no_grad():
        logits = critic(Pixels((1, 1, 3), 2).images(images), None)
    return gradient(-(p * logits).sum(), net)


@pytest.mark.parametrize("baseline", [True, False])
def test_reinforce_is_the_gradient_of_the_expected_logit(baseline):
    recipe, net, critic, images = adversary(baseline=baseline)
    exact, mean = expected_gradient(recipe, net, critic, images), estimated(recipe, net)
    assert (mean - exact).norm() < 0.15 * exact.norm()


def test_a_random_reward_says_nothing_unless_it_has_no_baseline():
    """The control: its gradient is none on average. Without a baseline it is the sum of a mean reward of one half times
    a score, none either on average, but every step then makes what was drawn more probable."""
    recipe, net, critic, images = adversary(reward="random")
    exact = expected_gradient(recipe, net, critic, images)
    assert estimated(recipe, net).norm() < 0.15 * exact.norm()

    def entropy_after(baseline: bool) -> float:
        recipe, net, _, images = adversary(reward="random", baseline=baseline, samples=8)
        phase = recipe.stages[0].game.phases[1]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for seed in range(60):
            state = State(recipe.nets, {"x": torch.ones(8, 1, 1, 3)}, 0, 0, generator(seed))
            state = State(recipe.nets, state.batch, 0, 0, state.generator, rollout=phase.rollout(state))
            optimizer.zero_grad()
            phase.terms[1].loss(state).backward()
            optimizer.step()
        with torch.no_grad():
            nll = pixel_nll(net, images)
        return float(((-nll).exp() * nll).sum())

    assert entropy_after(False) < entropy_after(True) - 0.2


def test_straight_through_moves_towards_what_the_critic_prefers():
    recipe, net, critic, images = adversary(estimator="straight-through")
    exact, mean = expected_gradient(recipe, net, critic, images), estimated(recipe, net, plays=20)
    assert torch.cosine_similarity(exact, mean, dim=0) > 0.5


def test_the_critic_is_silent_before_its_time_and_controls_are_checked():
    recipe, *_ = adversary(adversarial_begin_examples=100)
    (weight,) = recipe.stages[0].game.phases[1].terms[1].to.values()
    at = [State(recipe.nets, {}, examples, 0, generator()) for examples in (0, 99, 100)]
    assert [weight(state) for state in at] == [0.0, 0.0, 0.1]
    for options, message in (
        ({"reward": "random", "estimator": "straight-through"}, "no gradient to pass straight through"),
        ({"samples": 1}, "mean reward of the other samples"),
        ({"samples": 0}, "samples is 0"),
        ({"adversarial_weight": -1.0}, "adversarial_weight is -1"),
        ({"adversarial_begin_examples": -1}, "adversarial_begin_examples is -1"),
    ):
        with pytest.raises(InputError, match=message):
            recipes.build("pixelcnn-adv", PAIR, {**TINY, **options})
