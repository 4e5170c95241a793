"""A recipe: the stages that train a published system and the abilities the trained system has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from torch import nn

from twofold.errors import InputError, unknown
from twofold.game import Stage
from twofold.spec import Spec

ABILITIES = (
    *("sample", "encode", "decode", "reconstruct", "interpolate", "complete"),
    *("elbo", "classify", "iw_bound", "log_prob", "rate"),
    *("translate", "translate_back", "style", "couple"),
)
"""What a trained model may be asked for. `interpolate` needs nothing of its own beside `prior` and `decode`."""


PARTS = {
    "prior": "draw codes",
    "style_prior": "draw styles",
    "code_rates": "give the KL of each dimension of its code",
    "judge": "judge examples, for it has no discriminator of data",
    "features": "give features of examples, for it has no discriminator of data with hidden layers",
}
"""Abilities that a model is not asked for by name, as `interpolate`, `traverse` and `score` are made of them; each with
what a model without it cannot do."""


@dataclass(frozen=True)
class Recipe:
    """Stages to train, and what can be done with the result.

    Each ability is a function whose first argument is the mapping of networks (eval mode, averaged where the recipe
    keeps an average), called without gradient, with tensors in the model's range:

    - `sample(nets, n, *, y, generator)` → x (n, …)
    - `prior(nets, n, *, generator)` → z (n, latent)
    - `decode(nets, z, *, y)` → x, `encode(nets, x, *, y)` → z, `reconstruct(nets, x, *, y)` → x
    - `classify(nets, x, *, y)` → probabilities (n, classes or clusters)
    - `elbo(nets, x, *, y, generator)` → {"rate_nats": (n,), "distortion_nats": (n,)}; ELBO = -(rate + distortion)
    - `rate(nets, x, *, y, generator)` → {"rate_nats": (n,), …}: exactly -log p of the discrete codes of x under the
      trained prior, and the same per code as "nats_per_code…"
    - `iw_bound(nets, x, *, y, generator, k)` → {"log_prob_nats": (n,)}: a lower bound of log p(x) from k draws
    - `log_prob(nets, x, *, y, generator)` → {"log_prob_nats": (n,), "bits_per_dim": (n,)}: log p(x) itself
    - `complete(nets, x, *, known, y, generator)` → x: its first part, `known` of 1, kept and the rest drawn

    - `code_rates(nets, x, *, y)` → (n, latent): each dimension's KL from posterior to prior in nats, in closed form
    - `judge(nets, x, *, y)` → (n,): the discriminator's output, larger for what it takes for data
    - `features(nets, x, *, y)` → (n, features): the discriminator's last hidden layer before its norm, flattened

    Of pairs (a, x):

    - `translate(nets, a, *, z, generator)` → x, `translate_back(nets, x, *, z, generator)` → a; `z`: None or a style,
      (n, latent)
    - `style(nets, x)` → z: the style of an x; `style_prior(nets, n, *, generator)` → z
    - `couple(nets, z)` → (a, x) of one code

    `y` is None unless the recipe is conditional.
    """

    stages: tuple[Stage, ...]
    spec: Spec
    abilities: Mapping[str, Callable[..., Any]]
    conditional: bool = False
    nets: nn.ModuleDict = field(init=False, repr=False)

    def __post_init__(self) -> None:
        nets: dict[str, nn.Module] = {}
        for stage in self.stages:
            for name, net in stage.game.nets.items():
                if nets.setdefault(name, net) is not net:
                    raise ValueError(f"two stages call different networks {name!r}; a name stands for one network")
        object.__setattr__(self, "nets", nn.ModuleDict(nets))


def option(default: Any, help: str, *, choices: Iterable[str] = ()) -> Any:
    """A field of a recipe's Config: its default, what it means (with its unit) and, for words, what is allowed."""
    return field(default=default, metadata={"help": help, "choices": tuple(choices)})


def configure(default: Any, options: Mapping[str, Any]) -> Any:
    """The Config `default` with `options` in place, each checked against its field's type and choices."""
    known = {f.name: f for f in fields(default)}
    values = {name: getattr(default, name) for name in known}
    for name, value in options.items():
        if name not in known:
            raise unknown("option", name, known)
        values[name] = _checked(name, value, known[name].type, known[name].metadata.get("choices", ()))
        _check_range(name, values[name])
    return type(default)(**values)


# Words that stand in many recipes mean the same in all of them, and so does what they allow.
COUNTS = frozenset(
    ("latent", "width", "max_width", "critic_plays", "generator_plays", "penalty_every", "decay_examples")
)
POSITIVE = frozenset(
    ("learning_rate", "learning_rate_discriminator", "clip_norm", "weight_limit", "ema_half_life_examples", "decay")
)
NOT_NEGATIVE = frozenset(
    (
        *("depth", "hidden", "blocks", "pool", "noise", "penalty_weight", "weight_decay", "decay_floor"),
        "equilibrium_margin",
    )
)
LAYERS = frozenset(
    ("depth", "code_depth", "depth_discriminator", "blocks", "halvings", "positions", "categorical_codes")
)
LAYERS_LIMIT, SIZE_LIMIT, EXAMPLES_LIMIT = 1000, 2**20, 10**12
"""A record from elsewhere must not ask for millions of layers, each of which costs time to build, nor for sizes whose
products are no 64-bit numbers."""


def _check_range(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    require(math.isfinite(value), f"option {name} is {value}; give a finite number")
    require(name not in COUNTS or value >= 1, f"{name} is {value}; it starts at 1")
    counts_examples = name.endswith(("_examples", "_begin"))
    limit = LAYERS_LIMIT if name in LAYERS else EXAMPLES_LIMIT if counts_examples else SIZE_LIMIT
    require(isinstance(value, float) or abs(value) <= limit, f"{name} is {value}; it ends at {limit:,}")
    require(name not in POSITIVE or value > 0, f"{name} is {value}; it must be above 0")
    require(name not in NOT_NEGATIVE or value >= 0, f"{name} is {value}; it starts at 0")
    require(name not in ("beta1", "beta2") or 0 <= value < 1, f"{name} is {value}; allowed: from 0 to below 1")
    require(name != "real_label" or 0 < value <= 1, f"{name} is {value}; allowed: above 0 up to 1")


def _checked(name: str, value: Any, annotation: Any, choices: tuple[str, ...]) -> Any:
    """`value` as the field's type. Annotations are strings: recipe modules postpone their evaluation."""
    kinds = [kind.strip() for kind in str(annotation).split("|")]
    if value is None and "None" in kinds:
        return None
    if "bool" in kinds and isinstance(value, bool):
        return value
    if "int" in kinds and isinstance(value, int) and not isinstance(value, bool):
        return value
    if "float" in kinds and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if "str" in kinds and isinstance(value, str):
        if choices and value not in choices:
            raise unknown(f"value for {name}", value, choices)
        return value
    raise InputError(f"option {name} is {value!r}; it takes {' or '.join(kinds)}")


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds: a Config's range checks, one line each."""
    if not condition:
        raise InputError(message)


def has_default(config_field: Any) -> bool:
    """Whether a Config field has a default, as every field of every recipe must."""
    return config_field.default is not MISSING


def optimizer_text(optimizer: Any) -> str:
    """ "Adam, lr 0.0002, betas (0.5, 0.999)" of a partial of an optimizer class."""
    function = getattr(optimizer, "func", optimizer)
    settings = getattr(optimizer, "keywords", {})
    return ", ".join([function.__name__, *(f"{key} {value}" for key, value in settings.items())])
