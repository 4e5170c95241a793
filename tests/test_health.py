"""The alarms: each with something that has the disease and something that has not; the monitor in a run; doctor; the
best checkpoint; ending a run on an alarm."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch

import twofold
from twofold import recipes
from twofold.cli import main
from twofold.data import Batches, load
from twofold.errors import InputError
from twofold.game import Game, Phase, Player, Stage, State, Term, begin, step
from twofold.health import ALARMS, Finding, History, Monitor, diagnose, doctor
from twofold.model import Model
from twofold.nets.mlp import MLP
from twofold.probing import Probes, observe, ranked
from twofold.run import Run
from twofold.terms.adversarial import NonSaturating
from twofold.training import AlarmError, Silent, TrainingError, train

SMALL = {"latent": 2, "width": 16, "depth": 1}


class Notes(Silent):
    def __init__(self):
        self.lines: list[str] = []

    def note(self, line):
        self.lines.append(line)


def names(history: History) -> set[str]:
    return {finding.name for finding in diagnose(history)}


def history(planned: int = 10_000, size: int = 64, **series) -> History:
    """Quantities at equal distances along a whole run."""
    made = History(planned, size, 0, {"adversarial_generator": ("generator",)})
    for name, values in series.items():
        for k, value in enumerate(values):
            made.add({"examples": round(planned * k / (len(values) - 1)), name.replace("_to_", " → "): value})
    return made


# Each alarm on numbers: with the disease, and without.

ACCURATE, FAIR = [0.6] * 10 + [0.999] * 90, [0.6] * 10 + [0.9] * 90
TURNING = [0.5 + 0.4 * math.sin(k / 1.5) for k in range(100)]
NOISY = (0.6 + 0.08 * np.random.default_rng(0).normal(size=100)).tolist()
CASES = {
    "discriminator-too-strong": (
        {"discriminator_accuracy": ACCURATE, "adversarial_signal": [0.5] * 10 + [0.01] * 90},
        [
            {"discriminator_accuracy": ACCURATE, "adversarial_signal": [1.0] * 100},  # wins, but the generator learns
            {"discriminator_accuracy": FAIR, "adversarial_signal": [0.01] * 100},
            {"discriminator_accuracy": ACCURATE[:20] + FAIR[20:], "adversarial_signal": [0.01] * 100},
        ],
    ),
    "mode-collapse": (
        {"probe_sample_modes": [0.02, 0.5, 0.8, 0.2, 0.1], "probe_sample_spread": [0.1, 0.5, 0.9, 0.5, 0.5]},
        [
            {"probe_sample_modes": [0.02, 0.5, 0.8, 0.8, 0.9], "probe_sample_spread": [0.1, 0.5, 0.9, 0.8, 0.9]},
            # Slow, but on its way.
            {"probe_sample_modes": [0.02, 0.05, 0.1, 0.2, 0.3], "probe_sample_spread": [0.1, 0.2, 0.3, 0.4, 0.5]},
        ],
    ),
    "posterior-collapse": (
        {
            "probe_active_units": [5, 0, 0],
            "probe_code_units": [8] * 3,
            "probe_kl_nats": [3, 0.01, 0.01],
            "probe_kl_largest_nats": [1, 0.01, 0.005],
        },
        [
            {
                "probe_active_units": [5, 3, 2],  # a β-VAE that keeps two of eight
                "probe_code_units": [8] * 3,
                "probe_kl_nats": [3, 2, 2],
                "probe_kl_largest_nats": [1, 1, 1],
            }
        ],
    ),
    "dead-codes": (
        {"probe_codes_used": [60, 4, 3], "probe_codes": [128] * 3, "perplexity": [60, 3, 2.0]},
        [{"probe_codes_used": [3, 4, 70], "probe_codes": [128] * 3}],
    ),
    "oscillation": (
        {"discriminator_accuracy": TURNING},
        [{"discriminator_accuracy": NOISY}, {"discriminator_accuracy": TURNING[:50] + NOISY[50:]}],
    ),
    "memorisation": (
        {"probe_sample_to_train": [3.0, 0.3, 0.05]},
        [{"probe_sample_to_train": [3.0, 1.4, 1.2]}, {"probe_sample_to_train": [3.0, 0.8, 0.7]}],  # 0.7: blurred
    ),
    "critic-overfitting": (
        {"probe_discriminator_train_over_test": [0.5, 0.8, 0.9]},
        [{"probe_discriminator_train_over_test": [0.5, 0.6, 0.63]}],
    ),
    "overfitting": (
        {"test_elbo_nats": [-100.0, -60.0, -50.0, -57.0, -60.0]},
        [
            {"test_elbo_nats": [-100.0, -60.0, -50.0, -51.0, -50.5]},
            {"test_elbo_nats": [-90.0, -60.0, -50.0, -60.0, -49.0]},
        ],
    ),
    "data-range": (
        {"probe_data_low": [-1.0], "probe_data_high": [-0.99]},
        [{"probe_data_low": [-1.0], "probe_data_high": [1.0]}, {"probe_data_low": [-1.0], "probe_data_high": [0.0]}],
    ),
    "non-finite": ({"kl": [1.0, 2.0, float("inf")]}, [{"kl": [1.0, float("nan"), 2.0]}, {"kl": [1.0, 2.0, 3.0]}]),
}  # fmt: skip


def filled(series: dict) -> History:
    made = History(10_000, 64, 0, {"adversarial_generator": ("generator",)})
    longest = max(map(len, series.values()))
    for k in range(longest):
        record = {name: values[min(k, len(values) - 1)] for name, values in series.items()}
        made.add({"examples": round(10_000 * k / max(longest - 1, 1)), **record})
    return made


@pytest.mark.parametrize("name", ALARMS)
def test_each_alarm_on_numbers_with_the_disease_and_without(name):
    ill, healthy = CASES[name]
    found = {finding.name: finding for finding in diagnose(filled(ill))}
    assert set(found) == {name}
    assert any(c.isdigit() for c in found[name].evidence) and found[name].remedy and "\n" not in found[name].line
    for series in healthy:
        assert name not in names(filled(series)), series


def test_other_signs_of_the_same_disease():
    norms = [1.0] * 20 + [0.001] * 80
    starved = history(discriminator_accuracy=ACCURATE, gradient_norm_to_generator=norms)
    assert "gradient_norm → generator" in starved.rows and names(starved) == {"discriminator-too-strong"}
    assert names(history(code_discriminator_accuracy=ACCURATE, code_adversarial_signal=[0.01] * 100)) == {
        "discriminator-too-strong"
    }
    stuck = [0.02, 0.02, 0.02, 0.02, 0.02]
    assert names(history(probe_sample_modes=stuck, probe_sample_spread=stuck)) == {"mode-collapse"}
    saturated = {"probe_data_low": -1.0, "probe_data_high": 1.0, "probe_data_saturated": 0.1}
    black = history(probe_sample_saturated=[0.0, 0.9, 0.95])
    black.add({"examples": 10_000, **saturated})
    assert names(black) == {"data-range"}
    assert names(history(skipped_share=[0.0, 0.2])) == {"non-finite"}


def test_nothing_is_said_of_a_model_that_has_hardly_trained():
    short = history(500, probe_sample_modes=[0.0] * 4, probe_sample_spread=[0.0] * 4, discriminator_accuracy=[1.0] * 99)
    short.add({"examples": 500, "adversarial_signal": 0.0})
    assert names(short) == set()


# What is measured.


def test_ranking_is_the_share_of_pairs_in_order():
    a, b = torch.randn(40), torch.randn(30) - 1
    expected = np.mean([[(x > y) + 0.5 * (x == y) for y in b.tolist()] for x in a.tolist()])
    assert float(ranked(a, b)) == pytest.approx(expected, abs=1e-6)
    assert float(ranked(torch.zeros(3), torch.zeros(5))) == 0.5 and float(ranked(b + 99, a)) == 1.0


def built(name: str, data, **options):
    torch.manual_seed(0)
    known = recipes.default_config(recipes.find(name)).__dict__
    return recipes.build(name, data.spec, {k: v for k, v in (SMALL | options).items() if k in known})[1]


def test_what_is_observed_is_the_discriminators_and_the_losss_own():
    recipe = built("gan", load("gaussians-8"))
    seen: dict = {}

    def look(state: State) -> dict:
        seen.update(state.rollout)
        return observe(state)

    game = recipe.stages[0].game
    batch = {"x": torch.randn(64, 2, generator=torch.Generator().manual_seed(0))}
    plain, watched = begin(game, seed=1), None
    start = {k: v.clone() for k, v in game.nets.state_dict().items()}
    step(game, plain, lambda: batch)
    after = {k: v.clone() for k, v in game.nets.state_dict().items()}
    game.nets.load_state_dict(start)
    watched = begin(game, seed=1)
    values = step(game, watched, lambda: batch, observe=look)
    # Looking changes no bit.
    assert all(torch.equal(after[k], v) for k, v in game.nets.state_dict().items())
    # Non-saturating: |∂(-log D)/∂logit| = 1 - D, mean over examples.
    signal = (1 - torch.sigmoid(seen["fake_logits"].detach())).mean()
    assert float(values["adversarial_signal"]) == pytest.approx(float(signal), rel=1e-5)
    assert 0 <= float(values["discriminator_accuracy"]) <= 1
    assert {"gradient_norm → generator", "gradient_norm → discriminator"} <= values.keys()


@pytest.mark.parametrize(
    ("name", "sides", "signals"),
    [
        ("cyclegan", ("a", "x"), ("a", "x")),
        ("bicycle-gan", ("encoded", "random"), ("encoded", "random")),
        ("cogan", ("a", "x"), ("a", "x")),
        ("pix2pix", ("",), ("",)),
    ],
)
def test_each_of_several_discriminators_is_observed_and_probed(name, sides, signals):
    data = load("digits-color-digits")
    if name == "cogan":
        data = load("affine-2d")
    recipe = built(name, data, width=4, blocks=1, **({"identity_weight": 0.0} if name == "cyclegan" else {}))
    game, batches = recipe.stages[0].game, Batches(data.train, data.spec, batch_size=8, seed=0)
    seen: dict = {}

    def look(state: State) -> dict:
        seen.update(state.rollout)
        return observe(state)

    progress = begin(game)
    values = step(game, progress, lambda: batches.draw(0), observe=look)
    prefixes = [f"{side}_" if side else "" for side in sides]
    for prefix in prefixes:
        assert 0 <= float(values[f"{prefix}discriminator_accuracy"]) <= 1
        assert float(values[f"{prefix}adversarial_signal"]) > 0
    assert len([k for k in values if k.endswith(("_accuracy", "_signal"))]) == 2 * len(prefixes)
    if name in ("cyclegan", "bicycle-gan"):  # least squares: the mean over n logits of |2 (D - 1)| / n, n times
        for prefix in prefixes:
            logits = seen[f"{prefix}fake_logits"].detach()
            wanted = float((2 * (logits - 1)).abs().mean())
            assert float(values[f"{prefix}adversarial_signal"]) == pytest.approx(wanted, rel=1e-4)
    found = Probes(data, batch_size=8, device=torch.device("cpu")).measure(Model(recipe, recipe.nets), recipe.stages[0])
    knows = {k: v for k, v in found.items() if k.endswith("train_over_test")}
    assert set(knows) == {f"probe_{p}discriminator_train_over_test" for p in prefixes}
    assert all(0.2 < v < 0.8 for v in knows.values())


def test_alarms_about_one_of_several_discriminators():
    made = History(10_000, 64, 0, {"adversarial_x": ("generator_x",), "discriminator_x": ("discriminator_x",)})
    for k in range(100):
        made.add({
            "examples": 100 * k,
            "a_discriminator_accuracy": 0.7,
            "x_discriminator_accuracy": 0.999,
            "gradient_norm → generator_x": 1.0 if k < 20 else 0.001,
            "gradient_norm → discriminator_x": 1.0 if k < 20 else 0.001,
        })  # fmt: skip
    (finding,) = diagnose(made)
    assert finding.name == "discriminator-too-strong" and "x discriminator" in finding.says
    assert "generator_x fell" in finding.evidence and "norm of discriminator" not in finding.evidence
    (finding,) = diagnose(history(probe_encoded_discriminator_train_over_test=[0.5, 0.9, 0.9]))
    assert finding.name == "critic-overfitting" and "encoded discriminator" in finding.says


def test_gradient_norms_are_those_of_the_gradient():
    recipe = built("vae", load("gaussians-8"))
    game = recipe.stages[0].game
    batch = {"x": torch.randn(32, 2, generator=torch.Generator().manual_seed(0))}
    progress = begin(game)
    rolled = State(game.nets, batch, 0, 0, torch.Generator().manual_seed(0))
    phase = game.phases[0]
    state = State(game.nets, batch, 0, 0, rolled.generator, phase.rollout(rolled))
    loss = sum(term.loss(state) for term in phase.terms)
    gradients = torch.autograd.grad(loss, list(game.nets["encoder"].parameters()))
    values = step(game, progress, lambda: batch, observe=lambda state: {})
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert float(values["gradient_norm → encoder"]) == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("name", [entry.name for entry in recipes.ENTRIES if "vector" in entry.data_kinds])
def test_probing_leaves_no_trace(name):
    data = load("gaussians-8")
    recipe = built(name, data, width=6, code_width=6)
    before = {k: v.clone() for k, v in recipe.nets.state_dict().items()}
    modes, random = [m.training for m in recipe.nets.modules()], torch.get_rng_state()
    stage = recipe.stages[0]
    found = Probes(data, batch_size=32, device=torch.device("cpu")).measure(Model(recipe, recipe.nets), stage)
    assert all(torch.equal(v, before[k]) for k, v in recipe.nets.state_dict().items())
    assert modes == [m.training for m in recipe.nets.modules()] and torch.equal(random, torch.get_rng_state())
    assert all(k.startswith("probe_") and isinstance(v, float) for k, v in found.items())
    assert {"probe_sample_modes", "probe_sample_spread"} <= found.keys()


def sampling(data, sample) -> dict:
    """The probes of a model whose samples are `sample(n)`."""
    faked = recipes.build("vae", data.spec, {"latent": 2, "width": 4})[1]
    abilities = {**faked.abilities, "sample": lambda nets, n, *, y=None, generator: sample(n, generator)}
    object.__setattr__(faked, "abilities", abilities)
    return Probes(data, batch_size=64, device=torch.device("cpu")).measure(Model(faked, faked.nets), faked.stages[0])


def test_probes_tell_copies_collapse_and_the_truth_apart():
    data = load("digits")
    from twofold.data import to_model

    train_x, test_x = (to_model(s.x[torch.arange(len(s))], data.spec) for s in (data.train, data.test))

    def some(x):
        return lambda n, g: x[torch.randint(len(x), (n,), generator=g)]

    copies, truth = sampling(data, some(train_x)), sampling(data, some(test_x))
    one = sampling(data, lambda n, g: test_x[:1].expand(n, -1, -1, -1) + 0.01 * torch.randn(n, 1, 8, 8, generator=g))
    assert copies["probe_sample_to_train"] == 0 and truth["probe_sample_to_train"] == pytest.approx(1, abs=0.15)
    assert truth["probe_sample_modes"] > 0.6 and truth["probe_sample_spread"] == pytest.approx(1, abs=0.1)
    assert one["probe_sample_modes"] < 0.1 and one["probe_sample_spread"] < 0.1

    def judged(probe):
        record = {
            "train": {"examples": 5_000},
            "spec": data.spec.to_json(),
            "stages": [],
            "data": {"train_examples": 9},
        }
        monitor = Monitor(record)
        return {f.name for k in range(4) for f in monitor.note({"examples": 1 + 1_666 * k, **probe})}

    assert judged(copies) == {"memorisation"} and judged(truth) == set()
    assert "mode-collapse" in judged(one)


# Real runs with the disease.


def ill(name: str, tmp_path, data, **options):
    """Train a run that is to fall ill; its notes and its diagnosis."""
    notes = Notes()
    train(name, data=data, out=tmp_path / "run", watch=notes, **options)
    return notes.lines, doctor(tmp_path / "run")


def test_a_posterior_that_collapses_and_one_that_does_not(tmp_path):
    random = np.random.default_rng(0)
    line = random.normal(size=(600, 1)) * [1.0, -1.0, 2.0] + 0.1 * random.normal(size=(600, 3))
    common = {"data": line, "batch_size": 64, "examples": 4_000, "latent": 2, "width": 16, "learning_rate": 1e-2}
    lines, found = ill("beta-vae", tmp_path / "a", beta=500.0, **common)
    assert "posterior-collapse" in {f.name for f in found.findings}
    assert sum("health: posterior-collapse" in line for line in lines) == 1  # told once
    page = (tmp_path / "a" / "run" / "report.html").read_text()
    assert "posterior-collapse" in page and "Health" in page
    stored = json.loads((tmp_path / "a" / "run" / "health.json").read_text())
    assert [a["name"] for a in stored["alarms"]].count("posterior-collapse") == 1
    lines, found = ill("vae", tmp_path / "b", **common)
    said = [f.name for f in found.findings] + [event.name for event in found.passed] + lines
    assert not any("posterior-collapse" in text for text in said)


def test_a_discriminator_that_is_too_strong(tmp_path):
    """Minimax, and a generator that hardly moves."""
    common = {"data": "gaussians-8", "examples": 6_000, "width": 32, "loss": "minimax", "latent": 2}
    _, found = ill("gan", tmp_path, learning_rate=1e-7, learning_rate_discriminator=1e-2, **common)
    (finding,) = [f for f in found.findings if f.name == "discriminator-too-strong"]
    assert "ranks" in finding.evidence


def test_a_codebook_of_which_little_is_used(tmp_path):
    options = {
        "data": "gaussians-8",
        "examples": 3_000,
        "width": 16,
        "latent": 2,
        "positions": 1,
        "restart_examples": 0,
    }
    with_dead = ill("vq-vae", tmp_path / "a", codes=256, **options)[1]
    assert "dead-codes" in {f.name for f in with_dead.findings}
    few = ill("vq-vae", tmp_path / "b", codes=8, **(options | {"restart_examples": 500}))[1]
    assert "dead-codes" not in {f.name for f in few.findings}


@pytest.mark.parametrize(("steps", "knows"), [(0, False), (300, True)])
def test_a_critic_that_knows_its_few_examples_by_heart(steps, knows):
    """It is to tell 32 draws of a Normal from fresh draws of the same: only by remembering them."""
    x = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    data = load(x, holdout=0.5)
    net = MLP(16, (64,), 1)

    def rollout(state: State) -> dict:
        fresh = torch.randn(32, 16, generator=state.generator)
        return {"real_logits": net(state.batch["x"]), "fake_logits": net(fresh)}

    loss = NonSaturating().discriminator
    term = Term(
        "adversarial_discriminator", lambda s: loss(s["real_logits"], s["fake_logits"]), to={"discriminator": 1.0}
    )
    game = Game({"discriminator": Player(net, partial(torch.optim.Adam, lr=3e-3))}, (Phase("all", rollout, (term,)),))
    progress, stream = begin(game), Batches(data.train, data.spec, batch_size=32, seed=0)
    for k in range(steps):
        step(game, progress, lambda k=k: stream.draw(32 * k))
    other = built("vae", data)
    found = Probes(data, batch_size=32, device=torch.device("cpu")).measure(
        Model(other, other.nets), Stage("train", game)
    )
    over = found["probe_discriminator_train_over_test"]
    assert (over > 0.85) if knows else (0.3 < over < 0.7)
    assert ("critic-overfitting" in names(history(probe_discriminator_train_over_test=[over] * 4))) == knows


@pytest.mark.parametrize(("slope", "circles"), [(0.0, True), (1.0, False)])
def test_two_players_that_chase_each_other_in_circles(slope, circles):
    """The Dirac-GAN of Mescheder et al. 2018 with Wasserstein's loss: data near 0, one generated place θ, D(x) = ψ x.
    Its gradient field turns about the equilibrium; R1's pull on ψ lets it settle."""

    def place(net: torch.nn.Linear, state: State) -> torch.Tensor:
        noise = torch.randn(64, 1, generator=state.generator)
        return net.bias + 0.1 * noise

    def rollout(state: State) -> dict[str, torch.Tensor]:
        x, x_fake = state.batch["x"], place(state.nets["generator"], state)
        judge = state.nets["discriminator"]
        return {"x": x, "real_logits": judge(x).squeeze(1), "fake_logits": judge(x_fake).squeeze(1)}

    generator, discriminator = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        generator.bias.fill_(1.0)
        discriminator.weight.fill_(0.5)
    sgd = partial(torch.optim.SGD, lr=0.1)
    terms = (
        Term(
            "adversarial_discriminator",
            lambda s: s["fake_logits"].mean() - s["real_logits"].mean(),
            to={"discriminator": 1.0},
        ),
        Term("r1", lambda s: s.nets["discriminator"].weight.square().sum() / 2, to={"discriminator": slope}),
        Term("adversarial_generator", lambda s: -s["fake_logits"].mean(), to={"generator": 1.0}),
    )
    game = Game(
        {"generator": Player(generator, sgd), "discriminator": Player(discriminator, sgd)},
        (Phase("all", rollout, terms if slope else (terms[0], terms[2])),),
    )
    progress, noise = begin(game), torch.Generator().manual_seed(1)
    made = History(64 * 1_000, 1, 0, {"adversarial_generator": ("generator",)})
    for _ in range(1_000):
        values = step(game, progress, lambda: {"x": 0.1 * torch.randn(64, 1, generator=noise)}, observe=observe)
        made.add({"examples": progress.examples} | {name: float(value) for name, value in values.items()})
    assert ("oscillation" in names(made)) == circles


def test_a_model_that_knows_its_few_examples_better_than_others(tmp_path):
    """Eight examples in twenty dimensions, seen a thousand times each; the control has two thousand."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4, 20))
    settings = {"latent": 4, "width": 64, "depth": 2, "norm": "none", "examples": 8_000, "seed": 0}
    found = {}
    for count in (8, 2_000):
        x = rng.normal(size=(count + 200, 4)) @ directions + 0.3 * rng.normal(size=(count + 200, 20))
        out = tmp_path / str(count)
        options = {"holdout": 200 / (count + 200)}
        train("vae", data=x.astype(np.float32), out=out, batch_size=8, data_options=options, **settings)
        found[count] = {finding.name for finding in doctor(out).findings}
    assert "overfitting" in found[8] and "overfitting" not in found[2_000]


def test_a_wrong_range_is_seen_at_once(tmp_path):
    x = np.random.default_rng(0).random((60, 8, 8)).astype(np.float32)
    notes = Notes()
    options = {"examples": 64, "batch_size": 8, "latent": 2, "width": 4, "hidden": 4, "watch": notes}
    train("vae", data=x, data_options={"value_range": (0.0, 255.0)}, out=tmp_path / "a", **options)
    assert any(line.startswith("health: data-range: data fill a small part") for line in notes.lines)
    notes.lines.clear()
    train("vae", data=x, out=tmp_path / "b", **options)
    assert not any("data-range" in line for line in notes.lines)
    assert "No alarm was raised" in (tmp_path / "b" / "report.html").read_text()


def test_values_that_are_not_finite(tmp_path):
    options = {"data": "gaussians-8", "examples": 2_000, "latent": 2, "width": 8, "out": tmp_path / "run"}
    with pytest.raises(TrainingError):
        train("vae", learning_rate=1e30, **options)
    assert [f.name for f in doctor(tmp_path / "run").findings] == ["non-finite"]


# The run.


def toy(out, **changes):
    options = {"data": "gaussians-8", "examples": 800, "batch_size": 16, "latent": 2, "width": 8, "depth": 1}
    return train("vae", out=out, **(options | changes))


def test_a_run_ends_on_the_alarm_it_was_told_to_end_on(tmp_path, capsys):
    words = ["train", "beta-vae", "--data", "gaussians-8", "--examples", "8000", "--out", str(tmp_path / "run")]
    words += ["--beta", "500", "--latent", "2", "--width", "16", "--learning-rate", "0.01"]
    assert main([*words, "--stop-on", "posterior-collapse,non-finite"]) == 3
    err = capsys.readouterr().err
    assert "stopped at" in err and "by the alarm posterior-collapse" in err and "Try:" in err
    run = Run.open(tmp_path / "run")
    stopped = run.checkpoints()[-1]
    assert 1_000 <= stopped < 8_000 and (run.path / "report.html").exists()
    assert twofold.load(run.path).examples == stopped
    # Without the condition the same run goes on to its end.
    assert main([*words, "--resume"]) == 0 and Run.open(tmp_path / "run").checkpoints()[-1] >= 8_000
    with pytest.raises(InputError, match=r"unknown alarm 'mode-colapse'; did you mean 'mode-collapse'"):
        toy(tmp_path / "x", stop_on="mode-colapse")
    assert not (tmp_path / "x").exists()
    assert issubclass(AlarmError, RuntimeError)


def test_the_best_checkpoint_is_kept_and_used(tmp_path, capsys):
    model = toy(tmp_path / "run", keep_best="min:test_elbo_nats")  # upside down: the best is an early one
    run = Run.open(tmp_path / "run")
    values = {r["examples"]: r["test_elbo_nats"] for r in run.metrics() if "test_elbo_nats" in r}
    worst = min(values, key=lambda examples: values[examples])
    assert run.best() == {"examples": worst, "metric": "test_elbo_nats", "value": values[worst]}
    assert worst < model.examples and len(run.checkpoints()) == 3 and run.checkpoints()[0] == worst
    best = twofold.load(run.path, checkpoint="best")
    assert best.examples == worst and not np.array_equal(best.sample(4), model.sample(4))
    assert main(["sample", str(run.path), "--checkpoint", "best", "-n", "2", "--out", str(tmp_path / "s.npz")]) == 0
    assert np.array_equal(np.load(tmp_path / "s.npz")["samples"], best.sample(2))
    toy(tmp_path / "plain")
    with pytest.raises(InputError, match="keeps no best checkpoint; train with --keep-best"):
        twofold.load(tmp_path / "plain", checkpoint="best")
    with pytest.raises(InputError, match="say which way is better: max:kl"):
        toy(tmp_path / "x", keep_best="kl")


def test_a_term_is_compared_by_its_mean_between_pictures(tmp_path):
    toy(tmp_path / "run", keep_best="min:reconstruction")
    run = Run.open(tmp_path / "run")
    best = run.best()
    assert best is not None and best["examples"] > 0 and best["examples"] in run.checkpoints()
    assert best["value"] < 1.05 * max(r["reconstruction"] for r in run.metrics() if "reconstruction" in r)


def test_watching_and_keeping_change_no_bit_and_resume_exactly(tmp_path):
    from test_training import Stop, same, weights
    from twofold.training import Interrupted

    plain = toy(tmp_path / "a")
    kept = toy(tmp_path / "b", keep_best="max:test_elbo_nats", stop_on="non-finite")
    assert same(weights(plain), weights(kept))
    with pytest.raises(Interrupted, match="--keep-best max:test_elbo_nats"):
        toy(tmp_path / "c", keep_best="max:test_elbo_nats", watch=Stop(300))
    resumed = toy(tmp_path / "c", keep_best="max:test_elbo_nats", resume=True)
    assert same(weights(plain), weights(resumed))
    best = [Run.open(tmp_path / k).best() for k in "bc"]
    assert best[0] == best[1] is not None


def test_a_resumed_monitor_has_forgotten_what_did_not_happen():
    record = {"train": {"examples": 10_000}, "spec": {"shape": [64]}, "stages": [], "data": {"train_examples": 9}}
    event = {"name": "mode-collapse", "says": "a", "evidence": "b", "remedy": "c"}
    events = [
        event | {"began_examples": 2_000, "ended_examples": 4_000},
        event | {"name": "dead-codes", "began_examples": 5_000, "ended_examples": None},
        {"name": "rubbish"},
    ]
    monitor = Monitor(record, [{"examples": 3_000, "kl": 1.0}], events)
    assert [(e.name, e.ended_examples) for e in monitor.events] == [("mode-collapse", None)]


def test_the_doctor_on_the_command_line(tmp_path, capsys):
    toy(tmp_path / "run")
    assert main(["doctor", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "of 800 examples" in out and "not checked" in out
    assert main(["doctor", str(tmp_path / "run"), "--data", "gaussians-8", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["planned_examples"] == 800 and {"findings", "passed", "not_checked"} <= record.keys()
    assert main(["doctor", str(tmp_path / "run"), "--data", "digits"]) == 2
    assert "this run's data are vectors of (2,)" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "nothing")]) == 2
    assert isinstance(Finding("a", "b", "c", "d").line, str)


def test_every_alarm_stands_on_its_page():
    from pathlib import Path

    page = (Path(__file__).resolve().parent.parent / "docs" / "health.md").read_text()
    assert all(f"| `{name}` |" in page for name in ALARMS)
