"""The core: bit-identity with hand-written loops, routing, who moves, what is refused. Tiny networks, float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from twofold.coefficients import Cycle, Decay, Equilibrium, GradientBalance, Product, Ramp, equilibrium_rule, product
from twofold.game import (
    Game,
    NonFiniteError,
    Phase,
    Player,
    Stage,
    State,
    Term,
    begin,
    check_finite,
    describe,
    step,
    table,
)

ADAM = partial(torch.optim.Adam, lr=1e-2)
SGD = partial(torch.optim.SGD, lr=0.1)


def mlp(*sizes: int, seed: int = 0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(a, b, dtype=torch.float64), *([nn.BatchNorm1d(b, dtype=torch.float64)] if norm else [])]
        layers += [nn.Tanh()]
    return nn.Sequential(*layers[: -2 if norm else -1])


def stream(features: int = 3, batch: int = 8, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: {"x": torch.randn(batch, features, generator=generator, dtype=torch.float64)}


def noise(state: State, size: int) -> torch.Tensor:
    return torch.randn(len(state.batch["x"]), size, generator=state.generator, dtype=torch.float64)


def bce(logits: torch.Tensor, label: float) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def copied_bytes(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: nn.Module | dict, b: nn.Module | dict) -> bool:
    a, b = (v.state_dict() if isinstance(v, nn.Module) else v for v in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# Toy games, one for each need of the systems to come.


def gan(norm: bool = False, **discriminator) -> Game:
    """Alternating: the discriminator, then the generator (non-saturating)."""

    def discriminate(s: State):
        x_fake = s.nets["generator"](noise(s, 2))
        return {"real": s.nets["discriminator"](s.batch["x"]), "fake": s.nets["discriminator"](x_fake)}

    def generate(s: State):
        return {"fake": s.nets["discriminator"](s.nets["generator"](noise(s, 2)))}

    return Game(
        players={
            "generator": Player(mlp(2, 5, 3, seed=1, norm=norm), ADAM),
            "discriminator": Player(mlp(3, 5, 1, seed=2, norm=norm), ADAM, **discriminator),
        },
        phases=[
            Phase(
                "discriminator",
                discriminate,
                [Term("adversarial_d", lambda s: bce(s["real"], 1) + bce(s["fake"], 0), to={"discriminator": 1})],
            ),
            Phase("generator", generate, [Term("adversarial_g", lambda s: bce(s["fake"], 1), to={"generator": 1})]),
        ],
    )


def vae_rollout(s: State):
    x = s.batch["x"]
    mean, log_var = s.nets["encoder"](x).chunk(2, dim=1)
    z = mean + (0.5 * log_var).exp() * noise(s, 2)
    return {"x": x, "mean": mean, "log_var": log_var, "z": z, "x_rec": s.nets["decoder"](z)}


def kl(s: State) -> torch.Tensor:
    return 0.5 * (s["mean"] ** 2 + s["log_var"].exp() - 1 - s["log_var"]).sum(1).mean()


def reconstruction(s: State) -> torch.Tensor:
    return 0.5 * ((s["x_rec"] - s["x"]) ** 2).sum(1).mean()


def vae(beta=1.0, **encoder) -> Game:
    return Game(
        players={
            "encoder": Player(mlp(3, 5, 4, seed=1), ADAM, **encoder),
            "decoder": Player(mlp(2, 5, 3, seed=2), ADAM),
        },
        phases=[
            Phase(
                "autoencoder",
                vae_rollout,
                [
                    Term("kl", kl, to={"encoder": beta}),
                    Term("reconstruction", reconstruction, to={"encoder": 1, "decoder": 1}),
                ],
            )
        ],
    )


def vae_gan(gamma=0.1, gates: Equilibrium | None = None, norm: bool = False, see_reconstructions: bool = True) -> Game:
    """Larsen et al. 2016: simultaneous play, three different rows."""

    class Discriminator(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = mlp(3, 4, 4, seed=3, norm=norm), mlp(4, 1, seed=4)

        def forward(self, x):
            features = self.trunk(x)
            return self.head(features.tanh()), features

    def rollout(s: State):
        out = vae_rollout(s)
        d = s.nets["discriminator"]
        out["real"], out["f_real"] = d(out["x"])
        out["rec"], out["f_rec"] = d(out["x_rec"])
        out["fake"], _ = d(s.nets["decoder"](noise(s, 2)))
        return out

    def minimax(s: State):
        fakes = [s["fake"], *([s["rec"]] if see_reconstructions else [])]
        return bce(s["real"], 1) + sum(bce(logits, 0) for logits in fakes)

    def features(s: State):
        return 0.5 * ((s["f_rec"] - s["f_real"]) ** 2).sum(1).mean()

    decoder = gates.decoder if gates else 1.0
    discriminator = gates.discriminator if gates else 1.0
    return Game(
        players={
            "encoder": Player(mlp(3, 5, 4, seed=1), ADAM),
            "decoder": Player(mlp(2, 5, 3, seed=2, norm=norm), ADAM),
            "discriminator": Player(Discriminator().double(), ADAM),
        },
        phases=[
            Phase(
                "all",
                rollout,
                [
                    Term("kl", kl, to={"encoder": 1}),
                    Term("feature_reconstruction", features, to={"encoder": 1, "decoder": product(gamma, decoder)}),
                    Term("gan", minimax, to={"decoder": product(-1.0, decoder), "discriminator": discriminator}),
                ],
            )
        ],
    )


def wgan_gp() -> Game:
    """Five critic plays on fresh batches, a penalty that needs a second derivative, lazily every second play."""

    def criticise(s: State):
        x, x_fake = s.batch["x"], s.nets["generator"](noise(s, 2))
        mix = torch.rand(len(x), 1, generator=s.generator, dtype=x.dtype)
        return {
            "real": s.nets["critic"](x),
            "fake": s.nets["critic"](x_fake),
            "mixed": (mix * x + (1 - mix) * x_fake).detach(),
        }

    def penalty(s: State):
        x = s["mixed"].requires_grad_()
        (gradient,) = torch.autograd.grad(s.nets["critic"](x).sum(), x, create_graph=True)
        return ((gradient.norm(dim=1) - 1) ** 2).mean()

    def generate(s: State):
        return {"fake": s.nets["critic"](s.nets["generator"](noise(s, 2)))}

    return Game(
        players={
            "generator": Player(mlp(2, 5, 3, seed=1), ADAM),
            "critic": Player(mlp(3, 5, 1, seed=2), ADAM),
        },
        phases=[
            Phase(
                "critic",
                criticise,
                [
                    Term("wasserstein", lambda s: s["fake"].mean() - s["real"].mean(), to={"critic": 1}),
                    Term("penalty", penalty, to={"critic": 10}, every=2),
                ],
                repeats=5,
            ),
            Phase("generator", generate, [Term("realism", lambda s: -s["fake"].mean(), to={"generator": 1})]),
        ],
    )


def intro_vae(margin=2.0) -> Game:
    """The encoder is its own critic: KL of codes of real, reconstructed and generated examples."""

    def codes(net, x):
        mean, log_var = net(x).chunk(2, dim=1)
        return 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1)

    def encode(s: State):
        out = vae_rollout(s)
        x_fake = s.nets["decoder"](noise(s, 2))
        # sg[x_rec] is part of the objective (Huang et al. 2018, eq. 11), not routing.
        return out | {
            "kl_rec": codes(s.nets["encoder"], out["x_rec"].detach()),
            "kl_fake": codes(s.nets["encoder"], x_fake),
        }

    def decode(s: State):
        out = vae_rollout(s)
        x_fake = s.nets["decoder"](noise(s, 2))
        return out | {"kl_rec": codes(s.nets["encoder"], out["x_rec"]), "kl_fake": codes(s.nets["encoder"], x_fake)}

    def hinge(s: State):
        return F.relu(margin - s["kl_rec"]).mean() + F.relu(margin - s["kl_fake"]).mean()

    return Game(
        players={
            "encoder": Player(mlp(3, 5, 4, seed=1), ADAM),
            "decoder": Player(mlp(2, 5, 3, seed=2), ADAM),
        },
        phases=[
            Phase(
                "encoder",
                encode,
                [
                    Term("kl", kl, to={"encoder": 1}),
                    Term("reconstruction_e", reconstruction, to={"encoder": 1}),
                    Term("hinge", hinge, to={"encoder": 0.5}),
                ],
            ),
            Phase(
                "decoder",
                decode,
                [
                    Term("reconstruction_g", reconstruction, to={"decoder": 1}),
                    Term("kl_g", lambda s: (s["kl_rec"] + s["kl_fake"]).mean(), to={"decoder": 0.5}),
                ],
            ),
        ],
    )


def vqgan() -> Game:
    """An adaptive weight from two gradient norms at the decoder's last layer."""

    def rollout(s: State):
        out = vae_rollout(s)
        return out | {"rec": s.nets["discriminator"](out["x_rec"]), "real": s.nets["discriminator"](out["x"])}

    balance = GradientBalance("reconstruction", "adversarial_g", at=lambda nets: nets["decoder"][-1].weight)
    return Game(
        players={
            "encoder": Player(mlp(3, 5, 4, seed=1), ADAM),
            "decoder": Player(mlp(2, 5, 3, seed=2), ADAM),
            "discriminator": Player(mlp(3, 5, 1, seed=3), ADAM),
        },
        phases=[
            Phase(
                "all",
                rollout,
                [
                    Term("reconstruction", reconstruction, to={"encoder": 1, "decoder": 1}),
                    Term("adversarial_g", lambda s: -s["rec"].mean(), to={"encoder": balance, "decoder": balance}),
                    Term(
                        "adversarial_d",
                        lambda s: F.relu(1 - s["real"]).mean() + F.relu(1 + s["rec"]).mean(),
                        to={"discriminator": 1},
                    ),
                ],
            )
        ],
    )


class MovingMean(nn.Module):
    """A REINFORCE baseline: state that lives across steps, without gradient."""

    def __init__(self):
        super().__init__()
        self.register_buffer("value", torch.zeros((), dtype=torch.float64))

    def update(self, reward):
        self.value.lerp_(reward.mean(), 0.1)


class Tokens(nn.Module):
    """Three independent tokens out of four: the smallest sequence policy."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))

    def forward(self):
        return self.logits.log_softmax(-1)


def reinforce() -> Game:
    """A policy gradient: the reward counts tokens equal to 2; a moving baseline is kept in memory."""

    def rollout(s: State):
        log_p = s.nets["policy"]()
        tokens = torch.multinomial(log_p.detach().exp(), 32, replacement=True, generator=s.generator)  # (3, 32)
        reward = (tokens == 2).double().mean(0)
        baseline = s.nets["baseline"].value.clone()
        s.nets["baseline"].update(reward)
        return {"log_prob": log_p.gather(1, tokens).sum(0), "reward": reward, "baseline": baseline}

    def surrogate(s: State):
        # The reward is a constant to the policy gradient theorem.
        return -((s["reward"] - s["baseline"]).detach() * s["log_prob"]).mean()

    return Game(
        players={"policy": Player(Tokens(), SGD)},
        phases=[Phase("policy", rollout, [Term("policy_gradient", surrogate, to={"policy": 1})])],
        memory={"baseline": MovingMean()},
    )


GAMES = {
    "gan": gan,
    "vae": vae,
    "vae_gan": vae_gan,
    "wgan_gp": wgan_gp,
    "intro_vae": intro_vae,
    "vqgan": vqgan,
    "reinforce": reinforce,
}


def play(game: Game, steps: int, seed: int = 3, **options):
    progress, draw = begin(game, seed=seed), stream()
    values = [step(game, progress, draw, **options) for _ in range(steps)]
    check_finite(game, progress)
    return progress, values


# Proof.


def test_gan_is_bit_identical_to_a_hand_written_loop():
    game = gan()
    g, d = copy.deepcopy(game.nets["generator"]), copy.deepcopy(game.nets["discriminator"])
    play(game, 20)

    generator, draw = torch.Generator().manual_seed(3), stream()
    optimizer_g, optimizer_d = ADAM(g.parameters(), fused=True), ADAM(d.parameters(), fused=True)
    for _ in range(20):
        x = draw()["x"]
        optimizer_d.zero_grad()
        fake = g(torch.randn(8, 2, generator=generator, dtype=torch.float64)).detach()
        (bce(d(x), 1) + bce(d(fake), 0)).backward()
        optimizer_d.step()
        optimizer_g.zero_grad()
        bce(d(g(torch.randn(8, 2, generator=generator, dtype=torch.float64))), 1).backward()
        optimizer_g.step()
    assert same(game.nets["generator"], g)
    assert same(game.nets["discriminator"], d)


def test_vae_is_bit_identical_to_a_hand_written_loop():
    game = vae()
    e, d = copy.deepcopy(game.nets["encoder"]), copy.deepcopy(game.nets["decoder"])
    play(game, 20)

    generator, draw = torch.Generator().manual_seed(3), stream()
    optimizer_e, optimizer_d = ADAM(e.parameters(), fused=True), ADAM(d.parameters(), fused=True)
    for _ in range(20):
        x = draw()["x"]
        mean, log_var = e(x).chunk(2, dim=1)
        z = mean + (0.5 * log_var).exp() * torch.randn(8, 2, generator=generator, dtype=torch.float64)
        loss = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1).mean() + 0.5 * ((d(z) - x) ** 2).sum(1).mean()
        optimizer_e.zero_grad(), optimizer_d.zero_grad()
        loss.backward()
        optimizer_e.step(), optimizer_d.step()
    assert same(game.nets["encoder"], e)
    assert same(game.nets["decoder"], d)


def rows_alone(game: Game, phase: Phase, state: State) -> dict[str, list[torch.Tensor]]:
    """Each player's gradient of its own row, from a rollout of its own with everything differentiable."""
    gradients = {}
    for name in {p for term in phase.terms for p in term.to}:
        own = State(state.nets, state.batch, state.examples, state.step, torch.Generator().manual_seed(9))
        own = State(*[getattr(own, f) for f in ("nets", "batch", "examples", "step", "generator")], phase.rollout(own))
        losses = {term.name: term.loss(own) for term in phase.terms}
        own = State(own.nets, own.batch, own.examples, own.step, own.generator, own.rollout, losses)
        parameters = list(game.nets[name].parameters())
        total = sum(
            (c(own) if callable(c) else c) * term.every * losses[term.name]
            for term in phase.terms
            for p, c in term.to.items()
            if p == name
        )
        gradients[name] = torch.autograd.grad(total, parameters, retain_graph=True)
    return gradients


@pytest.mark.parametrize("name", GAMES)
def test_each_players_gradient_is_that_of_its_own_row(name):
    """The move of plain gradient descent with rate 1 shows the gradient that the step applied."""
    rate = partial(torch.optim.SGD, lr=1.0)
    for k in range(len(GAMES[name]().phases)):
        whole = GAMES[name]()
        phase = whole.phases[k]
        phase = Phase(phase.name, phase.rollout, phase.terms)
        moving = {p for term in phase.terms for p in term.to}
        game = Game(
            {n: Player(whole.nets[n], rate) for n in moving},
            [phase],
            frozen={n: whole.nets[n] for n in whole.nets if n not in moving and n not in whole.memory},
            memory=whole.memory,
        )
        progress = begin(game)
        memory = copy.deepcopy(dict(game.memory))
        batch = stream()()
        state = State(game.nets, batch, 0, 0, progress.generator)
        expected = rows_alone(game, phase, state)
        for key, module in memory.items():
            game.nets[key].load_state_dict(module.state_dict())
        progress.generator.manual_seed(9)
        before = {n: [w.detach().clone() for w in game.nets[n].parameters()] for n in moving}
        step(game, progress, lambda batch=batch: batch)
        for n in moving:
            assert any(g.abs().max() > 0 for g in expected[n])
            for old, new, gradient in zip(before[n], game.nets[n].parameters(), expected[n], strict=True):
                torch.testing.assert_close(old - new.detach(), gradient, rtol=1e-12, atol=1e-14)


def test_larsens_three_rows_by_hand():
    """Encoder: kl + features, nothing adversarial. Decoder: γ·features - gan. Discriminator: gan, no features."""
    game = vae_gan(gamma=0.25)
    rollout = game.phases[0].rollout
    state = State(game.nets, stream()(), 0, 0, torch.Generator().manual_seed(5))
    state = State(state.nets, state.batch, 0, 0, state.generator, rollout(state))
    losses = {term.name: term.loss(state) for term in game.phases[0].terms}
    objective = {
        "encoder": losses["kl"] + losses["feature_reconstruction"],
        "decoder": 0.25 * losses["feature_reconstruction"] - losses["gan"],
        "discriminator": losses["gan"],
    }
    before = {n: [w.detach().clone() for w in net.parameters()] for n, net in game.nets.items()}
    expected = {
        n: torch.autograd.grad(objective[n], list(game.nets[n].parameters()), retain_graph=True) for n in game.nets
    }
    rate = partial(torch.optim.SGD, lr=1.0)
    game = Game({n: Player(p.net, rate) for n, p in game.players.items()}, game.phases)
    progress = begin(game)
    progress.generator.manual_seed(5)
    step(game, progress, lambda: state.batch)
    for n in game.nets:
        for old, new, gradient in zip(before[n], game.nets[n].parameters(), expected[n], strict=True):
            torch.testing.assert_close(old - new.detach(), gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm", [False, True])
def test_a_player_that_is_not_due_keeps_its_bytes(norm):
    game = gan(norm)
    for moving, resting in (("discriminator", "generator"), ("generator", "discriminator")):
        # The resting player's own phase is due in even steps only; step 1 is looked at.
        phases = [Phase(p.name, p.rollout, p.terms, every=2 if p.name == resting else 1) for p in game.phases]
        alternating = Game(game.players, phases)
        progress, draw = begin(alternating), stream()
        step(alternating, progress, draw)
        before = {name: copied_bytes(net) for name, net in game.nets.items()}
        step(alternating, progress, draw)
        assert same(game.nets[resting], before[resting])
        assert not same(game.nets[moving], before[moving])


def test_batchnorm_statistics_of_resting_players_are_put_back_but_their_output_uses_the_batch():
    game = gan(norm=True)
    seen = {}
    game.nets["discriminator"][1].register_forward_hook(lambda m, i, o: seen.setdefault(m.training, o))
    generator_phase = Game(
        {"generator": game.players["generator"], "discriminator": game.players["discriminator"]},
        [
            Phase("discriminator", game.phases[0].rollout, game.phases[0].terms, every=2),
            game.phases[1],
        ],
    )
    progress, draw = begin(generator_phase), stream()
    step(generator_phase, progress, draw)
    before, generator = copied_bytes(game.nets["discriminator"]), copied_bytes(game.nets["generator"])
    seen.clear()
    step(generator_phase, progress, draw)  # step 1: the discriminator's phase is not due
    assert same(game.nets["discriminator"], before)
    assert not same(game.nets["generator"], generator)
    # Normalised by the batch: zero mean per feature, up to the affine bias.
    output, bias = seen[True], game.nets["discriminator"][1].bias
    torch.testing.assert_close(output.mean(0), bias.expand(5), atol=1e-8, rtol=0)


def test_spectral_normalisation_of_a_resting_player_keeps_its_power_iteration():
    game = gan()
    nn.utils.parametrizations.spectral_norm(game.nets["discriminator"][0])
    d = game.nets["discriminator"]
    only = Game({"generator": game.players["generator"]}, [game.phases[1]], frozen={"discriminator": d})
    both = Game(game.players, [Phase("d", game.phases[0].rollout, game.phases[0].terms, every=2), game.phases[1]])
    for candidate in (only, both):
        progress, draw = begin(candidate), stream()
        step(candidate, progress, draw)
        before = copied_bytes(d)
        step(candidate, progress, draw)
        assert same(d, before)


class Counting(nn.Module):
    """It replaces a buffer in each call, where BatchNorm writes into its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return x


def test_a_buffer_that_a_resting_player_replaces_is_put_back():
    game = gan()
    game.nets["discriminator"].append(Counting())
    progress, draw = begin(game), stream()
    for k in range(1, 4):
        step(game, progress, draw)
        assert game.nets["discriminator"][-1].calls == 2 * k  # its own two calls, not the generator's phase's


def test_flags_are_restored_even_after_an_error():
    game = gan(norm=True)
    norms = [m for m in game.nets.modules() if isinstance(m, nn.BatchNorm1d)]
    frozen_by_user = game.nets["generator"][0].bias.requires_grad_(False)
    flags = {n: w.requires_grad for n, w in game.nets.named_parameters()}
    play(game, 3)
    assert {n: w.requires_grad for n, w in game.nets.named_parameters()} == flags
    assert frozen_by_user.grad is None

    def broken(state):
        raise RuntimeError("broken rollout")

    bad = Game(game.players, [Phase("d", broken, game.phases[0].terms), game.phases[1]])
    with pytest.raises(RuntimeError, match="broken rollout"):
        step(bad, begin(bad), stream())
    assert {n: w.requires_grad for n, w in game.nets.named_parameters()} == flags
    assert len(norms) == 2 and all(norm.track_running_stats for norm in norms)


def test_repeats_draw_fresh_batches_and_lazy_terms_are_scaled():
    game, drawn = wgan_gp(), []
    source = stream()

    def draw():
        drawn.append(source())
        return drawn[-1]

    progress = begin(game)
    values = step(game, progress, draw)
    assert len(drawn) == 5 and progress.examples == 40 and progress.plays == {"critic": 5, "generator": 1}
    assert set(values) == {"wasserstein", "penalty", "realism"}
    assert set(step(game, progress, draw)) == {"wasserstein", "realism"} | {"penalty"}

    penalty = next(t for t in game.phases[0].terms if t.name == "penalty")
    alone = {}
    for every in (1, 2):
        g = wgan_gp()
        term = Term("penalty", penalty.loss, to={"critic": 10}, every=every)
        one = Game(
            {"critic": Player(g.nets["critic"], partial(torch.optim.SGD, lr=1.0))},
            [Phase("critic", g.phases[0].rollout, [term])],
            frozen={"generator": g.nets["generator"]},
        )
        before = [w.detach().clone() for w in g.nets["critic"].parameters()]
        p, d = begin(one), stream()
        step(one, p, d)
        alone[every] = [old - new.detach() for old, new in zip(before, g.nets["critic"].parameters(), strict=True)]
        after_first = copied_bytes(g.nets["critic"])
        assert (step(one, p, d) == {}) == (every == 2)
        assert same(g.nets["critic"], after_first) == (every == 2)
    for once, twice in zip(alone[1], alone[2], strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=1e-12, atol=1e-14)


def test_repeats_may_follow_a_schedule():
    game = wgan_gp()
    plan = Phase("critic", game.phases[0].rollout, game.phases[0].terms, repeats=lambda s: 3 if s.step < 1 else 1)
    game = Game(game.players, [plan, game.phases[1]])
    progress, _ = play(game, 3)
    assert progress.plays == {"critic": 5, "generator": 3}


def test_equal_rows_share_one_backward_and_unused_gradients_are_not_computed(monkeypatch):
    calls = []
    original = torch.Tensor.backward

    def counted(self, *args, **kwargs):
        calls.append(len(kwargs["inputs"]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", counted)
    play(vae(), 1)
    assert calls == [8]  # the decoder's row lacks the KL, which does not depend on the decoder
    calls.clear()
    play(vae_gan(), 1)
    assert calls == [4, 4, 6]  # the discriminator sees reconstructions: the decoder's further term reaches the encoder
    calls.clear()
    play(vae_gan(see_reconstructions=False), 1)
    assert calls == [8, 6]  # γ is a factor of the decoder's gradient; the discriminator's row has nothing of the others
    calls.clear()
    play(vae(beta=0.0), 1)
    assert calls == [8]  # equal rows: one pass for both
    calls.clear()
    play(vqgan(), 1)
    assert calls == [8, 4]


def test_a_row_is_not_joined_to_one_whose_further_term_depends_on_its_player():
    """As in a VAE, but the encoder's further term reaches into the decoder: joining would leak it."""
    game = vae()
    terms = [
        Term("leaky", lambda s: s["x_rec"].square().sum(1).mean(), to={"encoder": 1}),
        Term("reconstruction", reconstruction, to={"encoder": 1, "decoder": 1}),
    ]
    rate = partial(torch.optim.SGD, lr=1.0)
    players = {n: Player(p.net, rate) for n, p in game.players.items()}
    game = Game(players, [Phase("autoencoder", vae_rollout, terms)])
    batch, progress = stream()(), begin(game)
    state = State(game.nets, batch, 0, 0, torch.Generator().manual_seed(9))
    state = replace(state, rollout=vae_rollout(state))
    weights = list(game.nets["decoder"].parameters())
    expected = torch.autograd.grad(reconstruction(state), weights)
    before = [w.detach().clone() for w in weights]
    progress.generator.manual_seed(9)
    step(game, progress, lambda: batch)
    for old, new, gradient in zip(before, weights, expected, strict=True):
        torch.testing.assert_close(old - new.detach(), gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("gamma", [0.3, 1e-6, -2.0, 1e-9])
def test_rows_that_differ_by_a_factor_have_the_gradients_of_a_pass_each(gamma, accumulate, monkeypatch):
    """The decoder's gradient of VAE-GAN is taken in the encoder's pass and multiplied; γ = 1e-9 is too far from 1."""
    passes = []
    original = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, **k: (passes.append(1), original(self, **k))[1])
    weights = []
    for scale in (1.0, 2.0):  # with scaled losses no factors are taken: a pass for each row
        game = vae_gan(gamma=gamma, see_reconstructions=False)
        game = Game({n: Player(p.net, SGD) for n, p in game.players.items()}, game.phases)
        step(game, begin(game), stream(), accumulate=accumulate, loss_scale=scale)
        weights.append([w.detach() for w in game.nets.parameters()])
    few = 3 if gamma == 1e-9 else 2
    assert len(passes) == accumulate * (few + 3)
    for joined, apart in zip(*weights, strict=True):
        torch.testing.assert_close(joined, apart, rtol=1e-12, atol=1e-13)


def test_a_minimax_game_played_at_once_has_one_pass(monkeypatch):
    """Generator and discriminator have rows of -V and V: the same gradient, with the sign turned for one."""
    calls = []
    original = torch.Tensor.backward
    monkeypatch.setattr(
        torch.Tensor, "backward", lambda self, **k: (calls.append(len(k["inputs"])), original(self, **k))
    )
    generator, discriminator = mlp(2, 5, 3, seed=1), mlp(3, 5, 1, seed=2)

    def rollout(s: State):
        d = s.nets["discriminator"]
        return {"real": d(s.batch["x"]), "fake": d(s.nets["generator"](noise(s, 2)))}

    def value(s: State):
        return bce(s["real"], 1) + bce(s["fake"], 0)

    term = Term("value", value, to={"generator": -1.0, "discriminator": 1.0})
    players = {"generator": Player(generator, SGD), "discriminator": Player(discriminator, SGD)}
    game, batch = Game(players, [Phase("both", rollout, [term])]), stream()()
    progress = begin(game)
    state = State(game.nets, batch, 0, 0, torch.Generator().manual_seed(4))
    loss = value(replace(state, rollout=rollout(state)))
    expected = torch.autograd.grad(loss, [*generator.parameters(), *discriminator.parameters()])
    before = [w.detach().clone() for w in game.nets.parameters()]
    progress.generator.manual_seed(4)
    step(game, progress, lambda: batch)
    assert calls == [8]
    rate = progress.optimizers["generator"].param_groups[0]["lr"]
    for k, (old, new) in enumerate(zip(before, game.nets.parameters(), strict=True)):
        moved = old - rate * (-1 if k < 4 else 1) * expected[k]
        torch.testing.assert_close(new.detach(), moved, rtol=1e-12, atol=1e-14)


def test_the_weights_of_a_resting_discriminator_get_no_gradient_work():
    """In the generator's play the discriminator's weights must not even be in the graph."""
    game, seen = gan(), []
    loss = game.phases[1].terms[0].loss

    def spy(s: State):
        seen.extend(w.requires_grad for w in s.nets["discriminator"].parameters())
        return loss(s)

    game = Game(
        game.players, [game.phases[0], Phase("g", game.phases[1].rollout, [Term("g", spy, to={"generator": 1})])]
    )
    play(game, 1)
    assert seen and not any(seen)


@pytest.mark.parametrize("how", ["optimizer", "flag"])
def test_what_an_optimizer_does_not_move_gets_no_gradient(how):
    """Either the optimizer was never given the layer, or its flag was taken away after the game began."""
    game = vae()
    kept = game.nets["decoder"][0]
    if how == "optimizer":
        rest = partial(_without, {id(w) for w in kept.parameters()})
        players = dict(game.players) | {"decoder": Player(game.nets["decoder"], rest)}
        game = Game(players, game.phases)
    progress = begin(game)
    kept.requires_grad_(how == "optimizer")
    before, all_before = copied_bytes(kept), copied_bytes(game.nets["decoder"])
    step(game, progress, stream())
    assert same(before, kept) and all(w.grad is None for w in kept.parameters())
    assert not same(all_before, game.nets["decoder"])


def test_fused_moves_by_the_same_rule_up_to_rounding():
    """The encoder's Adam in one kernel; the decoder's SGD keeps its own way."""
    games = vae(), vae()
    games = [Game({**g.players, "decoder": replace(g.players["decoder"], optimizer=SGD)}, g.phases) for g in games]
    plain, fused = (begin(game, fused=way) for game, way in zip(games, (False, True), strict=True))
    groups = {name: optimizer.param_groups[0] for name, optimizer in fused.optimizers.items()}
    assert groups["encoder"]["fused"] and not groups["decoder"]["fused"]
    for way in ({"fused": False}, {"foreach": True}):  # a player that says how is heard
        own = Player(mlp(2, 2, seed=0), partial(ADAM, **way))
        said = Game(
            {"own": own},
            [Phase("p", lambda s: {}, [Term("t", lambda s: s.nets["own"](s.batch["x"]).sum(), {"own": 1})])],
        )
        assert not begin(said).optimizers["own"].param_groups[0]["fused"]
    for game, progress in zip(games, (plain, fused), strict=True):
        draw = stream()
        for _ in range(5):
            step(game, progress, draw)
    for a, b in zip(games[0].nets.parameters(), games[1].nets.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_gradient_that_a_hook_lays_out_otherwise_moves_its_own_weight():
    """torch's fused Adam on the CPU reads a gradient in its weight's order, whatever its strides are."""
    games = vae(), vae()
    for weight in games[0].nets.parameters():
        if weight.dim() == 2:
            weight.register_post_accumulate_grad_hook(lambda w: setattr(w, "grad", w.grad.t().contiguous().t()))
    for game in games:
        play(game, 3)
    assert same(copied_bytes(games[0].nets), games[1].nets)


def _without(left_out: set[int], weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    return ADAM([w for w in weights if id(w) not in left_out])


def test_schedules_in_examples():
    warm = vae(beta=Ramp(0, 1, examples=16))
    _, values = play(warm, 4)
    assert [float(v["kl → encoder"]) for v in values] == [0.0, 0.5, 1.0, 1.0]
    assert not same(vae().nets["encoder"], warm.nets["encoder"])
    state = State(warm.nets, {}, 30, 0, torch.Generator())
    assert Cycle(2.0, period_examples=40, rising=0.5)(state) == 2.0
    assert Cycle(2.0, period_examples=40)(State(warm.nets, {}, 50, 0, torch.Generator())) == 1.0
    assert Decay(0.5, examples=10)(state) == 0.125
    assert Decay(0.5, examples=10, floor=0.2)(state) == 0.2
    assert product(2.0, 3.0) == 6.0 and product(0.0, Ramp(0, 1, 5)) == 0.0
    assert product(1.0, Ramp(0, 1, 5)) == Ramp(0, 1, 5)
    assert Product((2.0, Ramp(0, 1, examples=60)))(state) == 1.0


def test_learning_rate_factor_and_zero_coefficient():
    frozen = vae(lr_factor=lambda s: 0.0)
    before = copied_bytes(frozen.nets["encoder"])
    play(frozen, 2)
    assert same(frozen.nets["encoder"], before)


def test_adaptive_weight_equals_the_ratio_of_gradient_norms():
    game = vqgan()
    progress, draw = begin(game), stream()
    batch = draw()
    state = State(game.nets, batch, 0, 0, torch.Generator().manual_seed(0))
    state = State(game.nets, batch, 0, 0, state.generator, game.phases[0].rollout(state))
    last = game.nets["decoder"][-1].weight
    norms = [
        torch.autograd.grad(game.phases[0].terms[k].loss(state), last, retain_graph=True)[0].norm() for k in (0, 1)
    ]
    values = step(game, progress, lambda: batch)
    torch.testing.assert_close(values["adversarial_g → decoder"], (norms[0] / (norms[1] + 1e-4)).detach())
    assert values["adversarial_g → decoder"] is not None and values["adversarial_g → encoder"].requires_grad is False


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [
        (0.1, 0.1, (False, True)),
        (0.1, 0.7, (False, True)),
        (0.1, 1.5, (True, True)),  # both would rest, so both move
        (0.7, 0.1, (False, True)),
        (0.7, 0.7, (True, True)),
        (0.7, 1.5, (True, False)),
        (1.5, 0.1, (True, True)),
        (1.5, 0.7, (True, False)),
        (1.5, 1.5, (True, False)),
    ],
)
def test_equilibrium_truth_table(real, fake, expected):
    assert equilibrium_rule(real, fake, target=0.68, margin=0.35) == expected


@pytest.mark.parametrize(
    ("real", "fake", "resting"), [(0.1, 0.1, "discriminator"), (1.5, 1.5, "decoder"), (0.7, 0.7, None)]
)
def test_a_closed_gate_keeps_the_player_and_its_statistics(real, fake, resting):
    rule = Equilibrium(real=lambda s: torch.tensor(real), fake=lambda s: torch.tensor(fake))
    game = vae_gan(gates=rule, norm=True)
    before = {name: copied_bytes(net) for name, net in game.nets.items()}
    play(game, 2)
    assert {n for n in before if same(before[n], game.nets[n])} == ({resting} if resting else set())


def test_gradients_accumulate_to_those_of_the_whole_batch():
    whole, parts = vae(), vae()
    rate = partial(torch.optim.SGD, lr=1.0)
    for game, count in ((whole, 1), (parts, 3)):
        deterministic = Phase(
            "autoencoder",
            lambda s: vae_rollout(s) | {"x_rec": s.nets["decoder"](s.nets["encoder"](s.batch["x"])[:, :2])},
            game.phases[0].terms,
        )
        game = Game({n: Player(p.net, rate) for n, p in game.players.items()}, [deterministic])
        step(game, begin(game), stream(batch=8), accumulate=count)  # parts of 3, 3 and 2
    for a, b in zip(whole.nets.parameters(), parts.nets.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="cannot be split into 9 parts"):
        step(whole, begin(whole), stream(), accumulate=9)


def test_clipping_of_gradients_and_weights():
    game = gan(clip_norm=1e-3)
    players = {
        n: Player(p.net, partial(torch.optim.SGD, lr=1.0), clip_norm=p.clip_norm) for n, p in game.players.items()
    }
    game = Game(players, game.phases)
    before = [w.detach().clone() for w in game.nets["discriminator"].parameters()]
    play(game, 1)
    moves = [new.detach() - old for new, old in zip(game.nets["discriminator"].parameters(), before, strict=True)]
    norm = torch.cat([m.flatten() for m in moves]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)
    limited = gan(weight_limit=0.05)
    play(limited, 2)
    assert max(w.abs().max().item() for w in limited.nets["discriminator"].parameters()) <= 0.05
    assert max(w.abs().max().item() for w in limited.nets["generator"].parameters()) > 0.05


def test_ema_follows_its_formula_and_half_life():
    game = gan(ema_half_life_examples=16.0, norm=True)
    progress, draw = begin(game), stream()
    average = copied_bytes(game.nets["discriminator"])
    for _ in range(3):
        step(game, progress, draw)
        keep = 0.5 ** (8 / 16)
        for name, value in game.nets["discriminator"].state_dict().items():
            learned = name in dict(game.nets["discriminator"].named_parameters())
            average[name] = keep * average[name] + (1 - keep) * value if learned else value.clone()
    assert set(progress.averages) == {"discriminator"}
    for name, value in progress.averages["discriminator"].state_dict().items():
        torch.testing.assert_close(value, average[name])
    assert not any(w.requires_grad for w in progress.averages.parameters())


def test_codes_then_prior_in_two_stages():
    """The second stage learns a density of the first stage's codes; the first stage's players keep their bytes."""
    first = vae()

    def view(nets, batch):
        return {"x": nets["encoder"](batch["x"])[:, :2]}

    def density(s: State):
        mean, log_std = s.nets["prior"].weight[0], s.nets["prior"].weight[1]
        return {"nll": (log_std + 0.5 * ((s.batch["x"] - mean) / log_std.exp()) ** 2).sum(1)}

    prior = nn.Embedding(2, 2, dtype=torch.float64)
    second = Game(
        {"prior": Player(prior, partial(torch.optim.Adam, lr=0.05))},
        [Phase("prior", density, [Term("nll", lambda s: s["nll"].mean(), to={"prior": 1})])],
        frozen={"encoder": first.nets["encoder"]},
    )
    stages = [Stage("codes", first), Stage("prior", second, view=view)]
    play(first, 5)
    before = copied_bytes(first.nets["encoder"])
    progress, draw = begin(second), stream()
    codes = []
    for _ in range(400):
        with torch.no_grad():
            batch = stages[1].view(second.nets, draw())
        codes.append(batch["x"])
        step(second, progress, lambda batch=batch: batch)
    assert same(first.nets["encoder"], before)
    assert first.nets["encoder"].training is False
    torch.testing.assert_close(prior.weight[0].detach(), torch.cat(codes).mean(0), atol=0.15, rtol=0)


def test_a_network_grows_between_stages_and_fades_its_new_layer_in():
    """Progressive growing: the next stage's game holds the same module with one more layer, fresh optimizer state."""

    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([mlp(2, 3, seed=1)])

        def forward(self, z, alpha=1.0):
            x = self.layers[0](z)
            for layer in self.layers[1:]:
                x = (1 - alpha) * x + alpha * layer(x)
            return x

    net = Growing()

    def fit(fade: Ramp):
        return Phase(
            "fit",
            lambda s: {"x": net(noise(s, 2), fade(s))},
            [Term("error", lambda s: ((s["x"] - 1) ** 2).sum(1).mean(), to={"generator": 1})],
        )

    small = Game({"generator": Player(net, ADAM)}, [fit(Ramp(1, 1, 0))])
    play(small, 5)
    z = torch.randn(4, 2, dtype=torch.float64)
    before = net(z)
    net.layers.append(mlp(3, 3, seed=2))
    torch.testing.assert_close(net(z, alpha=0.0), before, rtol=0, atol=0)
    large = Game({"generator": Player(net, ADAM)}, [fit(Ramp(0, 1, examples=16))])
    progress, _ = play(large, 4)
    assert len(progress.optimizers["generator"].state) == 4
    assert describe(Stage("small", small))["players"] != describe(Stage("none", vae()))["players"]


def test_reinforce_finds_the_rewarded_token_and_its_baseline():
    game = reinforce()
    play(game, 400)
    probabilities = game.nets["policy"]().exp()
    assert (probabilities[:, 2] > 0.8).all()
    assert game.nets["baseline"].value > 0.8


def test_reinforce_with_a_random_reward_learns_nothing():
    game = reinforce()

    def rollout(s: State):
        out = dict(game.phases[0].rollout(s))
        return out | {"reward": torch.rand(32, generator=s.generator, dtype=torch.float64)}

    control = Game(game.players, [Phase("policy", rollout, game.phases[0].terms)], memory=game.memory)
    play(control, 400)
    assert (game.nets["policy"]().exp() - 0.25).abs().max() < 0.15


def test_same_seed_same_bytes_other_seed_others():
    games = [gan(), gan(), gan()]
    for game, seed in zip(games, (1, 1, 2), strict=True):
        play(game, 5, seed=seed)
    assert same(games[0].nets, games[1].nets)
    assert not same(games[0].nets, games[2].nets)


# What is refused.


def test_unknown_player_is_refused():
    with pytest.raises(ValueError, match=r"term 'kl' names \['encodr'\], but the players are \['decoder', 'encoder'\]"):
        Game(vae().players, [Phase("p", vae_rollout, [Term("kl", kl, to={"encodr": 1})])])


def test_duplicate_terms_are_refused():
    terms = [Term("kl", kl, to={"encoder": 1}), Term("kl", kl, to={"decoder": 1})]
    with pytest.raises(ValueError, match=r"term names \['kl'\] stand more than once"):
        Game(vae().players, [Phase("p", vae_rollout, terms)])
    with pytest.raises(ValueError, match="phase names"):
        Game(gan().players, [gan().phases[0], gan().phases[0]])


def test_a_player_no_term_reaches_is_refused():
    with pytest.raises(ValueError, match=r"no term reaches \['decoder'\]"):
        Game(vae().players, [Phase("p", vae_rollout, [Term("kl", kl, to={"encoder": 1})])])


def test_a_phase_without_terms_and_a_game_without_phases_are_refused():
    with pytest.raises(ValueError, match="phase 'p' has no terms"):
        Game(vae().players, [Phase("p", vae_rollout, [])])
    with pytest.raises(ValueError, match="at least one phase"):
        Game(vae().players, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to": {}}, "reaches no player"),
        ({"to": {"encoder": float("nan")}}, "with coefficient nan"),
        ({"every": 0}, "every=0"),
    ],
)
def test_unusable_terms_are_refused(change, message):
    term = Term("kl", **({"loss": kl, "to": {"encoder": 1, "decoder": 1}} | change))
    with pytest.raises(ValueError, match=message):
        Game(vae().players, [Phase("p", vae_rollout, [term])])


def test_unusable_players_are_refused():
    game, net = vae(), mlp(3, 3)
    shared = {"encoder": Player(net, ADAM), "decoder": Player(nn.Sequential(net), ADAM)}
    with pytest.raises(ValueError, match="share a parameter; make the shared part a player"):
        Game(shared, game.phases)
    with pytest.raises(ValueError, match="no parameter that can learn"):
        Game({"encoder": game.players["encoder"], "decoder": Player(nn.Tanh(), ADAM)}, game.phases)
    with pytest.raises(ValueError, match="not an identifier"):
        Game({"my encoder": game.players["encoder"]}, game.phases)
    with pytest.raises(ValueError, match="stand more than once among"):
        Game(game.players, game.phases, frozen={"encoder": net})
    with pytest.raises(ValueError, match="memory 'pool' has parameters"):
        Game(game.players, game.phases, memory={"pool": net})
    with pytest.raises(ValueError, match="repeats=0"):
        Game(game.players, [Phase("p", vae_rollout, game.phases[0].terms, repeats=0)])


def test_a_row_that_does_not_depend_on_its_player_and_a_vector_loss_are_refused():
    game = vae()
    cut = [Term("kl", lambda s: kl(s).detach(), to={"encoder": 1, "decoder": 1})]
    with pytest.raises(ValueError, match=r"terms \['kl'\] do not depend on \['encoder', 'decoder'\]"):
        play(Game(game.players, [Phase("p", vae_rollout, cut)]), 1)
    vector = [Term("kl", lambda s: s["mean"].sum(1), to={"encoder": 1, "decoder": 1})]
    with pytest.raises(ValueError, match="average it over the batch"):
        play(Game(game.players, [Phase("p", vae_rollout, vector)]), 1)
    with pytest.raises(ValueError, match="on_nonfinite is 'ignore'"):
        play(game, 1, on_nonfinite="ignore")


def spoiled(at: int) -> Game:
    game = vae()

    def bad(s: State):
        return reconstruction(s) * (float("nan") if s.step == at else 1.0)

    terms = [game.phases[0].terms[0], Term("reconstruction", bad, to={"encoder": 1, "decoder": 1})]
    return Game(game.players, [Phase("autoencoder", vae_rollout, terms)])


@pytest.mark.parametrize("behind", [False, True], ids=["looked at", "noted on the device"])
def test_a_non_finite_loss_is_named_with_its_players_and_first_step(behind, monkeypatch):
    monkeypatch.setattr("twofold.game._never_behind", lambda device: not behind)
    game = spoiled(at=2)
    progress, draw = begin(game), stream()
    for _ in range(2):
        step(game, progress, draw)
        check_finite(game, progress)
    for _ in range(3):
        step(game, progress, draw)
    with pytest.raises(
        NonFiniteError, match="term 'reconstruction', which trains encoder and decoder, .* at step 2;"
    ) as e:
        check_finite(game, progress)
    assert (e.value.term, e.value.players, e.value.step) == ("reconstruction", ("encoder", "decoder"), 2)


def test_skipping_a_non_finite_play_moves_nobody_and_goes_on():
    game = spoiled(at=1)
    progress, draw = begin(game), stream()
    step(game, progress, draw, on_nonfinite="skip")
    before = copied_bytes(game.nets)
    step(game, progress, draw, on_nonfinite="skip")
    assert same(game.nets, before) and progress.skipped == 1
    step(game, progress, draw, on_nonfinite="skip")
    assert not same(game.nets, before)
    assert all(w.isfinite().all() for w in game.nets.parameters())


# The table.


def test_the_table_prints_rows_phases_and_functions():
    assert table(vae_gan()) == (
        "term                    encoder  decoder  discriminator\n"
        "kl                           +1        ·              ·\n"
        "feature_reconstruction       +1     +0.1              ·\n"
        "gan                           ·       -1             +1"
    )
    lines = table(wgan_gp()).splitlines()
    assert lines[1] == "phase critic (5 plays a step)" and "penalty (every 2)" in lines[3]
    assert "0→1 (0…16)" in table(vae(beta=Ramp(0, 1, examples=16)))
    assert "λ" in table(vqgan())


def test_describe_is_plain_data():
    record = describe(Stage("main", wgan_gp()))
    assert record["players"] == {"generator": 33, "critic": 26}
    assert record["phases"][0]["repeats"] == 5
    assert record["phases"][0]["terms"][1] == {"name": "penalty", "every": 2, "to": {"critic": 10}}
    gates = Equilibrium(real=lambda s: s["real"], fake=lambda s: s["fake"])
    terms = describe(Stage("main", vae_gan(gates=gates)))["phases"][0]["terms"]
    assert terms[1]["to"]["decoder"] == "0.1·gate_dec" and terms[2]["to"]["discriminator"] == "gate_dis"


# Measures.


def measured_game(**changes) -> Game:
    net, critic = mlp(3, 4, 2, seed=1), mlp(3, 4, 1, seed=2)
    phase = Phase(
        "all",
        lambda s: {"z": s.nets["net"](s.batch["x"]), "logits": s.nets["critic"](s.batch["x"])},
        (
            Term("distance", lambda s: s["z"].square().mean(), to={"net": 1.0}),
            Term("adversarial", lambda s: bce(s["logits"], 1.0), to={"critic": 1.0}),
        ),
        **changes,
    )
    return Game({"net": Player(net, SGD), "critic": Player(critic, SGD)}, [phase])


def test_measures_are_returned_and_train_nobody():
    """The networks move bit for bit as without them, and what comes back has no graph."""
    watched = measured_game(measures={"largest": lambda s: s["z"].abs().max(), "mean": lambda s: s["z"].mean()})
    plain = measured_game()
    draw, again = stream(), stream()
    one, two = begin(watched), begin(plain)
    for _ in range(3):
        values, others = step(watched, one, draw), step(plain, two, again)
        assert set(values) == {"distance", "adversarial", "largest", "mean"} == set(others) | {"largest", "mean"}
        assert not any(v.requires_grad for v in values.values())
    assert same(copied_bytes(watched.nets), copied_bytes(plain.nets))


def test_measures_of_parts_are_averaged():
    game = measured_game(measures={"mean": lambda s: s["z"].mean()})
    batch = stream()()
    expected = game.nets["net"](batch["x"]).mean()
    value = step(game, begin(game), lambda: batch, accumulate=3)["mean"]
    torch.testing.assert_close(value, expected.detach())


def test_a_measure_has_a_name_of_its_own():
    with pytest.raises(ValueError, match=r"term names \['distance'\] stand more than once"):
        measured_game(measures={"distance": lambda s: s["z"].mean()})
