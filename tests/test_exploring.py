"""Traversals, arithmetic, attribute vectors and inversion on models whose answers are known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from twofold import recipes
from twofold.autoencoders import Codes, Prior
from twofold.data import load
from twofold.errors import InputError
from twofold.exploring import arithmetic, attributes, invert, traverse
from twofold.model import Model
from twofold.recipe import Recipe
from twofold.rollouts import autoencoder_abilities
from twofold.spec import Spec
from twofold.terms.divergence import kl_normals

SPEC = Spec("vector", (4,), classes=3, layout="D", dtype="float32")
W = np.array([[3.0, 0, 0], [0, 1.0, 0], [0, 1.0, 2.0], [0, 0, 0]], dtype=np.float32)
B = np.array([0.5, -1.0, 0.0, 2.0], dtype=np.float32)


def linear(*, encodes: bool = True, **more) -> Model:
    """x = W z + b, z = W⁺ (x - b), prior N(0, I)."""
    decoder = nn.Linear(3, 4)
    encoder = nn.Linear(4, 3)
    inverse = np.linalg.pinv(W)
    with torch.no_grad():
        decoder.weight.copy_(torch.from_numpy(W))
        decoder.bias.copy_(torch.from_numpy(B))
        encoder.weight.copy_(torch.from_numpy(inverse))
        encoder.bias.copy_(torch.from_numpy(-inverse @ B))

    def draw(nets, n, *, generator):
        return torch.randn(n, 3, generator=generator)

    abilities = {
        "prior": draw,
        "decode": lambda nets, z, *, y=None: nets["decoder"](z),
        "sample": lambda nets, n, *, y=None, generator: nets["decoder"](draw(nets, n, generator=generator)),
    }
    if encodes:
        abilities["encode"] = lambda nets, x, *, y=None: nets["encoder"](x)
    recipe = Recipe((), SPEC, abilities | more)
    return Model(recipe, nn.ModuleDict({"decoder": decoder, "encoder": encoder}))


def points(n: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 4)).astype(np.float32)


# Traversals.


def test_a_traversal_moves_one_dimension_and_keeps_the_rest():
    z = np.array([0.3, -0.2, 1.1], dtype=np.float32)
    x = linear().traverse(z, dimensions=[2, 0], values=[-1.0, 4.0])
    assert x.shape == (2, 2, 4)
    for row, d in enumerate((2, 0)):
        for column, value in enumerate((-1.0, 4.0)):
            moved = z.copy()
            moved[d] = value
            np.testing.assert_allclose(x[row, column], W @ moved + B, rtol=1e-5)
    assert linear().traverse(z).shape == (3, 7, 4)


def test_the_effect_of_a_dimension_is_the_squared_change_of_the_output():
    np.testing.assert_allclose(linear().code_effects(reach=2.0), 16 * (W**2).sum(0), rtol=1e-4)


def test_dimensions_are_ranked_by_what_is_known(tmp_path):
    x, y = points(), np.arange(40) % 3
    effect = traverse(linear(encodes=False), 2, out=tmp_path / "a.npz")
    assert [d["dimension"] for d in effect["dimensions"]] == [0, 2, 1] and "change of the output" in effect["ranked_by"]
    assert np.load(tmp_path / "a.npz")["x"].shape == (2, 9, 4)
    stretched = x * np.array([0.1, 1, 1, 1], dtype=np.float32)
    by_variance = traverse(linear(), data=(stretched, y), out=tmp_path / "b.npz")
    assert "variance of codes" in by_variance["ranked_by"] and by_variance["dimensions"][-1]["dimension"] == 0
    rates = torch.tensor([0.2, 0.1, 5.0])
    known = linear(code_rates=lambda nets, x, *, y=None: rates.expand(len(x), 3))
    by_kl = traverse(known, data=(x, y), example=2, out=tmp_path / "c.npz")
    assert [d["dimension"] for d in by_kl["dimensions"]] == [2, 0, 1] and "KL in nats" in by_kl["ranked_by"]
    assert by_kl["dimensions"][0]["value"] == pytest.approx(5.0) and by_kl["start"] == "example 2"
    test = load((x, y)).test
    own = known.encode(test.x[torch.tensor([2])].numpy())[0]
    file = np.load(tmp_path / "c.npz")
    assert np.array_equal(file["x"], known.traverse(own, dimensions=[2, 0, 1], values=list(np.linspace(-3, 3, 9))))


def test_rates_of_dimensions_are_the_closed_form():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x, y=None):
            return torch.cat([x[:, :2], x[:, 2:]], dim=1) * self.scale

    nets, x = nn.ModuleDict({"encoder": Encoder()}), torch.from_numpy(points(5))
    mean, log_var = x[:, :2], x[:, 2:]
    vae = autoencoder_abilities(2, lambda nets, z, y: z)["code_rates"](nets, x)
    torch.testing.assert_close(vae, 0.5 * (mean**2 + log_var.exp() - 1 - log_var))
    wide = Codes(Prior(2, std=5.0)).abilities()["code_rates"](nets, x)
    expected = kl_normals(mean, log_var, torch.zeros(5, 2), torch.full((5, 2), 25.0).log())
    torch.testing.assert_close(wide.sum(1), expected)
    assert "code_rates" not in Codes(Prior(2, "uniform")).abilities()
    assert "code_rates" not in Codes(Prior(2), "deterministic").abilities()


def test_traversals_refuse_what_cannot_be():
    model, z = linear(), np.zeros(3, dtype=np.float32)
    for given, says in (
        ({"dimensions": [3]}, "dimension 3 does not exist; this model's codes have 0 to 2"),
        ({"dimensions": [-1]}, "dimension -1"),
        ({"dimensions": []}, "at least one dimension"),
        ({"values": []}, "at least one finite value"),
        ({"values": [float("nan")]}, "finite"),
    ):
        with pytest.raises(InputError, match=says):
            model.traverse(z, **given)
    with pytest.raises(InputError, match=r"codes have shape \(1, 2\)"):
        model.traverse(np.zeros(2))
    with pytest.raises(InputError, match="cannot encode"):
        traverse(linear(encodes=False), data=(points(), np.arange(40) % 3), example=0)
    with pytest.raises(InputError, match="this model cannot judge examples"):
        model.judge(points())


# Arithmetic.


def test_arithmetic_in_a_linear_model_is_exact(tmp_path):
    model, x = linear(), (points(40) @ np.diag([1, 1, 1, 0]).astype(np.float32)) + [0, 0, 0, 2.0]
    x = x.astype(np.float32)
    test = load(x, holdout=0.25).test.x.numpy()
    record = arithmetic(
        model, [[0, 1, 2], [6]], [[3, 4, 5]], data=x, data_options={"holdout": 0.25}, noise=0.0, neighbours=3,
        out=tmp_path / "a.npz",
    )  # fmt: skip
    found = np.load(tmp_path / "a.npz")
    expected = test[:3].mean(0) + test[6] - test[3:6].mean(0)  # affine: 1 + 1 - 1 = 1 times b
    np.testing.assert_allclose(found["x"][0], expected, atol=1e-5)
    assert found["x"].shape == (4, 4) and np.array_equal(found["x"][0], found["x"][3])
    assert record["plus"] == [[0, 1, 2], [6]] and record["minus"] == [[3, 4, 5]]
    arithmetic(model, [[0]], data=x, noise=0.5, neighbours=64, seed=3, out=tmp_path / "b.npz")
    codes = model.encode(np.load(tmp_path / "b.npz")["x"])
    offsets = codes[1:] - codes[0]
    assert 0.4 < np.abs(offsets).max() <= 0.5 + 1e-5 and np.abs(offsets.mean()) < 0.1


def test_exemplars_without_an_encoder_are_the_samples_of_a_seed(tmp_path):
    model = linear(encodes=False)
    arithmetic(model, [[5], [2]], [[5]], seed=7, neighbours=0, out=tmp_path / "a.npz")
    np.testing.assert_allclose(np.load(tmp_path / "a.npz")["x"][0], model.sample(3, seed=7)[2], atol=1e-5)
    with pytest.raises(InputError, match="cannot encode, so its exemplars are samples"):
        arithmetic(model, [[1]], data=points())
    with pytest.raises(InputError, match="there is no sample"):
        arithmetic(model, [[-1]])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"plus": [[]]}, "a concept is empty"),
        ({"minus": [[1]]}, "at least one concept to add"),
        ({"plus": [[99]]}, "there is no example 99"),
        ({"plus": [[1]], "noise": -0.1}, "noise is -0.1"),
        ({"plus": [[1]], "neighbours": -1}, "neighbours -1"),
        ({}, "a sheet of candidates is for images"),
    ],
)
def test_arithmetic_refuses_what_cannot_be(given, says):
    with pytest.raises(InputError, match=says):
        arithmetic(linear(), **given, data=points())


# Attributes.


def test_an_attribute_vector_is_the_difference_that_the_label_makes(tmp_path):
    y = np.arange(60) % 3
    shift = np.array([[0, 0, 0, 0], [3, 0, 0, 0], [0, 0, 2, 0]], dtype=np.float32)
    x = shift[y] + B
    model = linear()
    vectors = model.attribute_vectors(x, y)
    codes = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1.0]])  # of the three shifts
    for k in range(3):
        others = codes[[j for j in range(3) if j != k]].mean(0)
        np.testing.assert_allclose(vectors[k], codes[k] - others, atol=1e-5)
    record = attributes(model, 3, data=(x, y), strength=2.0, out=tmp_path / "a.npz")
    assert [a["label"] for a in record["attributes"]] == [0, 1, 2] and record["examples"] == 54
    found = np.load(tmp_path / "a.npz")
    moved = found["x_changed"][:, 1] - found["x"]
    np.testing.assert_allclose(moved, np.broadcast_to(2 * W @ found["vectors"][1], (3, 4)), atol=1e-4)
    with pytest.raises(InputError, match="has no labels"):
        attributes(model, data=x)
    with pytest.raises(InputError, match="same value"):
        model.attribute_vectors(x, np.zeros(60))
    with pytest.raises(InputError, match="one value for each of 60"):
        model.attribute_vectors(x, y[:5])
    with pytest.raises(InputError, match="cannot encode"):
        attributes(linear(encodes=False), data=(x, y))


# Inversion.


def test_inversion_of_a_linear_generator_is_the_projection():
    model = linear(encodes=False)
    z = np.random.default_rng(1).standard_normal((70, 3)).astype(np.float32)
    x = z @ W.T + B
    x[:, 3] += 0.5  # W reaches nothing there
    modes = [m.training for m in model.nets.modules()]
    with torch.inference_mode():
        found = model.invert(x, steps=300, restarts=2, learning_rate=0.2)
    np.testing.assert_allclose(found["z"], z, atol=5e-3)
    np.testing.assert_allclose(found["squared_error"], 0.25, atol=1e-3)
    assert all(w.grad is None and w.requires_grad for w in model.nets.parameters())
    assert [m.training for m in model.nets.modules()] == modes
    again = model.invert(x, steps=300, restarts=2, learning_rate=0.2)
    assert np.array_equal(found["z"], again["z"])
    assert model.invert(x, steps=3, restarts=1)["squared_error"].mean() > 1


def test_features_count_in_inversion_as_much_as_they_weigh():
    """One number of the code serves the value or the feature, which contradict each other: the weighted mean."""
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    recipe = Recipe(
        (),
        Spec("vector", (1,), layout="D", dtype="float32"),
        {
            "prior": lambda nets, n, *, generator: torch.randn(n, 1, generator=generator),
            "decode": lambda nets, z, *, y=None: nets["net"](z),
            # Features of the data 2, of what is decoded z: there is a gradient from one side only.
            "features": lambda nets, x, *, y=None: torch.where(x == 1.0, torch.full_like(x, 2.0), x),
        },
    )
    model = Model(recipe, nn.ModuleDict({"net": net}))
    x = np.ones((1, 1), dtype=np.float32)
    for weight in (0.0, 1.0, 3.0):
        z = model.invert(x, steps=200, restarts=3, feature_weight=weight)["z"].item()
        assert z == pytest.approx((1 + 2 * weight) / (1 + weight), abs=0.01)


def test_restarts_find_what_one_start_misses():
    """sin has many local optima: more starts never leave a larger error, and here a smaller one."""
    recipe = Recipe(
        (),
        Spec("vector", (1,), layout="D", dtype="float32"),
        {
            "prior": lambda nets, n, *, generator: 4 * torch.randn(n, 1, generator=generator),
            "decode": lambda nets, z, *, y=None: torch.sin(3 * z) + nets["net"](z),
        },
    )
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.3)
    model, x = Model(recipe, nn.ModuleDict({"net": net})), np.full((20, 1), 0.5, dtype=np.float32)
    one, many = (model.invert(x, steps=100, restarts=r, learning_rate=0.02)["squared_error"] for r in (1, 16))
    assert many.max() < 1e-3 < 0.1 < one.max()


def test_a_codebook_cannot_be_inverted_and_numbers_are_checked(tmp_path):
    torch.manual_seed(0)
    _, recipe = recipes.build("vq-vae", Spec("vector", (4,), layout="D"), {"width": 8, "latent": 2})
    with pytest.raises(InputError, match="chosen from a codebook"):
        Model(recipe, recipe.nets).invert(points(2), steps=2)
    for given, says in (
        ({"steps": 0}, "steps is 0"),
        ({"restarts": True}, "restarts is True"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"feature_weight": float("nan")}, "feature_weight nan"),
        ({"feature_weight": 1.0}, "cannot give features of examples"),
    ):
        with pytest.raises(InputError, match=says):
            linear().invert(points(2), **given)
    record = invert(linear(), 2, data=points(), steps=100, out=tmp_path / "i.npz")
    file = np.load(tmp_path / "i.npz")
    np.testing.assert_allclose(((file["x"] - file["x_rec"]) ** 2).sum(1), record["squared_error"], rtol=1e-3)
