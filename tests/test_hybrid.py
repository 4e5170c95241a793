"""The composer: published members are points of it, other points play by flags alone, contradictions are refused."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import pytest
import torch

from test_recipes import IMAGE, VECTOR, batch_for, build, objective, rolled_out
from twofold.errors import InputError
from twofold.game import State, begin, step, table
from twofold.model import Model
from twofold.overview import show
from twofold.recipes import hybrid

POINTS = {
    "vae": hybrid.as_vae(),
    "aae": hybrid.as_aae(),
    "vae-gan": hybrid.as_vae_gan(),
    "alpha-gan": hybrid.as_alpha_gan(),
}


def point(name: str, spec, **options):
    """The composer at the member's choices, at the battery's size."""
    chosen = {k: v for k, v in asdict(POINTS[name]).items() if k not in ("latent", "width", "hidden", "code_width")}
    return build("hybrid", spec, **(chosen | options))


def gradients(recipe, batch) -> list[dict[str, torch.Tensor]]:
    """Of each phase: {"player.parameter": gradient of the player's row}."""
    game = recipe.stages[0].game
    game.nets.train()
    found = []
    for phase in game.phases:
        own = {}
        for player in sorted({p for term in phase.terms for p in term.to}):
            named = dict(game.nets[player].named_parameters())
            loss = objective(phase, player, rolled_out(game, phase, batch))
            values = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            own |= {f"{player}.{n}": g for n, g in zip(named, values, strict=True) if g is not None}
        found.append(own)
    return found


def same_networks(member, composed) -> None:
    member.nets.double()
    composed.nets.double()
    composed.nets.load_state_dict(member.nets.state_dict())


def largest_difference(member, composed, spec) -> float:
    same_networks(member, composed)
    batch = batch_for(spec, dtype=torch.float64)
    pairs = zip(gradients(member, batch), gradients(composed, batch), strict=True)
    worst = 0.0
    for own, other in pairs:
        assert own.keys() == other.keys()
        assert all(g.abs().max() > 0 for n, g in own.items() if n.endswith("head.weight"))
        worst = max(worst, *((own[n] - other[n]).abs().max().item() for n in own))
    return worst


@pytest.mark.parametrize("spec", [IMAGE, VECTOR], ids=["image", "vector"])
@pytest.mark.parametrize(
    ("name", "own", "composed"),
    [
        ("vae", {}, {}),
        ("vae", {"conditional": True}, {"conditional": True}),
        ("vae", {"likelihood": "laplace"}, {"likelihood": "laplace"}),
        ("vae", {"likelihood_scale": "output"}, {"likelihood_scale": "output"}),
        ("vae", {"kl_warmup_examples": 100}, {"match_warmup_examples": 100}),
        ("aae", {}, {}),
        ("aae", {"posterior": "normal"}, {"posterior": "normal"}),
        ("aae", {"posterior": "implicit"}, {"posterior": "implicit"}),
        ("aae", {"prior_std": 5.0, "code_weight": 3.0}, {"prior_std": 5.0, "beta": 3.0}),
        ("aae", {"reconstruction_weight": 0.1}, {"likelihood_weight": 0.1}),
        ("aae", {"prior": "swiss-roll", "latent": 2}, {"prior": "swiss-roll", "latent": 2}),
        ("aae", {"likelihood": "laplace", "real_label": 0.9}, {"likelihood": "laplace", "real_label": 0.9}),
        ("vae-gan", {}, {}),
        ("vae-gan", {"conditional": True}, {"conditional": True}),
        ("vae-gan", {"see_reconstructions": False, "gamma": 0.5}, {"see": "samples", "gamma": 0.5}),
        ("vae-gan", {"adversarial": "non-saturating"}, {"adversarial": "non-saturating"}),
        ("vae-gan", {"feature_std": 2.0, "feature_layer": 1}, {"feature_std": 2.0, "feature_layer": 1}),
        ("vae-gan", {"norm_discriminator": "none"}, {"norm_discriminator": "none"}),
        ("alpha-gan", {}, {}),
        ("alpha-gan", {"conditional": True}, {"conditional": True}),
        ("alpha-gan", {"reconstruction_weight": 0.3}, {"likelihood_weight": 0.3}),
        ("alpha-gan", {"posterior": "normal", "norm": "none"}, {"posterior": "normal", "norm": "none"}),
    ],
)
def test_published_members_are_points_of_it(name, own, composed, spec):
    """Equal choices, seeds and networks: every player's gradient in every phase is that of the member's own file."""
    member, of_hybrid = build(name, spec, **own), point(name, spec, **composed)
    assert largest_difference(member, of_hybrid, spec) <= 1e-12
    ours, theirs = (r.stages[0].game for r in (of_hybrid, member))
    assert [p.repeats for p in ours.phases] == [p.repeats for p in theirs.phases]
    assert {k: v.keys() for k, v in rows(ours).items()} == {k: v.keys() for k, v in rows(theirs).items()}


def rows(game) -> dict:
    return {term.name: term.to for phase in game.phases for term in phase.terms}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("vae", {"beta": 1.01}),
        ("aae", {"code_adversarial": "minimax"}),
        ("vae-gan", {"see": "samples"}),
        ("vae-gan", {"gamma": 0.02}),
        ("alpha-gan", {"adversarial": "non-saturating"}),
        ("alpha-gan", {"weigh": "mean"}),
    ],
)
def test_another_choice_is_another_gradient(name, changed):
    """The control of the test above."""
    assert largest_difference(build(name), point(name, IMAGE, **changed), IMAGE) > 1e-4


def test_without_likelihood_it_is_the_gan():
    gan = build("gan", VECTOR, norm="batch")
    composed = build("hybrid", VECTOR, likelihood="none", match="none", see="samples", adversarial="non-saturating")
    gan.nets.double()
    composed.nets.double()
    renamed = {k.replace("generator.", "decoder."): v for k, v in gan.nets.state_dict().items()}
    composed.nets.load_state_dict(renamed)
    batch = batch_for(VECTOR, dtype=torch.float64)
    (discriminator, generator), (decoder, critics) = gradients(gan, batch), gradients(composed, batch)
    for own, other in ((discriminator, critics), (generator, decoder)):
        own = {k.replace("generator.", "decoder."): g for k, g in own.items()}
        assert own.keys() == other.keys()
        assert max((own[n] - other[n]).abs().max() for n in own) <= 1e-12
    model = Model(composed, composed.nets)
    assert model.abilities == ("decode", "sample", "interpolate")
    with pytest.raises(InputError, match="cannot encode"):
        model.encode(model.sample(2))


# New points.

WGAN_GP = {"adversarial": "wasserstein", "penalty": "gradient-penalty", "critic_plays": 5}


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        (
            {"likelihood": "features", "gamma": 0.01} | WGAN_GP,
            {
                "kl": {"encoder": 1.0},
                "feature_reconstruction": {"encoder": 1.0, "decoder": 0.01},
                "adversarial_decoder": {"decoder": 1.0},
                "adversarial_discriminator": {"discriminator": 1.0},
                "gradient_penalty": {"discriminator": 10.0},
            },
        ),
        (
            {"likelihood": "features", "adversarial": "relativistic", "penalty": "r1", "penalty_weight": 1.0},
            {
                "kl": {"encoder": 1.0},
                "feature_reconstruction": {"encoder": 1.0, "decoder": 1.0},
                "adversarial_decoder": {"decoder": 1.0},
                "adversarial_discriminator": {"discriminator": 1.0},
                "r1": {"discriminator": 1.0},
            },
        ),
        (
            {"match": "critic", "posterior": "deterministic", "likelihood": "laplace", "likelihood_scale": "fixed"},
            {
                "code_adversarial_encoder": {"encoder": 1.0},
                "reconstruction": {"encoder": 1.0, "decoder": 1.0},
                "adversarial_decoder": {"decoder": 1.0},
                "adversarial_discriminator": {"discriminator": 1.0},
                "code_adversarial_discriminator": {"code_discriminator": 1.0},
            },
        ),
        (
            {"match": "mmd", "beta": 10.0, "posterior": "deterministic", "adversarial": "none"},
            {"mmd": {"encoder": 10.0}, "reconstruction": {"encoder": 1.0, "decoder": 1.0}},
        ),
        (
            {"match": "critic", "code_adversarial": "wasserstein", "code_penalty": "gradient-penalty"},
            {
                "code_adversarial_encoder": {"encoder": 1.0},
                "reconstruction": {"encoder": 1.0, "decoder": 1.0},
                "adversarial_decoder": {"decoder": 1.0},
                "adversarial_discriminator": {"discriminator": 1.0},
                "code_adversarial_discriminator": {"code_discriminator": 1.0},
                "code_gradient_penalty": {"code_discriminator": 10.0},
            },
        ),
    ],
    ids=["VAE-GAN with WGAN-GP", "VAE-GAN, relativistic, R1", "α-GAN with hinge", "WAE-MMD", "Wasserstein codes"],
)
def test_new_combinations_by_flags_alone(options, terms):
    phases = show("hybrid", options=options)["stages"][0]["phases"]
    assert {t["name"]: t["to"] for p in phases for t in p["terms"]} == terms


CHOICES = [
    choices
    for choices in itertools.product(
        ("kl", "critic", "mmd", "none"),
        ("normal", "features"),
        ("minimax", "log-ratio", "least-squares", "hinge", "wasserstein", "relativistic", "relativistic-average"),
        ("both", "samples", "reconstructions"),
    )
    if choices[0] != "none" or choices[3] != "reconstructions"
]
PLAYS = ("together", "alternate", "separate")


@pytest.mark.parametrize("play", PLAYS)
def test_every_combination_plays(play):
    """A third of them each way, penalties in turn: losses are finite, every player moves, the table has the penalty."""
    batch = batch_for(VECTOR)
    turn = PLAYS.index(play)
    for k, (match, likelihood, adversarial, see) in enumerate(CHOICES):
        if (k + k // 3 + k // 21) % 3 != turn:
            continue
        penalty = ("gradient-penalty", "r1", "r2")[k // 3 % 3]
        recipe = build(
            "hybrid", VECTOR, match=match, likelihood=likelihood, adversarial=adversarial, see=see, penalty=penalty,
            play=play, norm="none",
        )  # fmt: skip
        game = recipe.stages[0].game
        before = {k: v.clone() for k, v in game.nets.state_dict().items()}
        values = step(game, begin(game), lambda: batch)
        assert all(v.isfinite() for v in values.values()), (match, likelihood, adversarial, see)
        moved = {k.partition(".")[0] for k, v in game.nets.state_dict().items() if not torch.equal(v, before[k])}
        assert moved == set(game.players)
        assert penalty.replace("-", "_") in table(game)


def test_two_kinds_of_fakes_weigh_half_each_for_wasserstein_and_one_each_for_cross_entropies():
    for adversarial, penalty, weights in (("wasserstein", "r1", (0.5, 0.5)), ("log-ratio", "none", (1.0, 1.0))):
        recipe = build("hybrid", adversarial=adversarial, penalty=penalty)
        terms = {t.name: t for p in recipe.stages[0].game.phases for t in p.terms}
        logits = {f"{k}_logits": torch.zeros(4, requires_grad=True) for k in ("real", "rec", "fake")}
        state = State(recipe.nets, {}, 0, 0, torch.Generator(), rollout=logits)
        fakes = logits["rec_logits"], logits["fake_logits"]
        down = torch.autograd.grad(terms["adversarial_decoder"].loss(state), fakes)
        assert tuple(-g.sum().item() for g in down) == pytest.approx(weights)
        up = torch.autograd.grad(terms["adversarial_discriminator"].loss(state), tuple(logits.values()))
        shares = [g.sum().item() for g in up]
        if adversarial == "wasserstein":
            assert shares == pytest.approx([-1.0, 0.5, 0.5])  # a constant in the critic changes nothing
        else:
            assert shares == pytest.approx([-0.5, 0.5, 0.5])  # D = ½ everywhere, each expectation once


def test_a_penalty_between_real_and_fake_takes_both_kinds_in_turn():
    recipe = build("hybrid", VECTOR, adversarial="hinge", penalty="r2", norm="none")
    game = recipe.stages[0].game
    critics = next(p for p in game.phases if p.name == "critics")
    state = rolled_out(game, critics, batch_for(VECTOR))
    term = next(t for t in critics.terms if t.name == "r2")
    x = torch.where(torch.arange(8)[:, None] % 2 == 0, state["x_rec"], state["x_fake"]).detach().requires_grad_()
    (slope,) = torch.autograd.grad(game.nets["discriminator"](x).sum(), x)
    torch.testing.assert_close(term.loss(state), 0.5 * slope.square().sum(1).mean())


def test_the_stabilisers_are_there():
    recipe = build(
        "hybrid", match="critic", beta=2.0, match_warmup_examples=100, critic_plays=3, spectral=True, real_label=0.9,
        adversarial="non-saturating", learning_rate=1e-3, learning_rate_discriminator=2e-3,
        learning_rate_code_discriminator=3e-3, ema_half_life_examples=50.0, clip_norm=1.0,
    )  # fmt: skip
    game = recipe.stages[0].game
    assert {n: p.optimizer.keywords["lr"] for n, p in game.players.items()} == {
        "encoder": 1e-3, "decoder": 1e-3, "discriminator": 2e-3, "code_discriminator": 3e-3,
    }  # fmt: skip
    assert [p.repeats for p in game.phases] == [1, 3]
    assert "2·0→1 (0…100)" in table(game)
    assert [n for n, p in game.players.items() if p.ema_half_life_examples] == ["decoder"]
    assert {p.clip_norm for p in game.players.values()} == {1.0}
    names = {n for n, _ in game.nets["discriminator"].named_parameters()}
    assert any("parametrizations" in n for n in names)
    progress = begin(game)
    step(game, progress, lambda: batch_for(IMAGE))
    assert progress.examples == 8 * 3  # the first critic play shares the generator's batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"posterior": "deterministic"},
            "--match kl is in closed form for a normal posterior and deterministic has no",
        ),
        ({"prior": "uniform"}, r"--match kl is to the prior N\(0, I\)"),
        ({"prior_std": 2.0}, r"--match kl is to the prior N\(0, I\)"),
        ({"code_adversarial": "hinge"}, "code_adversarial is hinge, .*critic of codes, .*by kl; .*one way only"),
        ({"match": "mmd", "code_penalty": "r1"}, "code_penalty is r1, .*critic of codes, .*by mmd"),
        ({"match": "mmd", "prior": "uniform"}, "--match mmd has its kernel's scales from a normal prior"),
        ({"likelihood": "none"}, "--likelihood none leaves the codes nothing to say, and --match kl"),
        ({"match": "none", "adversarial": "none"}, "nothing ties the codes to the prior"),
        ({"match": "none", "see": "reconstructions"}, "nothing ties the codes to the prior"),
        ({"likelihood": "features", "adversarial": "none"}, "--likelihood features leaves the decoder nothing"),
        (
            {"likelihood": "none", "match": "none", "adversarial": "none"},
            "--likelihood none leaves the decoder nothing",
        ),
        ({"likelihood": "none", "match": "none"}, "makes no reconstructions, but the discriminator is to see both"),
        ({"adversarial": "none", "penalty": "r1"}, "penalty is r1, but it is for a discriminator of data"),
        ({"adversarial": "none", "weight_limit": 0.1}, "weight_limit is 0.1, but it is for a discriminator of data"),
        ({"adversarial": "none", "weigh": "sum"}, "weigh is sum, but it is for a discriminator of data"),
        ({"adversarial": "none", "see": "samples"}, "see is samples, but it is for a discriminator of data"),
        ({"adversarial": "none", "spectral": True}, "spectral is True, but it is for a discriminator of data"),
        ({"adversarial": "none", "real_label": 0.9}, "real_label is 0.9, but no critic has labels"),
        ({"real_label": 0.9}, "'hinge' has no label to smooth"),
        ({"penalty": "r1", "norm_discriminator": "batch"}, "BatchNorm mixes them"),
        ({"adversarial": "wasserstein"}, "a Wasserstein critic needs a bound on its slope"),
        ({"match": "critic", "code_adversarial": "wasserstein"}, "a Wasserstein critic of codes needs a bound"),
        ({"adversarial": "wasserstein", "spectral": True, "weigh": "sum"}, "kinds of fakes weigh ½ each"),
        ({"play": "together", "critic_plays": 2}, "--play together moves all players at once"),
        ({"adversarial": "none", "critic_plays": 2}, "critic_plays is 2, but there is no critic"),
        ({"kernel": "rbf"}, "kernel is rbf, but it is for --match mmd"),
        ({"feature_layer": 1}, "feature_layer is 1, but it is for --likelihood features"),
        ({"feature_std": 1.0}, "feature_std is 1.0, but it is for --likelihood features"),
        ({"likelihood": "features", "feature_layer": 9}, "feature_layer is 9; this discriminator has blocks 1 to"),
        ({"likelihood": "features", "likelihood_scale": "fixed"}, "likelihood_scale is fixed, but it is for"),
        ({"likelihood": "features", "feature_std": 0.0}, "feature_std is 0.0; it must be above 0"),
        ({"weight_limit": -1.0}, "weight_limit is -1.0; it must be above 0"),
        ({"beta": 0.0}, "beta is 0.0; it must be above 0"),
        ({"likelihood_weight": 0.0}, "likelihood_weight is 0.0; it must be above 0"),
        ({"gamma": -1.0}, "gamma is -1.0; it starts at 0"),
        ({"gamma": 0.0, "adversarial": "none"}, "gamma is 0, so that the decoder learns nothing"),
        ({"generator_plays": 0}, "generator_plays is 0; it starts at 1"),
        ({"match_warmup_examples": -1}, "match_warmup_examples is -1, below 0"),
        ({"prior": "mixture", "match": "critic"}, "prior mixture lies in the plane and latent is 3"),
        ({"latent": 0}, "latent is 0; it starts at 1"),
        ({"latent": 65, "match": "critic", "posterior": "deterministic"}, "latent is 65, but this data has 64 values"),
        ({"learning_rate_discriminator": -1.0}, "learning_rate_discriminator is -1.0; it must be above 0"),
    ],
    ids=lambda v: " ".join(f"{k}={x}" for k, x in v.items()) if isinstance(v, dict) else "",
)
def test_contradictions_are_refused_with_a_reason(options, message):
    with pytest.raises(InputError, match=message):
        build("hybrid", **options)
    with pytest.raises(InputError, match="needs values in known bounds"):
        build("hybrid", VECTOR, likelihood="bernoulli")


@pytest.mark.parametrize(("name", "elbo"), [("vae", True), ("aae", False), ("vae-gan", False), ("alpha-gan", False)])
def test_only_a_kl_beside_a_likelihood_of_values_has_an_elbo(name, elbo):
    assert ("elbo" in point(name, IMAGE).abilities) == elbo
