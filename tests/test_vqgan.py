"""VQGAN: where each gradient goes, the adaptive weight, the guarded switch-on, the stages and the prior."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from test_training import Stop
from twofold import recipes
from twofold.coefficients import Guard
from twofold.decode import Uncached, generate, row_seeds
from twofold.errors import InputError
from twofold.game import Game, State, begin, step
from twofold.model import Model
from twofold.nets.features import FeatureClassifier
from twofold.nets.switch_on import SwitchOn
from twofold.overview import show
from twofold.recipes.vqgan import released
from twofold.run import Run
from twofold.spec import Spec
from twofold.terms.perceptual import perceptual_distance
from twofold.training import Interrupted, _Session, train

IMAGE = Spec("image", (1, 8, 8), classes=3, layout="HW")
SMALL = {
    "latent": 3,
    "width": 4,
    "codes": 6,
    "multipliers": "1,2",
    "width_discriminator": 4,
    "prior_width": 8,
    "prior_layers": 1,
    "prior_heads": 2,
}


def build(spec: Spec = IMAGE, **options):
    torch.manual_seed(0)
    return recipes.build("vqgan", spec, {**SMALL, **options})[1]


def batch(n: int = 8, dtype=torch.float32) -> dict[str, torch.Tensor]:
    x = torch.rand(n, 1, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"x": x, "y": torch.arange(n) % 3}


# Routing and the adaptive weight.


def test_published_routing():
    autoencoder, prior = show("vqgan", options={"adversarial_begin": 5, "adversarial_ramp": 10})["stages"]
    weight = "0→0.2 (5…15)·guard·λ"
    assert {t["name"]: t["to"] for t in autoencoder["phases"][0]["terms"]} == {
        "quantisation": {"encoder": 0.25, "codebook": 1.0},
        "reconstruction": {"encoder": 1.0, "decoder": 1.0},
        "adversarial_generator": {"encoder": weight, "decoder": weight},
        "adversarial_discriminator": {"discriminator": 0.5},
    }
    assert [t["to"] for t in prior["phases"][0]["terms"]] == [{"transformer": 1.0}]
    assert set(prior["players"]) == {"transformer"}
    (plain, _) = show("vqgan", options={"adversarial_weight": 0.0, "codebook": "ema"})["stages"]
    assert set(plain["players"]) == {"encoder", "decoder"}


@pytest.mark.parametrize("arch", ["resnet", "halving"])
def test_the_adaptive_weight_is_the_ratio_of_two_gradients_at_the_last_layer(arch):
    """Against gradients taken through a copy of the last layer alone, times ramp and guard."""
    recipe = build(arch=arch, adversarial_begin=0, adversarial_ramp=20, adversarial_weight=0.8, restart_examples=0)
    recipe.nets.double()
    game, data = recipe.stages[0].game, batch(dtype=torch.float64)
    progress = begin(game)
    progress.examples = 10  # half of the ramp
    weight = [w for w in game.nets["decoder"].parameters() if w.ndim > 1][-1]
    state = State(game.nets, data, 10, 0, torch.Generator())
    kept = {k: v.clone() for k, v in game.nets.state_dict().items()}
    x_rec = game.phases[0].rollout(state)["x_rec"]
    (of_l1,) = torch.autograd.grad((x_rec - data["x"]).abs().sum() / 8, weight, retain_graph=True)
    (of_d,) = torch.autograd.grad(-game.nets["discriminator"](x_rec).mean(), weight)
    game.nets.load_state_dict(kept)
    expected = 0.4 * of_l1.norm() / (of_d.norm() + 1e-4)
    values = step(game, progress, lambda: data)
    torch.testing.assert_close(values["adversarial_generator → decoder"], expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(values["adversarial_generator → encoder"], expected, rtol=1e-9, atol=0)


def test_before_the_switch_on_the_discriminator_learns_and_nobody_hears_it():
    """Encoder, decoder and codebook move as they do without a discriminator, bit for bit; the discriminator moves."""
    finals = []
    for weight in (0.0, 0.8):
        recipe = build(adversarial_weight=weight, adversarial_begin=17)
        game = recipe.stages[0].game
        progress = begin(game)
        start = {k: v.clone() for k, v in game.nets.state_dict().items()}
        for _ in range(3):
            values = step(game, progress, batch)
        finals.append({k: v for k, v in game.nets.state_dict().items() if k.startswith(("enc", "dec", "code"))})
    assert values["adversarial_generator → decoder"] == 0
    assert finals[0].keys() == finals[1].keys()
    assert all(torch.equal(finals[0][k], finals[1][k]) for k in finals[0])
    moved = {k for k, v in game.nets.state_dict().items() if not torch.equal(v, start[k])}
    assert any(k.startswith("discriminator") for k in moved)
    values = step(game, progress, batch)  # 24 examples seen
    assert values["adversarial_generator → decoder"] > 0


# The guarded switch-on.


def test_the_rise_is_measured_from_the_switch_on():
    memory = SwitchOn(half_life_examples=10)
    for _ in range(30):
        memory.note(torch.tensor(2.0), examples=10, on=False)
    assert memory.rise() == 0 and memory.largest_rise == 0
    memory.note(torch.tensor(4.0), examples=10, on=True)
    assert memory.rise().item() == pytest.approx(0.5)  # half of what was new
    for _ in range(30):
        memory.note(torch.tensor(1.0), examples=10, on=True)
    assert memory.rise().item() == pytest.approx(-0.5) and memory.largest_rise.item() == pytest.approx(0.5)
    first = SwitchOn(half_life_examples=10)
    first.note(torch.tensor(3.0), examples=1, on=True)  # on from the start: the first error is the one before
    assert first.rise() == 0 and first.before == 3


@pytest.mark.parametrize(("rise", "factor"), [(-0.5, 1.0), (0.0, 1.0), (0.1, 1.0), (0.15, 0.5), (0.2, 0.0), (9.0, 0.0)])
def test_the_guard_takes_the_weight_away(rise, factor):
    guard = Guard(lambda s: torch.tensor(rise), 0.2)
    assert guard(None).item() == pytest.approx(factor, abs=1e-6)


def test_the_guard_bounds_what_a_harmful_discriminator_does():
    """A weight of 10: without the guard the error goes up manyfold; with it, above its limit for a moment only."""
    largest = {}
    for limit in (0.2, None):
        options = {"adversarial_weight": 10.0, "adversarial_begin": 1600, "adversarial_ramp": 3200, "arch": "halving"}
        recipe = build(**options, adversarial_limit=limit, halvings=1, blocks=1, learning_rate=2e-3, width=8)
        game = recipe.stages[0].game
        progress = begin(game)
        seen = batch(16)
        for _ in range(250):
            values = step(game, progress, lambda seen=seen: seen)
        largest[limit] = values["rise_largest"].item()
        assert values["rise"] <= values["rise_largest"]
        assert limit is None or values["rise"] < limit
    assert largest[0.2] < 0.5 < 2 < largest[None]


# Perceptual features.


def test_perceptual_distance_is_of_directions():
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 4, 5, 6, generator=random, dtype=torch.float64) for _ in range(2))
    unit = [v.numpy() / np.linalg.norm(v.numpy(), axis=1, keepdims=True) for v in (a, b)]
    expected = np.square(unit[0] - unit[1]).sum(1).mean((1, 2))
    np.testing.assert_allclose(perceptual_distance([a], [b]), expected, rtol=1e-8)
    np.testing.assert_allclose(perceptual_distance([a, a], [b, 7 * b]), 2 * expected, rtol=1e-8)
    assert perceptual_distance([a], [3 * a]).abs().max() < 1e-8
    zero = torch.zeros(1, 2, 2, 2, requires_grad=True)
    perceptual_distance([zero], [torch.ones(1, 2, 2, 2)]).sum().backward()
    assert zero.grad is not None and zero.grad.isfinite().all()
    moved = b.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(perceptual_distance([a], [moved]).sum(), moved)
    closer = perceptual_distance([a], [(moved - 1e-3 * gradient).detach()])
    assert (closer < perceptual_distance([a], [b])).all()
    with pytest.raises(ValueError, match="maps of 1 and 2 layers"):
        perceptual_distance([a], [a, b])


def test_features_are_trained_first_and_then_stand_still():
    recipe = build(perceptual="features", perceptual_weight=0.5, adversarial_begin=0)
    assert [s.name for s in recipe.stages] == ["features", "autoencoder", "prior"]
    first, second, _ = recipe.stages
    progress = begin(first.game)
    losses = [step(first.game, progress, batch)["classification"] for _ in range(20)]
    assert losses[-1] < losses[0]
    before = {k: v.clone() for k, v in recipe.nets["features"].state_dict().items()}
    progress = begin(second.game)
    distances = [step(second.game, progress, batch)["perceptual"] for _ in range(20)]
    assert distances[-1] < distances[0]
    assert all(torch.equal(before[k], v) for k, v in recipe.nets["features"].state_dict().items())
    (term,) = [t for t in second.game.phases[0].terms if t.name == "perceptual"]
    assert term.to == {"encoder": 32.0, "decoder": 32.0}  # half, for each of the image's 64 values
    with pytest.raises(InputError, match="trained on labels, but this data has none"):
        build(replace(IMAGE, classes=None), perceptual="features")
    assert [m.shape[2:] for m in FeatureClassifier(2, 3, layers=3).maps(torch.zeros(1, 2, 9, 5))] == [
        (9, 5),
        (5, 3),
        (3, 2),
    ]


# The prior.


def test_rate_is_the_likelihood_of_the_codes_however_it_is_computed():
    """All at once, and code by code from the cache; a distribution: over one code they sum to 1."""
    recipe = build(conditional=True)
    model = Model(recipe, recipe.nets)
    images = model.sample(5, labels=1)
    at_once = model.rate(images, labels=1)
    nets, y = recipe.nets.eval(), torch.ones(5, dtype=torch.int64)
    view = recipe.stages[1].view
    x = torch.from_numpy(images).float().div(127.5).sub(1)[:, None]
    with torch.no_grad():
        codes = view(nets, {"x": x, "y": y})["codes"]
        net = nets["transformer"]
        cache, nats = net.start(5, {"y": y}), []
        given = codes[:, :0]
        for place in range(codes.shape[1]):
            logits = net.step(given, cache)
            nats.append(-logits.log_softmax(1).gather(1, codes[:, place : place + 1])[:, 0])
            given = codes[:, place : place + 1]
    step_by_step = torch.stack(nats, dim=1)
    np.testing.assert_allclose(at_once["rate_nats"], step_by_step.sum(1), rtol=1e-5)
    np.testing.assert_allclose(at_once["nats_per_code"], step_by_step.mean(1), rtol=1e-5)
    assert not np.allclose(at_once["rate_nats"], model.rate(images, labels=2)["rate_nats"], rtol=1e-6)


def test_the_prior_learns_codes_that_depend_on_labels_and_guidance_strengthens_it():
    recipe = build(conditional=True, prior_learning_rate=3e-3, label_dropout=0.2, prior_dropout=0.0)
    game = recipe.stages[1].game
    progress, random = begin(game), torch.Generator().manual_seed(0)

    def draw() -> dict[str, torch.Tensor]:
        y = torch.randint(3, (64,), generator=random)
        noise = torch.randint(6, (64, 16), generator=random)
        keep = torch.rand(64, 16, generator=random) < 0.5
        return {"codes": torch.where(keep, y[:, None].expand(-1, 16), noise), "y": y}

    nats = [step(game, progress, draw)["nats_per_code"].item() for _ in range(150)]
    # By hand: a code equals its label with probability 1/2 + 1/12, and each of the 5 others has 1/12.
    best = -(7 / 12 * np.log(7 / 12) + 5 / 12 * np.log(1 / 12))
    assert best - 0.05 < np.mean(nats[-20:]) < best + 0.15 < nats[0]
    net, y = recipe.nets["transformer"].eval(), torch.arange(3).repeat(100)
    seeds = row_seeds(300, generator=torch.Generator().manual_seed(1))
    shares = []
    for scale in (0.0, 1.0, 3.0):
        drawn = generate(net, 16, seeds=seeds, condition={"y": y}, guidance=scale)
        # The first codes: later ones can be told from those before them, label or not.
        shares.append((drawn == y[:, None])[:, :2].float().mean().item())
    assert shares[0] + 0.1 < shares[1] < shares[2] - 0.1, shares
    few = [generate(m, 16, seeds=seeds[:9], condition={"y": y[:9]}, guidance=3.0) for m in (net, Uncached(net))]
    assert torch.equal(*few)


def test_sampling_follows_its_options():
    recipe = build(temperature=0.0)
    x = Model(recipe, recipe.nets).sample(3)
    assert np.array_equal(x[0], x[1])  # the most probable code everywhere
    with pytest.raises(InputError, match="guidance is 2.0; it needs a conditional prior"):
        build(guidance=2.0)
    with pytest.raises(InputError, match="guidance is 2.0; it needs a conditional prior"):
        build(guidance=2.0, conditional=True, label_dropout=0.0)
    guided = build(guidance=2.0, conditional=True)
    assert Model(guided, guided.nets).sample(2, labels=[0, 2]).shape == (2, 8, 8)


def test_completion_keeps_what_is_known_and_draws_the_rest():
    """Pixels above the cut stay; those below depend on them, on the seed, and not on what was there."""
    recipe = build(restart_examples=8)  # untrained codes may all be one
    progress = begin(recipe.stages[0].game)
    for _ in range(5):
        step(recipe.stages[0].game, progress, batch)
    model = Model(recipe, recipe.nets)
    x = np.random.default_rng(0).integers(0, 256, (70, 8, 8), dtype=np.uint8)
    half = 8 // 2
    drawn = model.complete(x, known=0.5, seed=1)
    assert np.array_equal(drawn[:, :half], x[:, :half]) and not np.array_equal(drawn, x)
    assert np.array_equal(model.complete(x, known=1.0), x)
    assert not np.array_equal(drawn, model.complete(x, known=0.5, seed=2))
    other = x.copy()
    other[:, half:] = 255 - other[:, half:]
    assert np.array_equal(drawn, model.complete(other, known=0.5, seed=1))
    other[:, :half] = 255 - other[:, :half]
    changed = model.complete(other, known=0.5, seed=1)[:, half:] != drawn[:, half:]
    assert changed.mean() > 0.05
    assert np.array_equal(model.complete(x[:5], known=0.0), model.sample(5))


# Stages, codes that are kept, resuming.


def data(n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8), dtype=np.uint8), np.arange(n) % 3


def run(out, *, examples: int = 160, name: str = "vqgan", **changes) -> Model:
    own = {"adversarial_begin": 16, "adversarial_ramp": 24, "perceptual": "features", "conditional": True}
    options = {**SMALL, **own, "prior_dropout": 0.1} | changes
    return train(name, data=data(), out=out, examples=examples, batch_size=8, device="cpu", **options)


@pytest.fixture
def without_pictures(monkeypatch):
    """Runs without grids, curves and report: they draw from generators of their own and take most of a tiny run's
    time."""
    for name in ("_pictures", "_curves", "_finish"):
        monkeypatch.setattr(_Session, name, lambda self: None)


def states(path) -> dict[str, torch.Tensor]:
    found = Run.open(path).load_checkpoint().tensors
    return {f"{file}/{k}": v for file, tensors in found.items() for k, v in tensors.items()}


def test_interrupted_in_every_stage_and_between_them_is_uninterrupted_bit_for_bit(tmp_path, without_pictures):
    run(tmp_path / "whole")
    expected = states(tmp_path / "whole")
    seen = []
    for after in (1, 16, 40, 80, 96, 120, 10_000):
        try:
            run(tmp_path / "parts", resume=after > 1, watch=Stop(after))
        except Interrupted:
            saved = Run.open(tmp_path / "parts").load_checkpoint()
            seen.append((saved.state["stage"], saved.examples))
    assert {stage for stage, _ in seen} == {0, 1, 2}
    found = states(tmp_path / "parts")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_killed_between_two_stages_goes_on_with_the_next(tmp_path, monkeypatch, without_pictures):
    enter = _Session._enter

    def killed(self, stage):
        if stage == 2:
            raise MemoryError("killed")
        enter(self, stage)

    run(tmp_path / "whole")
    monkeypatch.setattr(_Session, "_enter", killed)
    with pytest.raises(MemoryError):
        run(tmp_path / "parts")
    assert Run.open(tmp_path / "parts").load_checkpoint().state["stage"] == 1
    monkeypatch.setattr(_Session, "_enter", enter)
    run(tmp_path / "parts", resume=True)
    expected, found = states(tmp_path / "whole"), states(tmp_path / "parts")
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_codes_are_computed_once_and_change_no_number(tmp_path, monkeypatch, without_pictures):
    calls = []
    all_at_once = _Session._view_of_all
    monkeypatch.setattr(_Session, "_view_of_all", lambda self, stage: calls.append(1) or all_at_once(self, stage))
    run(tmp_path / "kept")
    assert len(calls) == 1 and (tmp_path / "kept" / "kept" / "codes.safetensors").exists()
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", watch=Stop(110))
    run(tmp_path / "parts", resume=True)
    assert len(calls) == 2  # read from the run by the second session
    with pytest.raises(Interrupted):
        run(tmp_path / "lost", watch=Stop(110))
    (tmp_path / "lost" / "kept" / "codes.safetensors").write_bytes(b"torn")
    run(tmp_path / "lost", resume=True)
    assert len(calls) == 4  # damaged: computed again
    monkeypatch.setattr(_Session, "_kept_view", lambda self, stage: None)
    run(tmp_path / "each")
    assert len(calls) == 4 and not (tmp_path / "each" / "kept").exists()
    expected = states(tmp_path / "kept")
    for other in ("parts", "lost", "each"):
        found = states(tmp_path / other)
        assert all(torch.equal(found[k], expected[k]) for k in expected), other


def test_codes_of_moved_pictures_are_not_kept(tmp_path, without_pictures):
    train("vqgan", data=data(), out=tmp_path / "a", examples=32, batch_size=8, flip=True, **SMALL)
    assert not (tmp_path / "a" / "kept").exists()


# Networks and refusals.


def test_parameters_of_the_released_networks():
    """By hand, 256×256×3: convolutions, group norms and attention of the released sizes."""
    with torch.device("meta"):
        _, recipe = recipes.build("vqgan", Spec("image", (3, 256, 256), layout="HWC"), asdict(released()))
    count = {n: sum(w.numel() for w in net.parameters()) for n, net in recipe.nets.items()}

    def conv(a, b, k):
        return a * b * k * k + b

    def block(a, b):
        return 2 * a + conv(a, b, 3) + 2 * b + conv(b, b, 3) + (conv(a, b, 1) if a != b else 0)

    def attention(a):
        return 2 * a + 4 * conv(a, a, 1)

    widths = (128, 128, 256, 256, 512)
    middle = 2 * block(512, 512) + attention(512)
    encoder = conv(3, 128, 3) + middle + 2 * 512 + conv(512, 256, 3) + conv(256, 256, 1)
    for a, b in pairwise((128, *widths)):
        encoder += block(a, b) + block(b, b)
    encoder += 2 * attention(512) + sum(conv(w, w, 3) for w in widths[:-1])
    decoder = conv(256, 256, 1) + conv(256, 512, 3) + middle + 2 * 128 + conv(128, 3, 3)
    for a, b in pairwise((512, *widths[::-1])):
        decoder += block(a, b) + 2 * block(b, b)
    decoder += 3 * attention(512) + sum(conv(w, w, 3) for w in widths[1:])
    assert (count["encoder"], count["decoder"]) == (encoder, decoder)
    assert count["codebook"] == 1024 * 256
    assert count["discriminator"] == 2_764_737 + 2 * (128 + 256 + 512) - (128 + 256 + 512)
    layer = 12 * 1024**2 + 13 * 1024
    assert count["transformer"] == 24 * layer + 2 * 1024 * 1024 + 256 * 1024 + 1024 + 2 * 1024
    assert recipe.nets["transformer"].window == 256


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (2, 17, 8), (1, 28, 28), (3, 5, 30)])
@pytest.mark.parametrize("arch", ["resnet", "halving"])
def test_any_size_of_image(arch, shape):
    recipe = build(Spec("image", shape, layout="CHW"), arch=arch, multipliers="1,1,2", adversarial_begin=0)
    game = recipe.stages[0].game
    values = step(game, begin(game), lambda: {"x": torch.rand(2, *shape) * 2 - 1})
    assert all(v.isfinite() for v in values.values())
    assert Model(recipe, recipe.nets).sample(1).shape == (1, *shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multipliers": "1,x"}, "multipliers is '1,x'; give whole numbers from 1"),
        ({"multipliers": "1,1,1,1,1,1"}, "halvings is 5; an image of 8×8 is one place after 3"),
        ({"patch_layers": 3}, "patch_layers is 3; images of 8×8 have room for 0 to 1"),
        ({"blocks": 0}, "blocks is 0; it starts at 1 with arch resnet"),
        ({"codes": 1}, "codes is 1"),
        ({"adversarial_limit": 0.0}, "adversarial_limit is 0.0"),
        ({"adversarial_weight": -1.0}, "adversarial_weight is -1.0; it starts at 0"),
        ({"prior_share": 0.0}, "prior_share is 0.0; it must be above 0"),
        ({"prior_heads": 3}, "the heads must divide the width"),
        ({"label_dropout": 1.0}, "label_dropout is 1.0"),
        ({"top_p": 2.0}, "top_p is 2.0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_a_games_frozen_networks_are_all_that_the_view_reads():
    """A view that read another network would go stale in the run."""
    recipe = build()
    stage = recipe.stages[1]
    assert isinstance(stage.game, Game) and set(stage.game.frozen) == {"encoder", "codebook"}
    assert stage.view(stage.game.nets, batch())["codes"].shape == (8, 16)
