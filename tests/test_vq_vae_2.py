"""VQ-VAE-2: where each gradient goes, what the levels say to each other, the priors, the refinement."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from test_training import Stop
from test_vqgan import without_pictures  # noqa: F401  (a fixture)
from twofold import recipes
from twofold.decode import Uncached, generate, row_seeds
from twofold.errors import InputError
from twofold.game import begin, step
from twofold.model import Model
from twofold.overview import show
from twofold.recipes.vq_vae_2 import released
from twofold.run import Run
from twofold.spec import Spec
from twofold.training import Interrupted, train

IMAGE = Spec("image", (1, 16, 16), classes=3, layout="HW")
SMALL = {"latent": 3, "width": 4, "codes": 6, "prior_width": 8, "prior_layers": 2, "prior_heads": 2}


def build(spec: Spec = IMAGE, **options):
    torch.manual_seed(0)
    return recipes.build("vq-vae-2", spec, {**SMALL, **options})[1]


def batch(n: int = 8) -> dict[str, torch.Tensor]:
    x = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"x": x, "y": torch.arange(n) % 3}


def bytes_of(recipe) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in recipe.nets.state_dict().items()}


def moved(recipe, before) -> set[str]:
    return {k.partition(".")[0] for k, v in recipe.nets.state_dict().items() if not torch.equal(v, before[k])}


def test_published_routing():
    """Reconstruction and two commitments; the codebooks are averages; then a prior at a time."""
    stages = show("vq-vae-2", options={"refine_share": 0.5})["stages"]
    rows = {s["name"]: {t["name"]: t["to"] for t in s["phases"][0]["terms"]} for s in stages}
    assert rows == {
        "autoencoder": {
            "quantisation_top": {"encoder": 0.25},
            "quantisation_bottom": {"encoder": 0.25},
            "reconstruction": {"encoder": 1.0, "decoder": 1.0},
        },
        "refine": {
            "reconstruction": {"decoder": 1.0},
            "adversarial_generator": {"decoder": "0→0.8 (0…10,000)·λ"},
            "adversarial_discriminator": {"discriminator": 0.5},
        },
        "prior_top": {"nll_top": {"prior_top": 1.0}},
        "prior_bottom": {"nll_bottom": {"prior_bottom": 1.0}},
    }
    plain = show("vq-vae-2", options={"codebook": "loss"})["stages"]
    assert [s["name"] for s in plain] == ["autoencoder", "prior_top", "prior_bottom"]
    (term,) = [t for t in plain[0]["phases"][0]["terms"] if t["name"] == "quantisation_top"]
    assert term["to"] == {"encoder": 0.25, "codebook_top": 1.0}


def test_each_stage_moves_its_own_networks_only():
    recipe = build(refine_share=1.0, refine_ramp=0)
    expected = {
        "autoencoder": {"encoder", "decoder", "codebook_top", "codebook_bottom", "usage_top", "usage_bottom"},
        "refine": {"decoder", "discriminator", "switch_on"},
        "prior_top": {"prior_top"},
        "prior_bottom": {"prior_bottom"},
    }
    for stage in recipe.stages:
        before, progress = bytes_of(recipe), begin(stage.game)
        seen = batch() if stage.view is None else stage.view(stage.game.nets, batch())
        for _ in range(3):
            values = step(stage.game, progress, lambda seen=seen: seen)
        assert moved(recipe, before) == expected[stage.name]
        assert all(v.isfinite() for v in values.values())
        if stage.name == "autoencoder":
            health = {
                f"{m}_{level}" for m in ("perplexity", "codes_used", "codes_restarted") for level in ("top", "bottom")
            }
            assert health <= values.keys()


def test_the_top_sees_wide_and_the_bottom_sees_the_top():
    """The bottom's vectors change with the top's codes at equal features; the decoder reads both levels."""
    recipe = build()
    encoder, decoder = recipe.nets["encoder"], recipe.nets["decoder"]
    features, z_top = encoder(batch()["x"])
    assert features.shape == (8, 4, 4, 4) and z_top.shape == (8, 3, 2, 2)
    codes = torch.randn(8, 3, 2, 2)
    z_bottom = encoder.bottom(features, codes)
    assert z_bottom.shape == (8, 3, 4, 4)
    assert (encoder.bottom(features, codes + 1) - z_bottom).abs().max() > 1e-3
    out = decoder(codes, z_bottom)
    assert (decoder(codes + 1, z_bottom) - out).abs().max() > 1e-3 < (decoder(codes, z_bottom + 1) - out).abs().max()


def test_rate_and_elbo_are_those_of_the_codes():
    """Code by code from both caches, and the ELBO's rate is the sum of the levels'."""
    recipe = build(conditional=True)
    model = Model(recipe, recipe.nets)
    x = model.sample(4, labels=[0, 1, 2, 0])
    y = torch.tensor([0, 1, 2, 0])
    rate, bound = model.rate(x, labels=y), model.elbo(x, labels=y)
    np.testing.assert_allclose(rate["rate_nats"], bound["rate_nats"], rtol=1e-6)
    other = model.rate(x, labels=[1, 2, 0, 1])
    assert all(not np.allclose(rate[k], other[k], rtol=1e-6) for k in rate)  # both priors listen to the label
    seen = torch.from_numpy(x).float().div(127.5).sub(1)[:, None]
    nets = recipe.nets.eval()
    with torch.no_grad():
        view = recipe.stages[1].view(nets, {"x": seen, "y": y})
        sums = []
        for name, condition in (("top", {"y": y}), ("bottom", {"y": y, "top": view["codes_top"]})):
            codes, net = view[f"codes_{name}"], nets[f"prior_{name}"]
            cache, given, nats = net.start(4, condition), codes[:, :0], []
            for place in range(codes.shape[1]):
                logits = net.step(given, cache)
                given = codes[:, place : place + 1]
                nats.append(-logits.log_softmax(1).gather(1, given)[:, 0])
            sums.append(torch.stack(nats, 1))
            np.testing.assert_allclose(rate[f"nats_per_code_{name}"], sums[-1].mean(1), rtol=1e-5)
    np.testing.assert_allclose(rate["rate_nats"], sums[0].sum(1) + sums[1].sum(1), rtol=1e-5)


def test_cached_codes_of_the_bottom_are_the_uncached_ones():
    recipe = build(conditional=True, prior_attention_every_bottom=1)
    net = recipe.nets["prior_bottom"].eval()
    top = torch.randint(6, (5, 4), generator=torch.Generator().manual_seed(0))
    condition = {"y": torch.arange(5) % 3, "top": top}
    seeds = row_seeds(5, generator=torch.Generator().manual_seed(1))
    for scale in (1.0, 2.5):
        options = {"seeds": seeds, "condition": condition, "guidance": scale}
        assert torch.equal(generate(net, 16, **options), generate(Uncached(net), 16, **options))
    with pytest.raises(InputError, match="needs the codes of the top"):
        net(torch.zeros(1, 16, dtype=torch.int64), {"y": torch.zeros(1, dtype=torch.int64)})


def test_the_bottom_is_better_predicted_from_its_own_top_than_from_another():
    """Codes of which half repeat the top's code above them: the trained prior's NLL with the true top is far below
    that with shuffled tops, and below what is possible without the top; with codes that know nothing of the top there
    is no such difference."""
    gaps = []
    for repeats in (0.8, 0.0):
        recipe = build(prior_learning_rate=3e-3)
        game = recipe.stages[-1].game
        progress, random = begin(game), torch.Generator().manual_seed(0)

        def draw(n: int = 32, repeats=repeats, random=random) -> dict[str, torch.Tensor]:
            top = torch.randint(6, (n, 2, 2), generator=random)
            above = top.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
            noise = torch.randint(6, (n, 16), generator=random)
            bottom = torch.where(torch.rand(n, 16, generator=random) < repeats, above, noise)
            return {"codes_top": top.flatten(1), "codes_bottom": bottom}

        for _ in range(120):
            step(game, progress, draw)
        seen = draw(200)
        shuffled = {**seen, "codes_top": seen["codes_top"].roll(1, 0)}
        with torch.no_grad():
            nats = [
                recipe.nets["prior_bottom"].eval()(s["codes_bottom"], {"top": s["codes_top"]}).log_softmax(2)
                for s in (seen, shuffled)
            ]
        true, other = (-n.gather(2, seen["codes_bottom"][..., None]).mean().item() for n in nats)
        gaps.append(other - true)
        if repeats:
            assert true < 1.1 < np.log(6)  # by hand 0.78 with the top, 1.0 at best without
    assert gaps[0] > 1.0 and abs(gaps[1]) < 0.05


def test_samples_are_drawn_from_both_priors():
    recipe = build()
    model = Model(recipe, recipe.nets)
    z = model.draw_codes(70)
    assert z.shape == (70, 3 * 4 + 3 * 16)
    assert np.array_equal(model.decode(z), model.sample(70))
    x = model.sample(3)
    assert np.array_equal(model.reconstruct(x), model.decode(model.encode(x)))


def test_completion_keeps_what_is_known_and_draws_the_rest():
    """Pixels above the cut stay; those below depend on them, on the seed, and not on what was there."""
    recipe = build(restart_examples=8, learning_rate=3e-3)  # untrained codes may all be one
    progress = begin(recipe.stages[0].game)
    for _ in range(60):
        step(recipe.stages[0].game, progress, batch)
    model = Model(recipe, recipe.nets)
    x = np.random.default_rng(0).integers(0, 256, (70, 16, 16), dtype=np.uint8)
    half = 16 // 2
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


def test_odd_and_narrow_images():
    for shape in ((3, 9, 13), (2, 17, 8), (1, 5, 30)):
        recipe = build(Spec("image", shape, layout="CHW"), refine_share=0.5, refine_ramp=0)
        for stage in recipe.stages:
            seen = {"x": torch.rand(2, *shape) * 2 - 1}
            seen = seen if stage.view is None else stage.view(stage.game.nets, seen)
            step(stage.game, begin(stage.game), lambda seen=seen: seen)
        assert Model(recipe, recipe.nets).sample(1).shape == (1, *shape)


@pytest.mark.usefixtures("without_pictures")
def test_interrupted_in_each_of_four_stages_is_uninterrupted_bit_for_bit(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (48, 16, 16), dtype=np.uint8)

    def run(out, **changes):
        options = {**SMALL, "refine_share": 1.0, "refine_ramp": 8, "ema_half_life_examples": 20.0}
        return train("vq-vae-2", data=images, out=out, examples=160, batch_size=8, device="cpu", **options, **changes)

    run(tmp_path / "whole")
    stages = set()
    for after in (8, 48, 80, 88, 136, 1000):
        try:
            run(tmp_path / "parts", resume=after > 8, watch=Stop(after))
        except Interrupted:
            stages.add(Run.open(tmp_path / "parts").load_checkpoint().state["stage"])
    assert stages == {0, 1, 2, 3}
    whole, parts = (Run.open(tmp_path / name).load_checkpoint().tensors for name in ("whole", "parts"))
    for file in ("weights", "averages", "training"):
        assert whole[file].keys() == parts[file].keys()
        assert all(torch.equal(whole[file][k], parts[file][k]) for k in whole[file]), file
    assert list((tmp_path / "whole" / "kept").glob("*.safetensors")) == [
        tmp_path / "whole" / "kept" / "codes.safetensors"
    ]


def test_parameters_of_the_released_networks():
    """By hand: 256×256×3 to maps of 64×64 and 32×32 codes."""
    with torch.device("meta"):
        _, recipe = recipes.build("vq-vae-2", Spec("image", (3, 256, 256), layout="HWC"), asdict(released()))
    count = {n: sum(w.numel() for w in net.parameters()) for n, net in recipe.nets.items()}

    def conv(a, b, k):
        return a * b * k * k + b

    residuals = 2 * (conv(128, 32, 3) + conv(32, 128, 1))
    below = conv(3, 64, 4) + conv(64, 128, 4) + conv(128, 128, 3) + residuals
    above = conv(128, 128, 4) + conv(128, 128, 3) + residuals + conv(128, 64, 1)
    from_top = conv(64, 128, 3) + residuals + conv(128, 64, 4)
    assert count["encoder"] == below + above + from_top + conv(128 + 64, 64, 1)
    decoder = conv(64, 64, 4) + conv(128, 128, 3) + residuals + conv(128, 64, 4) + conv(64, 3, 4)
    assert count["decoder"] == decoder + 1  # the learned scale
    assert recipe.nets["codebook_top"].weight.shape == recipe.nets["codebook_bottom"].weight.shape == (512, 64)
    assert recipe.nets["prior_top"].window == 32 * 32 and recipe.nets["prior_bottom"].window == 64 * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"halvings_top": 0}, "halvings_top is 0; it starts at 1"),
        ({"halvings_top": 9}, "halvings is 11; an image of 16×16 is one place after 4"),
        ({"refine_share": -1.0}, "refine_share is -1.0"),
        ({"prior_share_bottom": 0.0}, "prior_share_bottom is 0.0; it must be above 0"),
        ({"codes": 1}, "codes is 1"),
        ({"guidance": 2.0}, "guidance is 2.0; it needs a conditional prior"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)
