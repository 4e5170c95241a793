"""AAE and WAE: codes that follow any prior, regions by label, the MMD, categories; presets and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import PolynomialFeatures

from test_recipes import IMAGE, VECTOR, batch_for, build, rolled_out
from twofold import recipes
from twofold.autoencoders import Prior
from twofold.errors import InputError
from twofold.game import begin, step
from twofold.model import Model
from twofold.overview import show
from twofold.recipes.aae_categorical import known
from twofold.spec import Spec
from twofold.terms.divergence import mmd

CORNERS = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
FOUR = Spec("vector", (2,), classes=4, layout="D", dtype="float32")


class Clusters:
    """Batches of four labelled clusters in the plane."""

    def __init__(self, n: int = 64):
        self.n, self.generator = n, torch.Generator().manual_seed(0)

    def __call__(self) -> dict[str, torch.Tensor]:
        y = torch.randint(0, 4, (self.n,), generator=self.generator)
        return {"x": CORNERS[y] + 0.2 * torch.randn(self.n, 2, generator=self.generator), "y": y}


class Square(Clusters):
    """Batches of points spread evenly over a square that is neither where the prior is nor as wide."""

    def __call__(self) -> dict[str, torch.Tensor]:
        x = 6 * torch.rand(self.n, 2, generator=self.generator) - torch.tensor([0.0, 3.0])
        return {"x": x, "y": torch.zeros(self.n, dtype=torch.int64)}


def trained(name: str, steps: int, data=Clusters, **options):
    small = {"width": 32, "code_width": 32, "learning_rate": 2e-3, "norm": "none", "latent": 2}
    recipe = build(name, FOUR, **(small | options))
    game, draw = recipe.stages[0].game, data()
    progress = begin(game)
    for _ in range(steps):
        step(game, progress, draw)
    return recipe


def encoded(recipe, data=Clusters, n: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    batch = data(n)()
    with torch.no_grad():
        return recipe.abilities["encode"](recipe.nets, batch["x"], y=batch["y"]), batch["y"]


def told_apart(codes: torch.Tensor, prior: torch.Tensor) -> float:
    """Held-out accuracy of a cubic logistic regression between codes and draws from the prior; 0.5 is chance."""
    x = PolynomialFeatures(3).fit_transform(torch.cat([codes, prior]).numpy() / 3)
    y = np.r_[np.zeros(len(codes)), np.ones(len(prior))]
    order = np.random.RandomState(0).permutation(len(y))
    half = len(y) // 2
    fitted = LogisticRegression(max_iter=1000).fit(x[order[:half]], y[order[:half]])
    return float(fitted.score(x[order[half:]], y[order[half:]]))


# Codes and priors.


@pytest.mark.parametrize(
    ("name", "options", "control"),
    [
        ("aae", {"prior_std": 2.0}, {"code_weight": 0.0}),
        ("wae-gan", {"match_weight": 3.0}, {"match_weight": 1e-6}),
        ("wae-mmd", {}, {"match_weight": 1e-6}),
    ],
    ids=["aae, std 2", "wae-gan", "wae-mmd"],
)
def test_codes_follow_the_prior_and_without_the_match_they_do_not(name, options, control):
    """Card D6, as a two-sample classifier."""
    prior = Prior(2, std=options.get("prior_std", 1.0)).draw(
        2000, like=torch.zeros(1), generator=torch.Generator().manual_seed(7)
    )
    assert told_apart(encoded(trained(name, 200, Square, **options), Square)[0], prior) < 0.65
    assert told_apart(encoded(trained(name, 200, Square, **(options | control)), Square)[0], prior) > 0.7


def test_labels_lead_each_class_to_its_own_petal():
    """Their figure 4: the code critic alone is told the label, and the encoder, which is not, obeys."""
    recipe = trained("aae", 300, prior="mixture", conditional=True, code_weight=3.0)
    codes, y = encoded(recipe)
    angle = torch.atan2(codes[:, 1], codes[:, 0]) - y * (2 * math.pi / 4)
    assert (torch.cos(angle) > math.cos(math.pi / 4)).float().mean() > 0.9
    sees = {n: net.classes for n, net in (("encoder", recipe.nets["encoder"]), ("decoder", recipe.nets["decoder"].net))}
    assert sees == {"encoder": None, "decoder": None}
    drawn = Model(recipe, recipe.nets).sample_tensor(200, labels=3)
    assert ((drawn - CORNERS[3]).norm(dim=1) < 1).float().mean() > 0.8
    free, y = encoded(trained("aae", 300, prior="mixture", code_weight=3.0))
    angle = torch.atan2(free[:, 1], free[:, 0]) - y * (2 * math.pi / 4)
    assert (torch.cos(angle) > math.cos(math.pi / 4)).float().mean() < 0.9


def test_under_a_normal_prior_the_label_goes_to_the_decoder():
    recipe = build("aae", conditional=True)
    assert recipe.nets["decoder"].net.classes == 3 and recipe.nets["encoder"].classes is None
    assert recipe.nets["code_discriminator"].net.classes == 3


def test_priors_in_the_plane():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4000) % 10
    z = Prior(2, "mixture").draw(4000, like=torch.zeros(1), generator=generator, y=y)
    for k in range(10):
        angle = 2 * math.pi * k / 10
        along = torch.tensor([math.cos(angle), math.sin(angle)])
        across = torch.tensor([-math.sin(angle), math.cos(angle)])
        part = z[y == k]
        assert abs((part @ along).mean() - 2) < 0.1 and abs((part @ across).mean()) < 0.04
        assert (part @ along).std() == pytest.approx(0.5, abs=0.08)
        assert (part @ across).std() == pytest.approx(0.15, abs=0.03)
    roll = Prior(2, "swiss-roll").draw(4000, like=torch.zeros(1, dtype=torch.float64), generator=generator, y=y)
    radius = roll.norm(dim=1)
    assert roll.dtype == torch.float64 and radius.max() <= 3
    turned = torch.stack([torch.cos(radius * 4 * math.pi / 3), torch.sin(radius * 4 * math.pi / 3)], 1)
    torch.testing.assert_close(roll, radius[:, None] * turned)  # on the spiral
    assert [bool((radius[y == k] >= 3 * math.sqrt(k / 10) - 1e-9).all()) for k in range(10)] == [True] * 10
    free = Prior(2, "swiss-roll").draw(4000, like=torch.zeros(1), generator=generator).norm(dim=1)
    assert free.square().mean() == pytest.approx(4.5, rel=0.05)  # radius² is uniform: even along the roll
    assert Prior(3, std=5.0).draw(4000, like=torch.zeros(1), generator=generator).std() == pytest.approx(5, rel=0.05)
    assert Prior(3, "uniform").draw(99, like=torch.zeros(1), generator=generator).abs().max() <= 1


# WAE.


def test_wae_costs_a_squared_error_and_lambda_times_the_match():
    recipe = build("wae-mmd", match_weight=7.0)
    (phase,) = recipe.stages[0].game.phases
    state = rolled_out(recipe.stages[0].game, phase, batch_for(IMAGE))
    terms = {t.name: t for t in phase.terms}
    by_hand = (state["x_rec"] - state["x"]).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(terms["reconstruction"].loss(state), by_hand)
    torch.testing.assert_close(terms["mmd"].loss(state), mmd(state["z"], state["z_prior"], kernel="imq"))
    assert terms["mmd"].to == {"encoder": 7.0} and set(recipe.nets) == {"encoder", "decoder"}
    wide = build("wae-mmd", prior_std=2.0)
    state = rolled_out(wide.stages[0].game, wide.stages[0].game.phases[0], batch_for(IMAGE))
    assert state["z_prior"].std() > 1.4
    scaled = mmd(state["z"] / 2, state["z_prior"] / 2, kernel="imq")
    torch.testing.assert_close(wide.stages[0].game.phases[0].terms[1].loss(state), scaled)


# Categories.


def test_without_labels_the_categories_find_the_clusters():
    """Purity near 1; at the start, and hence for a stub, near what chance gives four clusters."""

    def purity(recipe) -> float:
        batch = Clusters(1000)()
        with torch.no_grad():
            found = recipe.abilities["classify"](recipe.nets, batch["x"]).argmax(1)
        return sum(torch.bincount(batch["y"][found == k], minlength=4).max().item() for k in range(4)) / 1000

    recipe = trained("aae-clustering", 200, clusters=4, norm="batch")
    recipe.nets.eval()
    assert purity(recipe) > 0.9
    recipe.nets.train()
    assert purity(trained("aae-clustering", 0, clusters=4, norm="batch")) < 0.8
    code = encoded(recipe)[0]
    assert code.shape == (2000, 4 + 2)
    assert torch.allclose(code[:, :4].sum(1), torch.ones(2000), atol=1e-5)
    drawn = Model(recipe, recipe.nets).draw_codes(50)
    assert set(drawn[:, :4].ravel()) == {0.0, 1.0} and (drawn[:, :4].sum(1) == 1).all()


def test_the_category_discriminator_sees_both_sides_through_the_same_noise():
    game = build("aae-clustering", FOUR, clusters=4).stages[0].game
    seen: list[torch.Tensor] = []
    game.nets["category_discriminator"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rolled_out(game, game.phases[1], Clusters(2000)())
    drawn, own = seen[0].chunk(2)
    assert (drawn - drawn.round().clamp(0, 1)).std() > 0.15  # not one-hot any more
    assert drawn.sum(1).std().item() == pytest.approx(0.3 * 4**0.5, rel=0.1)
    assert own.sum(1).std().item() == pytest.approx(0.3 * 4**0.5, rel=0.1)
    plain = build("aae-clustering", FOUR, clusters=4, category_noise=0.0).stages[0].game
    plain.nets["category_discriminator"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rolled_out(plain, plain.phases[1], Clusters(20)())
    assert torch.allclose(seen[-1].sum(1), torch.ones(40))


def test_few_labels_name_the_classes():
    options = {"labelled_fraction": 0.05, "clusters": None}
    recipe = trained("aae-semi-supervised", 150, **options)
    batch = Clusters(1000)()
    with torch.no_grad():
        right = recipe.abilities["classify"](recipe.nets, batch["x"]).argmax(1) == batch["y"]
    assert right.float().mean() > 0.95
    assert len(recipe.stages[0].game.phases) == 4


def test_unknown_labels_are_not_looked_at():
    """Other labels on the unlabelled examples change not a bit of the run; on the labelled ones they do."""
    results = []
    for wrong in ("none", "unknown", "known"):
        recipe = build("aae-semi-supervised", FOUR, clusters=None, labelled_fraction=0.2)
        game, draw = recipe.stages[0].game, Clusters(64)

        def batch(wrong=wrong, draw=draw):
            out = draw()
            has_label = known(out["x"], 0.2)
            assert 3 < has_label.sum() < 30
            changed = {"none": torch.zeros_like(has_label), "unknown": ~has_label, "known": has_label}[wrong]
            return out | {"y": torch.where(changed, (out["y"] + 1) % 4, out["y"])}

        progress = begin(game)
        for _ in range(5):
            step(game, progress, batch)
        results.append({k: v.clone() for k, v in game.nets.state_dict().items()})
    assert all(torch.equal(v, results[1][k]) for k, v in results[0].items())
    assert not all(torch.equal(v, results[2][k]) for k, v in results[0].items())


def test_which_labels_are_known():
    grey = torch.randint(0, 17, (5000, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 8.0 - 1
    for fraction in (0.05, 0.3, 0.9):
        assert known(grey, fraction).float().mean() == pytest.approx(fraction, abs=0.03)
    assert torch.equal(known(grey, 0.3), known(grey.double() + 1e-7, 0.3))  # rounding decides nothing
    assert torch.equal(known(grey[2:5], 0.3), known(grey, 0.3)[2:5])
    assert not known(torch.empty(0, 2), 0.5).any()


def test_the_categorical_rows():
    stage = show("aae-semi-supervised")["stages"][0]
    rows = {t["name"]: t["to"] for p in stage["phases"] for t in p["terms"]}
    assert rows == {
        "reconstruction": {"encoder": 1.0, "decoder": 1.0},
        "category_adversarial_discriminator": {"category_discriminator": 1.0},
        "style_adversarial_discriminator": {"style_discriminator": 1.0},
        "category_adversarial_encoder": {"encoder": 10.0},
        "style_adversarial_encoder": {"encoder": 10.0},
        "classification": {"encoder": 1.0},
    }


# Presets and refusals.


def test_the_papers_networks_have_their_parameters():
    players = show("aae-paper")["stages"][0]["players"]  # for 28×28
    hidden = 1000 * 1000 + 1000
    assert players["encoder"] == 784 * 1000 + 1000 + hidden + 1000 * 8 + 8
    assert players["decoder"] == 8 * 1000 + 1000 + hidden + 1000 * 784 + 784
    assert players["code_discriminator"] == 8 * 1000 + 1000 + hidden + 1000 + 1
    torch.manual_seed(0)
    nets = recipes.build("wae-gan-paper", Spec("image", (3, 64, 64)))[1].nets
    counts = {n: sum(w.numel() for w in net.parameters()) for n, net in nets.items()}
    inner = 25 * (128 * 256 + 256 * 512 + 512 * 1024)
    features = 4 * 4 * 1024
    assert counts["encoder"] == 25 * 3 * 128 + inner + 2 * (128 + 256 + 512 + 1024) + features * 64 + 64
    assert counts["decoder"] == 64 * features + features + 2 * (1024 + 512 + 256 + 128) + inner + 25 * 128 * 3 + 3
    assert counts["code_discriminator"] == 64 * 512 + 512 + 3 * (512 * 512 + 512) + 512 + 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("aae", {"reconstruction_weight": 0.0}, "reconstruction_weight is 0.0, not above 0"),
        ("aae", {"code_weight": -1.0}, "code_weight is -1.0; it starts at 0"),
        ("aae", {"code_plays": 0}, "code_plays is 0; it starts at 1"),
        ("aae", {"prior_std": 0.0}, "prior_std is 0.0; it must be above 0"),
        ("aae", {"prior": "uniform", "prior_std": 2.0}, "prior_std is for the normal prior, not for uniform"),
        ("aae", {"prior": "swiss-roll"}, "prior swiss-roll lies in the plane and latent is 3; use --latent 2"),
        ("aae", {"latent": 65}, "latent is 65, but this data has 64 values, .* use --latent 64 or less"),
        ("aae", {"real_label": 1.5}, "real_label is 1.5"),
        ("wae-gan", {"match_weight": 0.0}, "match_weight is 0.0; λ must be above 0"),
        ("wae-gan", {"latent": 65}, "latent is 65, but this data has 64 values"),
        ("wae-mmd", {"real_label": 0.9}, "real_label is 0.9, but the MMD has no discriminator"),
        ("aae-clustering", {"category_noise": -1.0}, "category_noise is -1.0; it starts at 0"),
        ("aae-clustering", {"clusters": 1}, "clusters is 1; it starts at 2"),
        ("aae-clustering", {"labelled_fraction": 1.5}, "labelled_fraction is 1.5; give a part of the examples"),
        ("aae-semi-supervised", {"clusters": 7}, "clusters is 7, but the known labels have 3 classes"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(InputError, match=message):
        build(name, **options)


def test_refusals_by_the_data():
    with pytest.raises(InputError, match="this data has no labels; use aae-clustering"):
        build("aae-semi-supervised", Spec("vector", (2,), layout="D"), clusters=None)
    with pytest.raises(InputError, match="this data has a single class"):
        build("aae-semi-supervised", Spec("vector", (2,), classes=1, layout="D"), clusters=None)
    with pytest.raises(InputError, match="needs values in known bounds"):
        build("aae", VECTOR, likelihood="bernoulli")
    with pytest.raises(InputError, match="unknown prior 'rol'"):
        Prior(2, "rol")
