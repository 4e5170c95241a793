"""Estimators with scikit-learn's face, one for each recipe of the catalogue that takes images or vectors.

    from twofold.sklearn import VAEGAN
    z = VAEGAN(examples=50_000, random_state=0).fit_transform(x)

`x` is (examples, features); with `image_shape=(28, 28)` each row is a flattened image. `ESTIMATORS` has all class
names: `VAE`, `BetaVAE`, `GAN`, `WGANGP`, `VAEGAN`, `AlphaGAN`, `AAE`, `WAEGAN`, `VQVAE`, …

A class is made when it is first asked for: its parameters are those of `Estimator` and then its recipe's options with
their defaults, its methods follow from what the recipe can do:

- `fit`, `partial_fit`, `sample`: always.
- `transform`, `inverse_transform`, `reconstruct`: recipes that encode.
- `score_samples`, `score`: recipes with a bound on the log-likelihood.
- `predict`, `predict_proba`: recipes that classify.

Training writes nothing: a fitted estimator is its networks, and pickling keeps them (not the optimizers' state).
"""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import cache
from inspect import Parameter, Signature
from math import prod
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from twofold import recipes
from twofold.errors import InputError
from twofold.spec import Spec

TRAINING = {
    "examples": 100_000,
    "batch_size": 64,
    "random_state": None,
    "device": None,
    "image_shape": None,
    "image_range": None,
}
"""The parameters that all estimators have, with their defaults; `Estimator` says what they mean."""

KINDS = [np.float64, np.float32]
"""dtypes in which data are taken as they are; others become the first."""


class Estimator(BaseEstimator):
    """What all estimators share. Parameters, before the recipe's own:

    examples: length of training in examples seen.
    batch_size: examples in a batch; at most as many as there are.
    random_state: a number, a RandomState, or None for another result each time.
    device: "cpu", "cuda", …; None: a GPU if there is one.
    image_shape: (height, width), or with the channels first or last; None: rows are vectors, and are standardised.
    image_range: (black, white); None: the lowest and highest value of the data given to `fit`.
    """

    recipe: str
    """Name of the recipe; a class attribute, not a parameter."""

    def fit(self, X: Any, y: Any = None) -> Any:
        """Train on `X` (examples, features) from the start. `y`: labels, for a model that is conditional on them."""
        from twofold.training import fit

        plan = self._plan(X, y)
        self._keep(plan, *fit(plan))
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Any:
        """Train for one pass over `X`, going on from where training stands; a spec (means, range) is that of the first
        call. After unpickling, the optimizers start anew."""
        from twofold.training import fit

        if not hasattr(self, "model_"):
            plan = self._plan(X, y, examples=len(X) if hasattr(X, "__len__") else 1)
            self._keep(plan, *fit(plan))
        else:
            plan = self._next_plan(X, y)
            self._keep(plan, *fit(plan, progress=self._progress))
        return self

    def sample(self, n_samples: int = 1, *, random_state: Any = None, labels: Any = None) -> np.ndarray:
        """New examples (n_samples, features). `labels`: one or as many, of a conditional model."""
        check_is_fitted(self)
        x = self.model_.sample(n_samples, seed=_seed(random_state), labels=self._classes(labels))
        return x.reshape(n_samples, -1)

    # What training needs.

    def _plan(self, X: Any, y: Any, *, examples: int | None = None) -> Any:
        """The run that `fit` plays, as `twofold.training` plans it."""
        from twofold.training import prepare

        X = validate_data(self, X, dtype=KINDS, ensure_min_samples=2)
        if hasattr(self, "classes_"):
            del self.classes_
        labels, rows = self._labels(y), self._rows(X)
        options: dict[str, Any] = {"holdout": 0.0}
        if self.image_shape is not None:
            options["value_range"] = self._range(X)
        return prepare(
            self.recipe,
            data=rows if labels is None else (rows, labels),
            settings=self._settings(examples or self.examples, len(X)),
            device=self.device,
            data_options=options,
            **{name: value for name, value in self.get_params().items() if name not in TRAINING},
        )

    def _next_plan(self, X: Any, y: Any) -> Any:
        """One more pass, over `X`, of a model that has been trained."""
        import torch

        from twofold.data import Data, Split, raw
        from twofold.training import Plan

        X = validate_data(self, X, reset=False, dtype=KINDS, ensure_min_samples=2)
        spec, labels = self.model_.spec, self._labels(y)
        split = Split(raw(self._rows(X), spec), None if labels is None else torch.from_numpy(labels.astype(np.int64)))
        data = Data("more", spec, split, None, (), "")
        return Plan(self.recipe, *self._made, data, {}, self._settings(len(X), len(X)), self.model_.device)

    def _settings(self, examples: int, available: int) -> Any:
        from twofold.training import Settings

        return Settings(examples, batch_size=min(self.batch_size, available), seed=_seed(self.random_state))

    def _keep(self, plan: Any, model: Any, progress: Any) -> None:
        self.model_, self._progress, self._made = model, progress, (plan.config, plan.recipe)
        self.examples_seen_ = progress.examples
        if "encode" in model.abilities:
            self._n_features_out = int(np.prod(model.draw_codes(1).shape[1:]))

    def _rows(self, X: np.ndarray) -> np.ndarray:
        """Rows as the model's data: vectors, or images of `image_shape`."""
        if self.image_shape is None:
            return X
        if prod(self.image_shape) != X.shape[1]:
            raise InputError(
                f"image_shape is {self.image_shape}, {prod(self.image_shape)} values, but X has {X.shape[1]} features"
            )
        return X.reshape(len(X), *self.image_shape)

    def _range(self, X: np.ndarray) -> tuple[float, float]:
        if self.image_range is not None:
            return self.image_range
        low, high = float(X.min()), float(X.max())
        if low == high:
            raise InputError(f"all values of X are {low:g}; say which are black and white with image_range")
        return low, high

    def _labels(self, y: Any) -> np.ndarray | None:
        """`y` as class numbers if the model uses labels; learns the classes at the first call."""
        parameters = self.get_params()
        if not (parameters.get("conditional") or parameters.get("labelled_fraction")):
            return None
        if y is None:
            raise InputError(f"this {type(self).__name__} learns from labels: give y")
        y = np.asarray(y)
        if (kind := type_of_target(y, input_name="y", raise_unknown=True)) not in ("binary", "multiclass"):
            raise InputError(f"y is {kind}; this {type(self).__name__} takes one class for each example")
        if not hasattr(self, "classes_"):
            self.classes_ = np.unique(y)
        return self._classes(y)

    def _classes(self, labels: Any) -> np.ndarray | None:
        """Class numbers of labels as they were given to `fit`."""
        if labels is None:
            return None
        if not hasattr(self, "classes_"):
            raise InputError("this model is not conditional, so it takes no labels")
        given = np.asarray(labels)
        numbers = np.searchsorted(self.classes_, given).clip(0, len(self.classes_) - 1)
        if unseen := sorted({str(v) for v in given[self.classes_[numbers] != given].ravel()}):
            raise InputError(f"label {unseen[0]} was not among the labels given to fit: {list(self.classes_)}")
        return numbers

    def _examples(self, X: Any) -> np.ndarray:
        """`X` for a fitted model."""
        check_is_fitted(self)
        return self._rows(validate_data(self, X, reset=False, dtype=KINDS))

    # Pickling: recipes hold functions, so networks are stored as arrays and built again.

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        for name in ("_progress", "_made"):
            state.pop(name, None)
        if (model := state.pop("model_", None)) is not None:
            config, _ = self._made
            weights = {name: tensor.cpu().numpy() for name, tensor in model.nets.state_dict().items()}
            state["_stored"] = {
                "config": asdict(config),
                "spec": model.spec.to_json(),
                "weights": weights,
                "examples": model.examples,
                "device": str(model.device),
            }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        stored = state.pop("_stored", None)
        super().__setstate__(state)
        if stored is not None:
            from twofold.training import revived

            spec = Spec.from_json(stored["spec"])
            self._made, self.model_ = revived(self.recipe, spec, stored["config"], stored["weights"], stored["device"])
            self.model_.examples = stored["examples"]
            self._progress = None


class Encodes(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Estimators of recipes that encode."""

    def transform(self: Any, X: Any, *, labels: Any = None) -> np.ndarray:
        """Codes (examples, latent) float32: the posterior's means where there is a posterior."""
        rows = self._examples(X)
        return self.model_.encode(rows, labels=self._classes(labels))

    def inverse_transform(self: Any, X: Any, *, labels: Any = None) -> np.ndarray:
        """Examples (n, features) from codes (n, latent)."""
        check_is_fitted(self)
        return self.model_.decode(np.asarray(X), labels=self._classes(labels)).reshape(len(X), -1)

    def reconstruct(self: Any, X: Any, *, labels: Any = None) -> np.ndarray:
        """Examples encoded and decoded, (examples, features)."""
        rows = self._examples(X)
        return self.model_.reconstruct(rows, labels=self._classes(labels)).reshape(len(rows), -1)

    def __sklearn_tags__(self: Any) -> Any:
        """Codes are float32 whatever `X` is."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags


class Scores(DensityMixin):
    """Estimators of recipes with a bound on the log-likelihood."""

    def score_samples(self: Any, X: Any, *, labels: Any = None) -> np.ndarray:
        """The evidence lower bound of each example in nats, from one draw of the posterior (always the same).

        It is of the data as the model sees them, standardised or in [-1, 1].
        """
        rows = self._examples(X)
        bound = self.model_.elbo(rows, seed=0, labels=self._classes(labels))
        return -(bound["rate_nats"].astype(np.float64) + bound["distortion_nats"])

    def score(self: Any, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`; of a conditional model with the labels `y`."""
        return float(self.score_samples(X, labels=y if hasattr(self, "classes_") else None).mean())


class Classifies:
    """Estimators of recipes that classify."""

    def predict_proba(self: Any, X: Any) -> np.ndarray:
        """Probabilities (examples, classes): of labels if the recipe uses them, of clusters otherwise."""
        rows = self._examples(X)
        return self.model_.classify(rows)

    def predict(self: Any, X: Any) -> np.ndarray:
        """The most probable label (or number of the cluster) of each example."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best] if hasattr(self, "classes_") else best


ABILITIES: dict[str, type] = {"elbo": Scores, "classify": Classifies, "encode": Encodes}


def _seed(random_state: Any) -> int:
    if isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))


SPELLED = {"infogan": "InfoGAN", "bigan": "BiGAN", "iwae": "IWAE", "ali": "ALI", "age": "AGE", "gp": "GP", "mmd": "MMD"}


def class_name(recipe: str) -> str:
    """The estimator's name of a recipe.

    >>> class_name("vae-gan"), class_name("alpha-gan"), class_name("vq-vae-paper")
    ('VAEGAN', 'AlphaGAN', 'VQVAEPaper')
    """
    words = [w.upper() if w.endswith(("gan", "vae", "aae", "wae", "vq")) else w.title() for w in recipe.split("-")]
    return "".join(SPELLED.get(given, word) for given, word in zip(recipe.split("-"), words, strict=True))


ESTIMATORS = {class_name(e.name): e.name for e in recipes.ENTRIES if {"image", "vector"} & set(e.data_kinds)}
"""{class name: recipe}."""

__all__ = ["ESTIMATORS", "Estimator", *ESTIMATORS]


@cache
def _estimator(name: str) -> type[Estimator]:
    entry = recipes.find(ESTIMATORS[name])
    default = recipes.default_config(entry)
    defaults = TRAINING | {f.name: getattr(default, f.name) for f in fields(default)}
    bases = (*(mixin for ability, mixin in ABILITIES.items() if ability in entry.abilities), Estimator)
    if clash := sorted(n for n in defaults if any(hasattr(base, n) for base in bases)):
        raise TypeError(f"the options {clash} of {entry.name} are methods of its estimator")
    parameters = [Parameter(n, Parameter.KEYWORD_ONLY, default=value) for n, value in defaults.items()]

    def initialise(self: Any, **given: Any) -> None:
        bound = signature.bind(self, **given)
        bound.apply_defaults()
        for parameter in list(bound.arguments)[1:]:
            setattr(self, parameter, bound.arguments[parameter])

    signature = Signature([Parameter("self", Parameter.POSITIONAL_OR_KEYWORD), *parameters])
    initialise.__signature__ = signature  # type: ignore[attr-defined]
    initialise.__name__, initialise.__qualname__ = "__init__", f"{name}.__init__"
    meanings = {f.name: f.metadata.get("help", "") for f in fields(default)}
    text = [f"{entry.paper} ({entry.year}): {entry.summary}.", "", Estimator.__doc__, f"    Of `{entry.name}`:", ""]
    text += [f"    {option}: {meaning} ({defaults[option]})" for option, meaning in meanings.items()]
    space = {"__init__": initialise, "__module__": __name__, "__doc__": "\n".join(map(str, text)), "recipe": entry.name}
    return type(name, bases, space)


def __getattr__(name: str) -> Any:
    if name not in ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; estimators: {', '.join(ESTIMATORS)}")
    return _estimator(name)


def __dir__() -> list[str]:
    return sorted(__all__)
