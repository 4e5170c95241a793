"""The systems on pairs: published routing, gradients and cost against loops written out by hand, exact toys."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from twofold import recipes
from twofold.data import Batches, load, to_model
from twofold.errors import InputError
from twofold.game import Game, Player, begin, held, step
from twofold.latents import split_mean_log_var
from twofold.model import evaluating
from twofold.nets.fitting import cut, padded
from twofold.nets.patch import PATCHES, PatchDiscriminator, layers_of
from twofold.nets.pool import ImagePool
from twofold.nets.unet import UNet
from twofold.overview import show
from twofold.recipes import bicycle_gan, cyclegan, pix2pix
from twofold.spec import Spec
from twofold.terms.matching import l1_per_value

IMAGE = Spec("image", (3, 16, 16))
PAIR = Spec("image", (3, 16, 16), input=IMAGE)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(name: str) -> dict[str, dict]:
    (stage,) = show(name)["stages"]
    return {term["name"]: term["to"] for phase in stage["phases"] for term in phase["terms"]}


# Routing.


def test_published_routing():
    """systems-images §1 and §3.7-3.9, §4.7, the weights included."""
    judged, deceived = (
        {"adversarial_discriminator": {"discriminator": 0.5}},
        {"adversarial_generator": {"generator": 1.0}},
    )
    near = {"l1": {"generator": 100.0}}
    assert rows("pix2pix") == rows("pix2pix-l1-gan") == rows("pix2pix-paper") == judged | deceived | near
    assert rows("pix2pix-l1") == near and rows("pix2pix-gan") == rows("pix2pix-cgan") == judged | deceived
    assert [phase["name"] for phase in show("pix2pix")["stages"][0]["phases"]] == ["discriminator", "generator"]

    both = {"generator_x": 10.0, "generator_a": 10.0}
    adversarial = {"adversarial_x": {"generator_x": 1.0}, "adversarial_a": {"generator_a": 1.0}}
    judging = {"discriminator_x": {"discriminator_x": 0.5}, "discriminator_a": {"discriminator_a": 0.5}}
    identity = {"identity_x": {"generator_x": 5.0}, "identity_a": {"generator_a": 5.0}}
    cycles = {"cycle_a": both, "cycle_x": both}
    assert rows("cyclegan") == adversarial | cycles | identity | judging
    assert rows("cyclegan-cycle") == cycles and rows("cyclegan-gan") == adversarial | judging
    assert rows("cyclegan-forward") == adversarial | judging | {"cycle_a": both}
    assert rows("cyclegan-backward") == adversarial | judging | {"cycle_x": both}

    encoded = {
        "l1": {"encoder": 10.0, "generator": 10.0},
        "adversarial_encoded": {"encoder": 1.0, "generator": 1.0},
        "discriminator_encoded": {"discriminator_encoded": 1.0},
    }
    drawn = {"adversarial_random": {"generator": 1.0}, "discriminator_random": {"discriminator_random": 1.0}}
    assert rows("bicycle-gan") == {"kl": {"encoder": 0.01}} | encoded | drawn | {"style_l1": {"generator": 0.5}}
    assert rows("cvae-gan") == {"kl": {"encoder": 0.01}} | encoded and rows("cae-gan") == encoded
    assert rows("clr-gan") == drawn | {"style_l1": {"encoder": 0.5, "generator": 0.5}}

    assert rows("cogan") == {
        "discriminator_a": {"stem_a": 1.0, "discriminator": 1.0},
        "discriminator_x": {"stem_x": 1.0, "discriminator": 1.0},
        "adversarial_a": {"generator": 1.0, "head_a": 1.0},
        "adversarial_x": {"generator": 1.0, "head_x": 1.0},
    }


# Against loops written out by hand.


def built(name: str, **options) -> Game:
    torch.manual_seed(0)
    game = recipes.build(name, PAIR, options)[1].stages[0].game
    game.nets.double()
    return game


def batch(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {k: torch.rand(n, 3, 16, 16, generator=g, dtype=torch.float64) * 2 - 1 for k in ("a", "x")}


def ours(game: Game, data: dict, progress=None) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of one step, read off a move at rate 1, and its FLOPs."""
    plain = {n: Player(p.net, partial(torch.optim.SGD, lr=1.0)) for n, p in game.players.items()}
    one = Game(plain, game.phases, memory=game.memory)
    start = {k: v.clone() for k, v in game.nets.named_parameters()}
    progress = progress or begin(one, seed=4)
    with FlopCounterMode(display=False) as counter:
        step(one, progress, lambda: data)
    gradients = {k: start[k] - v.detach() for k, v in game.nets.named_parameters()}
    with torch.no_grad():
        for k, v in game.nets.named_parameters():
            v.copy_(start[k])
    return gradients, counter.get_total_flops()


def by_hand(game: Game, losses) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of `losses`, a list of functions (objective, players it is for), one backward pass each; FLOPs."""
    game.nets.train()
    found: dict[str, torch.Tensor] = {k: torch.zeros_like(v) for k, v in game.nets.named_parameters()}
    with FlopCounterMode(display=False) as counter:
        for objective, players in losses:
            own = {k: v for k, v in game.nets.named_parameters() if k.partition(".")[0] in players}
            gradients = torch.autograd.grad(objective(), list(own.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(own, gradients, strict=True):
                found[name] += 0 if gradient is None else gradient
    return found, counter.get_total_flops()


def same(mine: dict, hand: dict) -> None:
    for name, gradient in hand.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def square(logits: torch.Tensor, target: float) -> torch.Tensor:
    return (logits - target).square().mean()


@pytest.mark.parametrize("seen", [0, 16])
def test_cyclegan_has_the_gradients_of_the_usual_loop_and_costs_less(seen):
    """The usual loop: six generator calls, the generators' backward, then each discriminator on real images and on
    generated ones again, or on past ones that its pool returns."""
    game = built("cyclegan", width=4, blocks=1, pool=4)
    n, data = game.nets, batch(4)
    a, x = data["a"], data["x"]
    past = {}
    for d, key in (("x", "a"), ("a", "x")):
        pool = n[f"pool_{d}"]
        if seen:
            pool.images.copy_(batch(4, seed=7)[d])
            pool.filled.fill_(True)
        with torch.no_grad():
            fake = n[f"generator_{d}"](data[key])
        trial = ImagePool(4, (3, 16, 16)).double()
        trial.load_state_dict(pool.state_dict())
        shown = trial.show(fake, seen=seen, key=4)
        past[d] = torch.cat([fake[shown.new], *([] if shown.past is None else [shown.past])])
        assert len(shown.new) == (4 if seen == 0 else 2)

    def losses():
        made = {}

        def generators():
            made["x"], made["a"] = n["generator_x"](a), n["generator_a"](x)
            cycle = F.l1_loss(n["generator_a"](made["x"]), a) + F.l1_loss(n["generator_x"](made["a"]), x)
            identity = F.l1_loss(n["generator_x"](x), x) + F.l1_loss(n["generator_a"](a), a)
            fooled = square(n["discriminator_x"](made["x"]), 1) + square(n["discriminator_a"](made["a"]), 1)
            return fooled + 10 * cycle + 5 * identity

        def judge(d):
            net = n[f"discriminator_{d}"]
            return lambda: 0.5 * (square(net(data[d]), 1) + square(net(past[d]), 0))

        return [(generators, ("generator_x", "generator_a"))] + [
            (judge(d), (f"discriminator_{d}",)) for d in ("x", "a")
        ]

    hand, usual = by_hand(game, losses())
    plain = {k: Player(p.net, partial(torch.optim.SGD, lr=1.0)) for k, p in game.players.items()}
    progress = begin(Game(plain, game.phases, memory=game.memory), seed=4)
    progress.examples = seen
    mine, flops = ours(game, data, progress)
    same(mine, hand)
    assert flops < usual, f"{flops / usual:.3f}"


def test_bicycle_gan_has_the_gradients_of_the_usual_loop_and_costs_less():
    """The usual loop: one backward for everything but the distance of styles, a second through the same graph for that,
    and both discriminators on all images again."""
    game = built("bicycle-gan", width=4, max_width=8, latent=3)
    n, data = game.nets, batch(4)
    a, x = data["a"], data["x"]

    def losses():
        kept = {}

        def both():
            g = torch.Generator().manual_seed(4)
            mean, log_var = split_mean_log_var(n["encoder"](x))
            z_enc = mean + (0.5 * log_var).exp() * torch.randn(mean.shape, generator=g, dtype=mean.dtype)
            z = kept["z"] = torch.randn(mean.shape, generator=g, dtype=mean.dtype)
            x_enc, x_fake = kept["enc"], kept["fake"] = n["generator"](a, z_enc), n["generator"](a, z)
            kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean()
            fooled = square(n["discriminator_encoded"](x_enc), 1) + square(n["discriminator_random"](x_fake), 1)
            kept["mean"] = split_mean_log_var(n["encoder"](x_fake))[0]
            return fooled + 10 * F.l1_loss(x_enc, x) + 0.01 * kl

        def styles():
            return 0.5 * F.l1_loss(kept["mean"], kept["z"])

        def judge(half, key):
            net = n[f"discriminator_{half}"]
            return lambda: square(net(x), 1) + square(net(kept[key].detach()), 0)

        return [
            (both, ("encoder", "generator")),
            (styles, ("generator",)),
            (judge("encoded", "enc"), ("discriminator_encoded",)),
            (judge("random", "fake"), ("discriminator_random",)),
        ]

    hand, usual = by_hand(game, losses())
    mine, flops = ours(game, data)
    same(mine, hand)
    assert flops < 0.9 * usual, f"{flops / usual:.3f}"


def test_one_backward_pass_serves_both_generators_and_style_and_encoder(monkeypatch):
    passes = []
    original = torch.Tensor.backward

    def counted(self, *args, **kwargs):
        passes.append(len(kwargs["inputs"]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", counted)
    for name, expected in (("cyclegan", 3), ("bicycle-gan", 3), ("clr-gan", 2), ("pix2pix", 2), ("cogan", 2)):
        passes.clear()
        game = built(name, width=4, **({"blocks": 1} if name == "cyclegan" else {}))
        step(game, begin(game), lambda: batch(2))
        assert len(passes) == expected, name


def test_held_networks_pass_gradient_to_their_input_only():
    net = torch.nn.Linear(2, 2)
    x = torch.ones(1, 2, requires_grad=True)
    y = held(net)(x)
    assert torch.equal(y, net(x))
    y.sum().backward()
    assert net.weight.grad is None and torch.equal(x.grad[0], net.weight.detach().sum(0))


# Parts.


def test_the_pool_shows_half_past_images_once_it_is_full():
    pool = ImagePool(6, (1,))
    history: list[float] = []
    shown_past = total = 0
    for call in range(200):
        new = torch.arange(4.0)[:, None] + 4 * call
        shown = pool.show(new, seen=4 * call, key=1)
        if call == 0:
            assert shown.new == [0, 1, 2, 3] and shown.past is None
        if shown.past is not None:
            assert set(shown.past.flatten().tolist()) <= set(history)
            shown_past += len(shown.past)
        assert len(shown.new) + (0 if shown.past is None else len(shown.past)) == 4
        history += new.flatten().tolist()
        total += 4
    assert 0.4 < shown_past / total < 0.6
    assert ImagePool(0, (1,)).show(torch.zeros(3, 1), seen=9, key=0).new == [0, 1, 2]
    # Places that no image has reached yet (parts of an accumulated batch) are never shown.
    fresh = ImagePool(2, (1,))
    for k in range(20):
        out = fresh.show(torch.ones(2, 1), seen=50 + 2 * k, key=0)
        assert out.past is None or bool((out.past == 1).all())


@pytest.mark.parametrize("patch", [1, 16, 34, 70])
def test_a_logit_sees_its_patch_and_no_more(patch):
    torch.manual_seed(0)
    net = PatchDiscriminator(1, layers=layers_of(patch), width=2, norm="none").double()
    x = torch.randn(1, 1, 160, 160, dtype=torch.float64, requires_grad=True)
    logits = net(x)
    middle = logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2]
    (gradient,) = torch.autograd.grad(middle, x)
    seen = (gradient[0, 0] != 0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [patch, patch]
    assert set(PATCHES) >= {patch}


def test_paper_networks_have_the_papers_numbers_of_parameters():
    """Counted by hand from the tables of the appendices: convolutions with a bias where no normalisation follows."""
    spec = Spec("image", (3, 256, 256), input=Spec("image", (3, 256, 256)))
    nets = recipes.build("pix2pix-paper", spec)[1].nets
    down = [3, 64, 128, 256, 512, 512, 512, 512, 512]
    count = sum(16 * a * b for a, b in zip(down[:-1], down[1:], strict=True)) + 64 + 512
    up = [(512, 512), (1024, 512), (1024, 512), (1024, 512), (1024, 256), (512, 128), (256, 64)]
    count += sum(16 * a * b for a, b in up) + 16 * 128 * 3 + 3
    assert sum(w.numel() for w in nets["generator"].parameters()) == count == 54_404_675
    judge = 16 * (6 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1
    assert sum(w.numel() for w in nets["discriminator"].parameters()) == judge == 2_766_913
    nets = recipes.build("cyclegan-paper", spec)[1].nets
    resnet = 49 * 3 * 64 + 9 * (64 * 128 + 128 * 256) * 2 + 18 * 9 * 256 * 256 + 49 * 64 * 3 + 3
    assert sum(w.numel() for w in nets["generator_x"].parameters()) == resnet
    assert pix2pix.paper().halvings == 8 and cyclegan.paper().blocks == 9 and bicycle_gan.cae_gan().kl_weight == 0


def test_padding_is_undone_and_skips_and_dropout_do_what_they_say():
    x = torch.rand(2, 1, 7, 10)
    assert padded(x, 4).shape == (2, 1, 8, 12) and torch.equal(cut(padded(x, 4), x), x)
    torch.manual_seed(0)
    net = UNet(1, 1, halvings=3, width=4, dropout=0.5)
    quiet, a, b = net(x), *(net(x, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    assert torch.equal(quiet, net(x)) and not torch.equal(a, b) and not torch.equal(a, quiet)
    net.eval()
    assert torch.equal(a, net(x, generator=torch.Generator().manual_seed(0))), "noise in use as in training"
    plain = UNet(1, 1, halvings=3, width=4, skip=False)
    assert sum(w.numel() for w in plain.parameters()) < sum(w.numel() for w in net.parameters())
    assert l1_per_value(torch.zeros(2, 4), torch.ones(2, 4)).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pix2pix", {"l1_weight": 0.0, "adversarial_weight": 0.0}, "nothing to learn"),
        ("pix2pix", {"patch": 20}, "allowed: 1, 16, 34"),
        ("pix2pix", {"patch": 70}, "too small for 3 layers"),
        ("pix2pix", {"dropout": 1.0}, "dropout is 1.0"),
        (
            "cyclegan",
            {"cycles": "forward", "adversarial_weight": 0.0, "identity_weight": 0.0},
            "both cycles are needed",
        ),
        ("cyclegan", {"pool": -1}, "pool is -1"),
        ("bicycle-gan", {"encoded": False, "random": False}, "both off"),
        ("bicycle-gan", {"encoded": False}, "use --style-to-encoder"),
        ("bicycle-gan", {"adversarial_weight": 0.0}, "adversarial_weight is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        recipes.build(name, PAIR, options)
    grey = Spec("image", (3, 16, 16), input=Spec("image", (1, 16, 16)))
    with pytest.raises(InputError, match="the two sides have shapes"):
        recipes.build("cyclegan", grey, {"identity_weight": 1.0})


# Exact toys.


def trained(name: str, source: str, steps: int, *, seed: int = 0, batch_size: int = 64, **options):
    data = load(source)
    torch.manual_seed(seed)
    _, recipe = recipes.build(name, data.spec, options)
    game = recipe.stages[0].game
    progress = begin(game, seed=seed)
    batches = Batches(data.train, data.spec, batch_size=batch_size, seed=seed)
    for _ in range(steps):
        step(game, progress, lambda: batches.draw(progress.examples))
    return recipe, data


def offsets(recipe, data, draws: int = 12) -> torch.Tensor:
    """x - a of translations, (inputs, draws), in the data's units."""
    a = data.test.a[:300]
    with evaluating(recipe.nets):
        made = [
            recipe.abilities["translate"](
                recipe.nets, to_model(a, data.spec.input), generator=torch.Generator().manual_seed(k)
            )
            for k in range(draws)
        ]
    return torch.cat([x * data.spec.std[0] + data.spec.mean[0] - a for x in made], dim=1)


def test_two_modes_l1_gives_the_median_a_gan_a_mode_and_bicycle_gan_both():
    """x = a ± 1: the median a + 0 has hardly any data. pix2pix with its L1 weight ignores the noise it is given."""
    median = offsets(
        *trained("pix2pix-l1", "two-modes", 300, learning_rate=5e-3, constant_examples=8_000, decay_examples=11_000)
    )
    assert ((median.abs() - 1).abs() < 0.5).float().mean() < 0.2 and median.std(1).mean() == 0
    mode = offsets(*trained("pix2pix-cgan", "two-modes", 600, learning_rate=1e-3, batch_size=128))
    assert ((mode.abs() - 1).abs() < 0.5).float().mean() > 0.55 and mode.std(1).mean() == 0
    noisy = offsets(*trained("pix2pix", "two-modes", 250, learning_rate=1e-3, noise=2))
    several = offsets(
        *trained("bicycle-gan", "two-modes", 800, learning_rate=1.5e-3, latent=2, sees_input=True, kl_weight=0.1)
    )
    both = ((several > 0.6).any(1) & (several < -0.6).any(1)).float().mean()
    assert both > 0.5 and ((several.abs() - 1).abs() < 0.5).float().mean() > 0.65
    assert 2 * noisy.std(1).mean() < several.std(1).mean()


def linear_map(recipe, name: str = "generator_x") -> torch.Tensor:
    """The matrix of a generator without hidden layers."""
    return recipe.nets[name].net.head.weight.detach()


def test_affine_domains_cycles_alone_find_a_bijection_and_identities_the_right_one():
    """Both sides look alike to the models, so the map that was used is the identity there."""
    linear = {"depth": 0, "learning_rate": 1e-2, "batch_size": 128}
    recipe, _ = trained("cyclegan-cycle", "affine-2d", 250, **linear)
    there, back = linear_map(recipe), linear_map(recipe, "generator_a")
    assert (back @ there - torch.eye(2)).abs().max() < 0.1
    assert (there - torch.eye(2)).abs().max() > 0.3, "and nothing says that it is the right one"
    adversarial = linear | {"learning_rate": 5e-3, "pool": 0, "width": 32}
    recipe, _ = trained("cyclegan", "affine-2d", 300, **adversarial, identity_weight=0.0)
    other = linear_map(recipe)
    assert (other - torch.eye(2)).abs().max() > 0.5, "the adversarial terms allow others"
    for seed in (0, 1):
        recipe, data = trained("cyclegan", "affine-2d", 500, seed=seed, **adversarial)
        assert (linear_map(recipe) - torch.eye(2)).abs().max() < 0.1
        a = data.test.a[:100]
        with evaluating(recipe.nets):
            x = recipe.abilities["translate"](recipe.nets, to_model(a, data.spec.input))
        x = x * torch.tensor(data.spec.std) + torch.tensor(data.spec.mean)
        assert (x - (a * torch.tensor([2.0, 0.5]) + torch.tensor([3.0, -1.0]))).abs().mean() < 0.25
