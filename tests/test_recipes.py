"""One battery over every recipe in the catalogue, at tiny size, and what is particular to some of them."""

from __future__ import annotations

import itertools
from dataclasses import asdict, fields, replace
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch

from small import ANY_SIZE
from twofold import recipes
from twofold.coefficients import Gate, Product, product
from twofold.data import from_model
from twofold.errors import InputError
from twofold.game import Game, Player, State, begin, step, table
from twofold.model import Model
from twofold.overview import example, show, show_text
from twofold.recipe import ABILITIES, configure
from twofold.spec import Spec

IMAGE = Spec("image", (1, 8, 8), classes=3, layout="HW")
VECTOR = Spec("vector", (2,), classes=3, layout="D", dtype="float32")
IMAGE_PAIR = replace(IMAGE, classes=None, input=Spec("image", (1, 8, 8), layout="HW"))
VECTOR_PAIR = replace(VECTOR, classes=None, input=Spec("vector", (2,), layout="D", dtype="float32"))
SMALL = {
    "width": 4,
    "max_width": 8,
    "hidden": 5,
    "code_width": 6,
    "clusters": 3,
    "categories": 3,
    "width_discriminator": 6,
    "prior_width": 8,
    "prior_layers": 1,
    "prior_heads": 2,
    "blocks": 1,
    "pool": 4,
}
SMALL_OF = {
    "aae-semi-supervised": {"labelled_fraction": 0.5},  # of eight examples a tenth may be none
    **ANY_SIZE,  # the networks of one size have tests of their own
    "beta-vae-paper": {"width": 32},  # a wider one hears more of its code
    # Four ReLUs without a norm may all be dead.
    "aae-paper": {"width": 16},
    "soft-intro-vae-2d": {"width": 16},
    # Networks for large images.
    "pix2pix-paper": {"halvings": 2, "patch": 16},
    "cyclegan-paper": {"patch": 16},
    **{name: {"width": 16, "width_residual": 8} for name in ("vq-vae", "vq-vae-paper", "vq-vae-released")},
    "pixelcnn": {"layers": 2, "width": 8},
    # Dropout draws from the global state, which is not the same in two computations that must agree.
    "pixelcnn-pp": {"layers": 2, "width": 8, "components": 2, "dropout": 0.0},
    **{name: {"layers": 2, "width": 8, "width_encoder": 4} for name in ("pixelgan", "pixelgan-clustering")},
    "pixelcnn-adv": {"layers": 2, "width": 8, "samples": 4, "levels": 4},
}
NO_LABELS = (
    *("aae-clustering", "aae-semi-supervised", "wae-gan", "wae-gan-paper", "wae-mmd"),
    *("vq-vae", "vq-vae-paper", "vq-vae-released", "infogan", "infogan-paper"),
    *("pixelgan", "pixelgan-clustering"),
)
"""Recipes whose networks take no labels; they have no option `conditional`."""
LABELS_IN_LATER_STAGES = ("vq-vae-2", "vqgan")
"""Recipes of whose networks only the priors see labels: before they are trained, labels may leave every code as it is.
Their own files test that the priors listen."""
NEED_LABELS = ("aae-semi-supervised",)
WITHOUT_CODES = ("pixelcnn", "pixelcnn-pp", "pixelcnn-adv")
DRAWN_PIXELS = ("pixelgan", "pixelgan-clustering")
"""Recipes whose decoder draws: decoding uses one noise for all codes, sampling one for each."""


def latent_for(spec: Spec) -> int:
    """Some recipes refuse codes that are larger than the data."""
    return min(3, spec.size)


NAMES = [entry.name for entry in recipes.ENTRIES]
HYBRIDS = ["vae-gan", "vae-gan-released"]


def build(name: str, spec: Spec | None = None, **options):
    torch.manual_seed(0)
    spec = spec or specs_of(name)[0]
    known = {f.name for f in fields(recipes.default_config(recipes.find(name)))}
    small = SMALL | SMALL_OF.get(name, {}) | {"latent": latent_for(spec)}
    return recipes.build(name, spec, {k: v for k, v in small.items() if k in known} | options)[1]


def batch_for(spec: Spec, n: int = 8, seed: int = 0, dtype=torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *spec.shape, generator=generator, dtype=dtype) * 2 - 1
    batch = {"x": x, "y": torch.arange(n) % (spec.classes or 1)}
    if spec.input is None:
        return batch
    return batch | {"a": torch.rand(n, *spec.input.shape, generator=generator, dtype=dtype) * 2 - 1}


def specs_of(name: str) -> list[Spec]:
    every = (IMAGE, VECTOR, IMAGE_PAIR, VECTOR_PAIR)
    return [spec for spec in every if spec.data_kind in recipes.find(name).data_kinds]


CASES = [(name, spec) for name in NAMES for spec in specs_of(name)]
IDS = [f"{name}-{spec.kind}" for name, spec in CASES]
PAIRED = [name for name in NAMES if specs_of(name)[0].input is not None]
SAMPLING = [case for case in CASES if "sample" in recipes.find(case[0]).abilities]


def objective(phase, player: str, state: State) -> torch.Tensor:
    """The player's row of the phase, gates open."""
    losses = {term.name: term.loss(state) for term in phase.terms}
    state = replace(state, losses=losses)
    row = [(losses[term.name], term.every, opened(term.to[player])) for term in phase.terms if player in term.to]
    return sum((c(state) if callable(c) else c) * every * loss for loss, every, c in row)


def opened(coefficient):
    """The coefficient with its gates replaced by 1."""
    if isinstance(coefficient, Gate):
        return 1.0
    if isinstance(coefficient, Product):
        return product(*(opened(factor) for factor in coefficient.factors))
    return coefficient


def rolled_out(game: Game, phase, batch, seed: int = 5) -> State:
    state = State(game.nets, batch, 0, 0, torch.Generator().manual_seed(seed))
    return replace(state, rollout=phase.rollout(state))


def phases_and_players(game: Game):
    return [(phase, p) for phase in game.phases for p in sorted({q for term in phase.terms for q in term.to})]


# The battery.


@pytest.mark.parametrize(("name", "spec"), CASES, ids=IDS)
def test_each_players_gradient_is_that_of_its_own_row(name, spec):
    """Stepped by plain gradient descent with rate 1, against autograd on a rollout where nothing is frozen."""
    recipe = build(name, spec)
    recipe.nets.double()
    game = recipe.stages[0].game
    batch = batch_for(spec, dtype=torch.float64)
    rate = partial(torch.optim.SGD, lr=1.0)
    plain = {n: Player(p.net, rate) for n, p in game.players.items()}
    for phase in game.phases:
        moving = {p for term in phase.terms for p in term.to}
        start = {k: v.clone() for k, v in game.nets.state_dict().items()}
        expected = {}
        for player in moving:
            game.nets.load_state_dict(start)
            state = rolled_out(game, phase, batch)
            weights = list(game.nets[player].parameters())
            gradients = torch.autograd.grad(objective(phase, player, state), weights, allow_unused=True)
            expected[player] = [
                torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)
            ]
        game.nets.load_state_dict(start)
        one = Game(
            {n: plain[n] for n in moving},
            [replace(phase, repeats=1, every=1)],
            frozen={n: game.nets[n] for n in game.nets if n not in moving},
        )
        progress = begin(one)
        game.nets.train()
        progress.generator.manual_seed(5)
        step(one, progress, lambda: batch)
        for player in moving:
            assert any(g.abs().max() > 0 for g in expected[player]), f"{player} gets no gradient"
            names = [n for n, _ in game.nets[player].named_parameters()]
            for n, gradient in zip(names, expected[player], strict=True):
                key = f"{player}.{n}"
                moved = start[key] - game.nets.state_dict()[key]
                torch.testing.assert_close(moved, gradient, rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize(("name", "spec"), CASES, ids=IDS)
def test_terms_reach_only_the_players_in_their_row(name, spec):
    """A term without coefficient for a player may depend on it, but the step must not let it through: with every
    other term's row emptied, the player keeps its bytes."""
    recipe = build(name, spec)
    game = recipe.stages[0].game
    batch = batch_for(spec)
    for phase in game.phases:
        for term in phase.terms:
            reached = set(term.to)
            one = Game(
                {n: p for n, p in game.players.items() if n in reached},
                [replace(phase, terms=[replace(term, to=dict.fromkeys(term.to, 1.0), every=1)], repeats=1)],
                frozen={n: net for n, net in game.nets.items() if n not in reached},
            )
            progress = begin(one)
            before = {k: v.clone() for k, v in game.nets.state_dict().items()}
            game.nets.train()
            step(one, progress, lambda: batch)
            moved = {k.partition(".")[0] for k, v in game.nets.state_dict().items() if not torch.equal(v, before[k])}
            assert moved >= reached - {"none"}
            frozen_moved = {
                k.partition(".")[0]
                for k, v in game.nets.named_parameters()
                if not torch.equal(v, before[k]) and k.partition(".")[0] not in reached
            }
            assert not frozen_moved


@pytest.mark.parametrize("name", NAMES)
def test_players_that_are_not_due_keep_their_bytes(name):
    recipe = build(name)
    game = recipe.stages[0].game
    batch = batch_for(recipe.spec)
    for phase in game.phases:
        others = [replace(p, every=1 if p is phase else 2) for p in game.phases]
        alone = Game(game.players, others, frozen=game.frozen, memory=game.memory)
        progress = begin(alone)
        step(alone, progress, lambda: batch)
        before = {k: v.clone() for k, v in game.nets.state_dict().items()}
        step(alone, progress, lambda: batch)
        moving = {p for term in phase.terms for p in term.to}
        moved = {k.partition(".")[0] for k, v in game.nets.state_dict().items() if not torch.equal(v, before[k])}
        assert moved - set(game.memory) == moving


@pytest.mark.parametrize(("name", "spec"), CASES, ids=IDS)
def test_each_players_objective_falls_on_eight_examples(name, spec):
    """Each player alone, on one batch and fixed noise, against the others standing still."""
    recipe = build(name, spec, **({} if name.startswith("vae-gan") or name == "dcgan" else {"learning_rate": 1e-3}))
    game = recipe.stages[0].game
    batch = batch_for(spec)
    game.nets.train()
    for phase, player in phases_and_players(game):
        start = {k: v.clone() for k, v in game.nets.state_dict().items()}
        optimizer = torch.optim.Adam(game.nets[player].parameters(), lr=1e-3)
        values = []
        for _ in range(30):
            loss = objective(phase, player, rolled_out(game, phase, batch))
            optimizer.zero_grad()
            loss.backward(inputs=list(game.nets[player].parameters()))
            optimizer.step()
            values.append(loss.item())
        assert values[-1] < values[0], f"{phase.name}: {player}"
        game.nets.load_state_dict(start)


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_holds_the_table_that_is_printed(name):
    """Each module's docstring shows the table of the recipe that carries the module's name."""
    entry = recipes.find(name)
    if entry.preset != "Config":
        pytest.skip("a preset shares its module's docstring")
    torch.manual_seed(0)
    _, recipe = recipes.build(name, example(name))
    lines = ["    " + line for line in table(recipe.stages[0].game).splitlines()]
    assert "\n".join(lines) in import_module(f"twofold.recipes.{entry.module}").__doc__


@pytest.mark.parametrize(("name", "spec"), SAMPLING, ids=[f"{name}-{spec.kind}" for name, spec in SAMPLING])
def test_samples_obey_the_spec_and_repeat_under_a_seed(name, spec):
    recipe = build(name, spec)
    model = Model(recipe, recipe.nets)
    x = model.sample(70, seed=1)
    assert x.shape == (70, *(spec.shape[1:] if spec.kind == "image" else spec.shape))
    assert x.dtype == np.dtype(spec.dtype)
    assert np.array_equal(x, model.sample(70, seed=1))
    assert not np.array_equal(x, model.sample(70, seed=2))
    assert np.array_equal(x[:3], model.sample(3, seed=1))
    raw = model.sample_tensor(8)
    assert raw.isfinite().all()
    if spec.kind == "image":
        assert raw.abs().max() <= 1
    assert recipe.nets.training  # asking a question leaves the mode as it was


@pytest.mark.parametrize("name", NAMES)
def test_claimed_abilities_are_those_of_the_model_and_work(name):
    recipe = build(name)
    model = Model(recipe, recipe.nets)
    claimed = recipes.find(name).abilities
    assert set(claimed) == set(model.abilities) <= set(ABILITIES)
    if "sample" not in claimed:
        with pytest.raises(InputError, match="this model cannot sample; it can translate"):
            model.sample(5)
        return
    x = model.sample(5)
    if "decode" in claimed:
        z = model.draw_codes(5)
        assert model.decode(z).shape == x.shape
        assert np.array_equal(model.decode(z), model.sample(5)) == (name not in DRAWN_PIXELS)
        assert np.array_equal(model.decode(z), model.decode(z))
        assert z.shape[1] >= 3
        assert model.interpolate(z[:2], z[2:4], steps=3).shape == (2, 3, 8, 8)
    if "complete" in claimed:
        completed = model.complete(x, known=0.5, seed=1)
        assert completed.shape == x.shape and np.array_equal(completed[:, :4], model.complete(completed)[:, :4])
        assert not np.array_equal(completed[:, 4:], model.complete(x, known=0.5, seed=2)[:, 4:])
        with pytest.raises(InputError, match="known is 2"):
            model.complete(x, known=2)
    if "encode" in claimed:
        codes = model.encode(x)
        assert codes.shape == z.shape and codes.dtype == np.float32
        assert np.array_equal(model.reconstruct(x), model.decode(codes))
    else:
        with pytest.raises(InputError, match="this model cannot encode; it can"):
            model.encode(x)
    if "classify" in claimed:
        probabilities = model.classify(x)
        assert probabilities.shape == (5, 3) and np.allclose(probabilities.sum(1), 1, atol=1e-6)
    if "elbo" in claimed:
        bound = model.elbo(x)
        assert set(bound) == {"rate_nats", "distortion_nats"} and (bound["rate_nats"] >= 0).all()
    if "iw_bound" in claimed:
        bounds = np.stack([model.log_prob(x, k=50, seed=s)["log_prob_nats"] for s in range(8)])
        assert bounds.shape == (8, 5) and np.isfinite(bounds).all()
        one = np.stack([model.log_prob(x, k=1, seed=s)["log_prob_nats"] for s in range(8)])
        assert one.mean() < bounds.mean()
        assert np.array_equal(bounds[0], model.log_prob(x, k=50)["log_prob_nats"])
        for k in (0, True, 2.0):
            with pytest.raises(InputError, match="k is"):
                model.log_prob(x, k=k)
    elif "log_prob" in claimed:
        exact = model.log_prob(x)
        assert np.allclose(exact["bits_per_dim"], -exact["log_prob_nats"] / (64 * np.log(2)))
        with pytest.raises(InputError, match="log p\\(x\\) is exact; leave k out"):
            model.log_prob(x, k=50)
    else:
        with pytest.raises(InputError, match="this model cannot iw_bound"):
            model.log_prob(x)


@pytest.mark.parametrize(
    ("name", "spec"),
    [case for case in CASES if case[0] not in (*NO_LABELS, *PAIRED)],
    ids=[i for i in IDS if i.rpartition("-")[0] not in (*NO_LABELS, *PAIRED)],
)
def test_conditional_versions_listen_to_the_label(name, spec):
    recipe = build(name, spec, conditional=True)
    game = recipe.stages[0].game
    batch = batch_for(spec)
    progress = begin(game)
    step(game, progress, lambda: batch)
    model = Model(recipe, recipe.nets)
    a, b = (model.sample_tensor(4, labels=k) for k in (0, 1))
    assert (a - b).abs().max() > 0 or name in LABELS_IN_LATER_STAGES
    assert torch.equal(model.sample_tensor(4, labels=[0, 0, 1, 1])[:2], a[:2])
    with pytest.raises(InputError, match="labels do not fit"):
        model.sample(4, labels=3)
    with pytest.raises(InputError, match="labels do not fit"):
        model.sample(4, labels=[0, 1])
    if "encode" in recipe.abilities:
        x = model.sample(4, labels=1)
        assert model.encode(x, labels=[0, 1, 2, 0]).shape == (4, model.draw_codes(1).shape[1])
        with pytest.raises(InputError, match="give labels"):
            model.encode(x)
    plain = build(name, spec)
    with pytest.raises(InputError, match="takes no labels"):
        Model(plain, plain.nets).sample(2, labels=0)
    with pytest.raises(InputError, match="this data has none"):
        build(name, replace(spec, classes=None), conditional=True)


def test_recipes_without_labels_are_those_listed():
    without = {n for n in NAMES if "conditional" not in asdict(recipes.default_config(recipes.find(n)))}
    assert without == {*NO_LABELS, *PAIRED}
    for name in without:
        with pytest.raises(InputError, match="unknown option 'conditional'"):
            build(name, conditional=True)


SHAPES = [(1, 8, 8), (2, 9, 13), (3, 17, 8), (4, 28, 28), (3, 8, 256), (1, 64, 40), (3, 5, 5), (1, 256, 256)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["vae", "wgan-gp", "dcgan", "vae-gan", "vq-vae", "infogan", "factor-vae"])
def test_networks_size_themselves_to_the_data(name, shape):
    spec = Spec("image", shape, layout="CHW")
    recipe = build(name, spec)
    game = recipe.stages[0].game
    batch = {"x": torch.rand(2, *shape) * 2 - 1}
    values = step(game, begin(game), lambda: batch)
    assert all(v.isfinite() for v in values.values())
    assert Model(recipe, recipe.nets).sample(1).shape == (1, *shape)


@pytest.mark.parametrize("features", [1, 2, 7, 100])
@pytest.mark.parametrize("name", [n for n in NAMES if "vector" in recipes.find(n).data_kinds])
def test_vectors_of_any_length(name, features):
    spec = Spec("vector", (features,), layout="D", dtype="float32", classes=2 if name in NEED_LABELS else None)
    # The total correlation of one dimension is nothing, so factor-vae asks for two.
    latent = {"latent": 2} if name == "factor-vae" else {}
    recipe = build(name, spec, **latent, **({"clusters": None} if name in NEED_LABELS else {}))
    game = recipe.stages[0].game
    step(game, begin(game), lambda: {"x": torch.randn(4, features), "y": torch.tensor([0, 1, 1, 0])})
    assert Model(recipe, recipe.nets).sample(3).shape == (3, features)


# Pairs.


@pytest.mark.parametrize("spec", [IMAGE_PAIR, VECTOR_PAIR], ids=["image", "vector"])
@pytest.mark.parametrize("name", [n for n in PAIRED if "translate" in recipes.find(n).abilities])
def test_translations_obey_the_spec_and_repeat_under_a_seed(name, spec):
    if spec.data_kind not in recipes.find(name).data_kinds:
        pytest.skip("for images")
    recipe = build(name, spec)
    model = Model(recipe, recipe.nets)
    a = from_model(batch_for(spec, n=70)["a"], spec.input)
    x = model.translate(a, seed=1)
    assert x.shape == (70, *(spec.shape[1:] if spec.kind == "image" else spec.shape)) and x.dtype == spec.dtype
    assert np.array_equal(x, model.translate(a, seed=1)) and np.isfinite(x.astype(float)).all()
    assert np.array_equal(x[:3], model.translate(a[:3], seed=1)) or "style" in model.abilities or spec.kind == "image"
    several = model.translate(a[:4], variants=3, seed=1)
    assert several.shape == (4, 3, *x.shape[1:]) and np.array_equal(several[:, 0], model.translate(a[:4], seed=1))
    if "style" in model.abilities:
        z = model.style(x[:1])
        assert z.shape == (1, latent_for(spec))
        assert np.array_equal(model.translate(a[:4], style=z), model.translate(a[:4], style=z[0], seed=9))
        assert np.abs(several[:, 0].astype(float) - several[:, 1]).max() > 0
    if "translate_back" in model.abilities:
        assert model.translate(x[:4], direction="back").shape == a[:4].shape
    else:
        with pytest.raises(InputError, match="this model cannot translate_back"):
            model.translate(x[:4], direction="back")
    assert recipe.nets.training


PAIR_SHAPES = [((1, 8, 8), (3, 8, 8)), ((4, 9, 13), (1, 9, 13)), ((3, 17, 8), (3, 17, 8)), ((1, 5, 5), (2, 5, 5))]


@pytest.mark.parametrize("shapes", PAIR_SHAPES, ids=str)
@pytest.mark.parametrize("name", ["pix2pix", "cyclegan", "bicycle-gan", "cogan"])
def test_networks_on_pairs_size_themselves_to_both_sides(name, shapes):
    source, target = (Spec("image", shape) for shape in shapes)
    recipe = build(name, replace(target, input=source))
    game = recipe.stages[0].game
    batch = {"x": torch.rand(2, *target.shape) * 2 - 1, "a": torch.rand(2, *source.shape) * 2 - 1}
    values = step(game, begin(game), lambda: batch)
    assert all(v.isfinite() for v in values.values())
    if "translate" in recipe.abilities:
        assert recipe.abilities["translate"](recipe.nets, batch["a"]).shape == batch["x"].shape
        # Any size, not the trained one only.
        large = torch.zeros(1, source.shape[0], 21, 34)
        assert recipe.abilities["translate"](recipe.nets, large).shape == (1, target.shape[0], 21, 34)


def test_recipes_and_data_that_do_not_go_together_are_refused():
    with pytest.raises(
        InputError, match="pix2pix takes image-pair or vector-pair data; this data is images; see --pairs"
    ):
        build("pix2pix", IMAGE)
    with pytest.raises(InputError, match="vae takes image or vector data; this data is image-pairs"):
        build("vae", IMAGE_PAIR)
    for name in ("pix2pix", "bicycle-gan"):
        with pytest.raises(InputError, match="learns from pairs that belong together"):
            build(name, replace(IMAGE_PAIR, paired=False))
    for name in ("cyclegan", "cogan"):
        build(name, replace(IMAGE_PAIR, paired=False))


# The catalogue and its options.


def test_the_catalogue_lists_records():
    records = recipes()
    assert [r["name"] for r in records] == NAMES
    for record in records:
        assert set(record) == {"name", "family", "paper", "year", "data_kinds", "abilities"}
        assert record["family"] in ("explicit", "implicit", "hybrid", "translation")


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_help_and_a_default_of_its_type(name):
    config = recipes.default_config(recipes.find(name))
    for field in fields(config):
        assert field.metadata["help"], field.name
        assert not field.metadata["help"].endswith(".")
    assert configure(config, asdict(config)) == config


def test_names_and_values_that_do_not_exist_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown recipe 'vae-gam'; did you mean 'vae-gan'"):
        recipes.find("vae-gam")
    with pytest.raises(InputError, match="unknown option 'latnet'; did you mean 'latent'"):
        build("vae", latnet=3)
    with pytest.raises(InputError, match="unknown value for likelihood 'norml'; did you mean 'normal'"):
        build("vae", likelihood="norml")
    with pytest.raises(InputError, match="option latent is 'three'; it takes int"):
        build("vae", latent="three")
    with pytest.raises(InputError, match="option latent is True; it takes int"):
        build("vae", latent=True)
    with pytest.raises(InputError, match="dcgan takes image data; this data is vectors"):
        build("dcgan", VECTOR)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vae", {"learning_rate": -1.0}, "learning_rate is -1.0; it must be above 0"),
        ("vae", {"learning_rate": float("nan")}, "learning_rate is nan; give a finite number"),
        ("vae", {"clip_norm": 0.0}, "clip_norm is 0.0; it must be above 0"),
        ("vae", {"ema_half_life_examples": 0.0}, "ema_half_life_examples is 0.0"),
        ("vae", {"latent": 0}, "latent is 0; it starts at 1"),
        ("vae", {"hidden": -1}, "hidden is -1; it starts at 0"),
        ("gan", {"beta1": 1.0}, "beta1 is 1.0; allowed: from 0 to below 1"),
        ("gan", {"real_label": 1.5}, "real_label is 1.5; allowed: above 0 up to 1"),
        ("vae", {"free_bits_nats": -1.0}, "free_bits_nats is -1.0"),
        ("vae", {"kl_warmup_examples": -1}, "kl_warmup_examples is -1"),
        ("beta-vae", {"beta": 0.0}, "beta is 0.0; it must be above 0"),
        ("beta-vae", {"capacity_nats": -1.0}, "capacity_nats is -1.0"),
        ("beta-vae", {"capacity_nats": 5.0, "kl_warmup_examples": 9}, "both schedule the KL; choose one"),
        ("gan", {"critic_plays": 0}, "critic_plays is 0"),
        ("wgan-gp", {"norm_discriminator": "batch"}, "BatchNorm mixes them"),
        ("wgan", {"real_label": 0.9}, "real_label|smoothing"),
        ("vae-gan", {"gamma": -1.0}, "gamma is -1.0"),
        ("vae-gan", {"feature_layer": 9}, "feature_layer is 9; this discriminator has blocks 1 to"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        build(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_show_is_exact(name):
    record = show(name)
    assert set(record) == {"name", "stages"} and record["name"] == name
    for stage in record["stages"]:
        assert set(stage) == {"name", "players", "phases"}
        assert all(isinstance(n, int) and n > 0 for n in stage["players"].values())
        for phase in stage["phases"]:
            assert set(phase) == {"name", "repeats", "every", "terms"}
            for term in phase["terms"]:
                assert set(term) == {"name", "every", "to"}
                assert set(term["to"]) <= set(stage["players"])
    text = show_text(name)
    config = recipes.default_config(recipes.find(name))
    option = fields(config)[0].name.replace("_", "-")
    assert recipes.find(name).paper in text and f"--{option}" in text
    assert ("--latent " in text) == hasattr(config, "latent")


# What is particular.


def test_published_routing_of_the_hybrids():
    """systems-images §1: the contract, cell by cell."""
    to = {t["name"]: t["to"] for t in show("vae-gan")["stages"][0]["phases"][0]["terms"]}
    assert to == {
        "kl": {"encoder": 1.0},
        "feature_reconstruction": {"encoder": 1.0, "decoder": 0.01},
        "adversarial_decoder": {"decoder": 1.0},
        "adversarial_discriminator": {"discriminator": 1.0},
    }
    for name, critic in (("gan", 1), ("lsgan", 1), ("wgan", 5), ("wgan-gp", 5), ("dcgan", 1)):
        d, g = show(name)["stages"][0]["phases"]
        assert d["repeats"] == critic and g["repeats"] == 1
        assert all(set(t["to"]) == {"discriminator"} for t in d["terms"])
        assert all(set(t["to"]) == {"generator"} for t in g["terms"])


def rows(name: str) -> dict[str, dict]:
    (stage,) = show(name)["stages"]
    return {term["name"]: term["to"] for phase in stage["phases"] for term in phase["terms"]}


def test_published_routing_of_bounds_codes_and_information():
    """systems-images §1, the rows of IWAE, VQ-VAE and InfoGAN; FactorVAE's follow from its equation 2."""
    assert rows("iwae") == rows("iwae-paper") == {"importance_bound": {"encoder": 1.0, "decoder": 1.0}}
    reconstruction = {"encoder": 1.0, "decoder": 1.0}
    for name, distances in (
        ("vq-vae", {"encoder": 0.25, "codebook": 1.0}),
        ("vq-vae-paper", {"encoder": 0.25, "codebook": 1.0}),
        ("vq-vae-released", {"encoder": 0.25}),
    ):
        assert rows(name) == {"quantisation": distances, "reconstruction": reconstruction}
    for name in ("infogan", "infogan-paper"):
        assert rows(name) == {
            "adversarial_discriminator": {"trunk": 1.0, "discriminator": 1.0},
            "information_discriminator": {"trunk": -1.0, "posterior": -1.0},
            "adversarial_generator": {"generator": 1.0},
            "information_generator": {"generator": -1.0},
        }
    assert rows("factor-vae") == {
        "kl": {"encoder": 1.0},
        "total_correlation": {"encoder": 10.0},
        "reconstruction": reconstruction,
        "adversarial_discriminator": {"discriminator": 1.0},
    }


def test_larsens_adversarial_gradients_have_their_signs():
    """Minimax: d/dlogit of the decoder's term is -D on both kinds of fakes; the discriminator's is +D there."""
    recipe = build("vae-gan")
    game = recipe.stages[0].game
    terms = {term.name: term for term in game.phases[0].terms}
    logits = {k: torch.tensor([-1.0, 0.5], requires_grad=True) for k in ("real_logits", "rec_logits", "fake_logits")}
    state = State(game.nets, {}, 0, 0, torch.Generator(), rollout=logits)
    d = {k: v.detach().sigmoid() for k, v in logits.items()}
    for name, expected in (
        (
            "adversarial_decoder",
            {"real_logits": None, "rec_logits": -d["rec_logits"], "fake_logits": -d["fake_logits"]},
        ),
        (
            "adversarial_discriminator",
            {"real_logits": d["real_logits"] - 1, "rec_logits": d["rec_logits"], "fake_logits": d["fake_logits"]},
        ),
    ):
        gradients = torch.autograd.grad(terms[name].loss(state), list(logits.values()), allow_unused=True)
        for key, gradient in zip(logits, gradients, strict=True):
            want = expected[key]
            assert (gradient is None) if want is None else torch.allclose(gradient, want / 2)


def test_the_released_discriminator_does_not_see_reconstructions():
    for name, sees in (("vae-gan", True), ("vae-gan-released", False)):
        recipe = build(name)
        game = recipe.stages[0].game
        state = rolled_out(game, game.phases[0], batch_for(IMAGE))
        losses = {t.name: t.loss(state) for t in game.phases[0].terms}
        assert ("rec_logits" in state.rollout) == sees
        discriminator = list(game.nets["discriminator"].parameters())
        (gradient,) = torch.autograd.grad(
            losses["adversarial_discriminator"], state["x_rec"], allow_unused=True, retain_graph=True
        )
        assert (gradient is not None) == sees
        # The feature layer is the first of three blocks here: its reconstruction reaches no weight behind it.
        reached = torch.autograd.grad(losses["feature_reconstruction"], discriminator, allow_unused=True)
        assert 0 < sum(g is not None for g in reached) < len(discriminator)
    gates = {t["name"]: t["to"] for t in show("vae-gan-released")["stages"][0]["phases"][0]["terms"]}
    assert gates["adversarial_discriminator"] == {"discriminator": "gate_dis"}
    assert gates["adversarial_decoder"] == {"decoder": "gate_dec"}
    assert gates["kl"] == {"encoder": 1.0}


@pytest.mark.parametrize("seen", [True, False])
def test_a_vae_gan_without_batchnorm_multiplies_no_more_than_with_it(seen):
    """BatchNorm forces one call per kind of picture and adds no counted product. Joined calls would: every row's
    backward pass would carry the pictures of the others."""
    from torch.utils.flop_counter import FlopCounterMode

    work = {}
    for norm in ("batch", "none"):
        game = build("vae-gan", norm=norm, norm_discriminator=norm, see_reconstructions=seen).stages[0].game
        progress = begin(game)
        with FlopCounterMode(display=False) as counter:
            step(game, progress, lambda: batch_for(IMAGE))
        work[norm] = counter.get_total_flops()
    assert work["none"] == work["batch"] > 0


def test_feature_reconstruction_is_of_the_named_layer_before_normalisation():
    recipe = build("vae-gan", feature_layer=1)
    game = recipe.stages[0].game
    state = rolled_out(game, game.phases[0], batch_for(IMAGE))
    term = next(t for t in game.phases[0].terms if t.name == "feature_reconstruction")
    difference = state["rec_features"] - state["real_features"]
    half_sum = 0.5 * difference.flatten(1).square().sum(1).mean()
    torch.testing.assert_close(term.loss(state), half_sum * 16_384 / difference[0].numel())
    plain = build("vae-gan", feature_layer=1, feature_std=1.0).stages[0].game
    state = rolled_out(plain, plain.phases[0], batch_for(IMAGE))
    difference = state["rec_features"] - state["real_features"]
    loss = next(t for t in plain.phases[0].terms if t.name == "feature_reconstruction").loss(state)
    torch.testing.assert_close(loss, 0.5 * difference.flatten(1).square().sum(1).mean())
    game = plain
    with torch.no_grad():
        seen = game.nets["discriminator"].forward_with_features(state["x"], layer=1)[1]
    torch.testing.assert_close(seen, state["real_features"].detach())


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_discriminator_sees_each_kind_of_picture_in_a_call_of_its_own(norm):
    """Joined, BatchNorm would mix them, and without it each row's backward pass would carry the others' pictures."""
    game, calls = build("vae-gan", norm_discriminator=norm, norm="none").stages[0].game, []
    game.nets["discriminator"].register_forward_hook(lambda module, inputs, out: calls.append(len(inputs[0])))
    batch = batch_for(IMAGE)
    step(game, begin(game), lambda: batch)
    assert calls == [8, 8, 8]


def test_beta_and_capacity():
    for beta, options, expected in ((4.0, {}, 4.0), (2.0, {"beta": 2.0}, 2.0)):
        kl = show("beta-vae", options=options)["stages"][0]["phases"][0]["terms"][0]
        assert kl["to"] == {"encoder": expected} and beta == expected
    recipe = build("beta-vae", beta=10.0, capacity_nats=5.0, capacity_examples=100)
    game = recipe.stages[0].game
    state = rolled_out(game, game.phases[0], batch_for(IMAGE))
    kl = 0.5 * (state["mean"] ** 2 + state["log_var"].exp() - 1 - state["log_var"]).sum(1).mean()
    for examples, target in ((0, 0.0), (50, 2.5), (1000, 5.0)):
        value = game.phases[0].terms[0].loss(replace(state, examples=examples))
        torch.testing.assert_close(value, (kl - target).abs())


def test_beta_threshold_of_a_linear_model():
    """Card B3: one direction of variance λ, noise σ²: w² = max(λ - βσ², 0). Solved here with the recipe's own terms."""
    from twofold.terms.divergence import kl_normal
    from twofold.terms.likelihood import normal_nll

    variance, noise = 4.0, 0.5
    x = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x - x.mean()) / x.std(correction=0) * variance**0.5
    for beta in (1.0, 4.0, 12.0):
        # q(z|x) = N(a x, s²), p(x|z) = N(w z, σ²); E_q is taken in closed form: + ½ w² s² / σ².
        a, w, log_s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, 1.0, 0.0))
        optimizer = torch.optim.LBFGS([a, w, log_s], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

        def loss(a=a, w=w, log_s=log_s, beta=beta, optimizer=optimizer):
            optimizer.zero_grad()
            log_var = (2 * log_s).expand_as(x)
            log_std = 0.5 * torch.log(torch.tensor(noise, dtype=torch.float64))
            rec = normal_nll(w * a * x, x, log_std=log_std) + 0.5 * w**2 * (2 * log_s).exp() / noise
            value = (rec + beta * kl_normal(a * x, log_var)).mean()
            value.backward()
            return value

        for _ in range(5):
            optimizer.step(loss)
        assert w.item() ** 2 == pytest.approx(max(variance - beta * noise, 0.0), abs=2e-2)


def test_gan_variants_differ_by_their_published_settings():
    configs = {name: recipes.default_config(recipes.find(name)) for name in ("gan", "lsgan", "wgan", "wgan-gp")}
    assert configs["lsgan"].loss == "least-squares"
    assert (configs["wgan"].weight_limit, configs["wgan"].critic_plays, configs["wgan"].optimizer) == (
        0.01,
        5,
        "rmsprop",
    )
    assert (configs["wgan-gp"].penalty, configs["wgan-gp"].penalty_weight) == ("gradient-penalty", 10.0)
    recipe = build("wgan")
    game = recipe.stages[0].game
    batch = batch_for(IMAGE)
    step(game, begin(game), lambda: batch)
    assert max(w.abs().max() for w in game.nets["discriminator"].parameters()) <= 0.01


@pytest.mark.parametrize(
    ("loss", "penalty"),
    list(itertools.product(["minimax", "hinge", "relativistic", "relativistic-average"], ["r1", "r2"])),
)
def test_every_loss_goes_with_every_penalty(loss, penalty):
    recipe = build("gan", VECTOR, loss=loss, penalty=penalty, penalty_every=2, spectral=True)
    game = recipe.stages[0].game
    progress, batch = begin(game), batch_for(VECTOR)
    seen = [set(step(game, progress, lambda: batch)) for _ in range(2)]
    assert penalty in seen[0] and penalty not in seen[1]


def test_a_step_never_looks_at_a_tensors_value(monkeypatch):
    """On a GPU each look would wait for the device. The equilibrium rule is the documented exception."""
    steps = {}
    for name in NAMES:
        game = build(name).stages[0].game
        steps[name] = (game, begin(game), batch_for(specs_of(name)[0]))
        for optimizer in steps[name][1].optimizers.values():
            optimizer.step = lambda: None  # torch's own: it reads a step count that lies on the host

    def refuse(self, *args, **kwargs):
        raise AssertionError("the step looked at a tensor's value")

    monkeypatch.setattr("twofold.game._never_behind", lambda device: False)

    for look in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, look, refuse)
    for name, (game, progress, batch) in steps.items():
        if name == "vae-gan-released":
            with pytest.raises(AssertionError, match="looked at"):
                step(game, progress, lambda batch=batch: batch)
        else:
            for _ in range(2):
                step(game, progress, lambda batch=batch: batch)


@pytest.mark.parametrize(("name", "weight"), [("vae", 1.0), ("beta-vae", 4.0), ("vae-gan", 1.0), ("factor-vae", 1.0)])
def test_the_kl_warms_up(name, weight):
    """KL annealing: the encoder's coefficient of the KL rises from 0 to the recipe's own weight."""
    game = (
        recipes.build(name, IMAGE, {"latent": 4, "width": 4, "hidden": 0, "kl_warmup_examples": 100})[1].stages[0].game
    )
    (coefficient,) = [t.to["encoder"] for p in game.phases for t in p.terms if t.name == "kl"]
    at = [coefficient(State(game.nets, {}, n, 0, torch.Generator())) for n in (0, 25, 100, 300)]
    assert at == [0.0, 0.25 * weight, weight, weight]
