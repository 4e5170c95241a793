"""The estimators: scikit-learn's own checks, images, labels, continued training, and use in its tools."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import twofold.sklearn as estimators
from twofold import recipes
from twofold.errors import InputError
from twofold.sklearn import ESTIMATORS, class_name
from twofold.training import train

TINY = {"examples": 32, "batch_size": 8, "random_state": 0, "device": "cpu"}
SMALL = {
    "width": 4,
    "depth": 1,
    "code_width": 4,
    "latent": 1,
    "codes": 4,
    "positions": 1,
    "categories": 2,
    "clusters": 2,
}
CHECKED = ("VAE", "GAN", "VAEGAN", "VQVAE", "AAE", "AAEClustering")
"""One of each combination of methods: bound, none, codes, discrete codes, a critic of codes, classes."""

NOISE = "the bound is estimated with noise that depends on an example's place in X"
EXPECTED_FAILURES = {
    "check_methods_sample_order_invariance": NOISE,
    "check_methods_subset_invariance": NOISE,
}
"""Of estimators with `score_samples`, and why."""


def small(name: str, **changes):
    maker = getattr(estimators, name)
    known = inspect.signature(maker).parameters
    return maker(**{k: v for k, v in (TINY | SMALL | changes).items() if k in known})


def expected_failures(estimator) -> dict[str, str]:
    noisy = hasattr(estimator, "score_samples") and not isinstance(estimator, estimators.VQVAE)
    return EXPECTED_FAILURES if noisy else {}


@parametrize_with_checks([small(name) for name in CHECKED], expected_failed_checks=expected_failures)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def points(n: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3)) * [1, 10, 100] + 5


def test_every_recipe_has_an_estimator_with_its_options_as_parameters():
    assert set(ESTIMATORS.values()) == {e.name for e in recipes.ENTRIES if {"image", "vector"} & set(e.data_kinds)}
    for name, recipe in ESTIMATORS.items():
        default = recipes.default_config(recipes.find(recipe))
        maker = getattr(estimators, name)
        signature = inspect.signature(maker)
        options = dict(vars(default))
        assert {k: p.default for k, p in signature.parameters.items()} == estimators.TRAINING | options
        assert maker().get_params() == estimators.TRAINING | options
        assert all(option in maker.__doc__ for option in options)
        assert maker is getattr(estimators, name) and maker.__module__ == "twofold.sklearn"
        made = small(name)
        assert clone(made).get_params() == made.get_params() == pickle.loads(pickle.dumps(made)).get_params()
        can = recipes.find(recipe).abilities
        assert hasattr(made, "transform") == ("encode" in can) and hasattr(made, "predict") == ("classify" in can)
        assert hasattr(made, "score_samples") == ("elbo" in can)


def test_names():
    assert [class_name(n) for n in ("wgan-gp", "beta-vae", "infogan", "iwae-paper")] == [
        "WGANGP", "BetaVAE", "InfoGAN", "IWAEPaper",
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="no attribute 'VEA'; estimators: .*VAE"):
        estimators.VEA  # noqa: B018
    with pytest.raises(TypeError, match="lattent"):
        estimators.VAE(lattent=3)


def test_fit_is_train(tmp_path):
    x = points()
    fitted = small("VAE", latent=2).fit(x)
    options = {k: v for k, v in fitted.get_params().items() if k not in estimators.TRAINING}
    model = train(
        "vae", data=x, data_options={"holdout": 0.0}, out=tmp_path / "run", examples=32, batch_size=8, **options
    )
    theirs, ours = (m.nets.state_dict() for m in (model, fitted.model_))
    assert all(torch.equal(theirs[k], ours[k]) for k in theirs)


def test_units_are_the_datas_and_codes_come_back():
    random = np.random.default_rng(0)
    along = random.normal(size=(400, 1))
    x = (along * [1.0, -1.0, 2.0] + 0.1 * random.normal(size=(400, 3))) * [1, 10, 100] + 5
    model = small("VAE", latent=3, width=16, examples=8_000, batch_size=32, learning_rate=1e-2).fit(x)
    z = model.transform(x)
    assert z.shape == (400, 3) and list(model.get_feature_names_out()) == ["vae0", "vae1", "vae2"]
    error = np.square((model.inverse_transform(z) - x) / x.std(0)).mean()
    assert error < 0.5  # of the variance: codes carry the data
    assert np.allclose(model.inverse_transform(z), model.reconstruct(x))
    drawn = model.sample(300, random_state=1)
    assert drawn.shape == (300, 3)
    assert np.all(np.abs(drawn.mean(0) - x.mean(0)) < x.std(0)) and np.all(drawn.std(0) > 0.3 * x.std(0))
    assert np.array_equal(drawn, model.sample(300, random_state=1))
    far = model.score_samples(x + 10 * x.std(0))
    assert model.score_samples(x).mean() == pytest.approx(model.score(x)) and far.mean() < model.score(x) - 5


def test_a_fitted_estimator_survives_pickling():
    x = points()
    for name in ("VAE", "VQVAE", "GAN"):
        model = small(name, ema_half_life_examples=10.0).fit(x)
        again = pickle.loads(pickle.dumps(model))
        assert np.array_equal(again.sample(5, random_state=3), model.sample(5, random_state=3))
        again.partial_fit(x)
        assert again.examples_seen_ > 0


def test_partial_fit_goes_on_and_keeps_the_first_spec():
    x = points()
    model = small("VAEGAN").partial_fit(x)
    seen, spec = model.examples_seen_, model.model_.spec
    before = model.transform(x)
    model.partial_fit(points(40, seed=1) + 1000)
    assert model.examples_seen_ == seen + 40 and model.model_.spec == spec
    assert not np.array_equal(model.transform(x), before)
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(x[:, :2])


def digits(n: int = 80):
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.data[:n], data.target[:n]


def test_images():
    x, _ = digits()
    model = small("DCGAN", image_shape=(8, 8), image_range=(0, 16)).fit(x)
    drawn = model.sample(7)
    assert drawn.shape == (7, 64) and drawn.min() >= 0 and drawn.max() <= 16
    assert model.model_.spec.kind == "image" and model.model_.spec.shape == (1, 8, 8)
    with pytest.raises(InputError, match="image_shape is .*49 values, but X has 64 features"):
        small("VAE", image_shape=(7, 7)).fit(x)
    with pytest.raises(InputError, match="takes image data"):
        small("DCGAN").fit(x)


def test_labels_are_the_users_own():
    x, y = digits()
    names = np.array(["even", "odd"])[y % 2]
    model = small("VAE", conditional=True).fit(x, names)
    assert list(model.classes_) == ["even", "odd"]
    drawn = [model.sample(4, random_state=0, labels=label) for label in ("even", "odd")]
    assert drawn[0].shape == (4, 64) and not np.array_equal(*drawn)
    assert np.isfinite(model.score(x, names)) and model.transform(x, labels=names).shape == (80, 1)
    with pytest.raises(InputError, match="label prime was not among"):
        model.sample(labels="prime")
    with pytest.raises(InputError, match="give y"):
        small("VAE", conditional=True).fit(x)
    with pytest.raises(InputError, match="y is continuous"):
        small("VAE", conditional=True).fit(x, np.linspace(0.5, 1, 80))
    with pytest.raises(InputError, match="takes no labels"):
        small("VAE").fit(x, names).sample(labels="odd")
    semi = small("AAESemiSupervised", labelled_fraction=0.5).fit(x, names)
    assert set(semi.predict(x)) <= {"even", "odd"} and semi.predict_proba(x).shape == (80, 2)


def test_in_a_pipeline_and_a_grid_search():
    x, y = digits()
    pipeline = make_pipeline(small("VAEGAN", latent=4), LogisticRegression()).fit(x, y)
    assert pipeline.predict(x).shape == (80,)
    search = GridSearchCV(small("VAE"), {"latent": [1, 2], "learning_rate": [1e-3]}, cv=2).fit(x)
    assert search.best_params_["latent"] in (1, 2) and np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.transform(x).shape == (80, search.best_params_["latent"])
