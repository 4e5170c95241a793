"""Twofold: explicit × implicit generative models as printed, tested routing tables.

    import twofold
    model = twofold.train("vae-gan", data="digits")
    model.sample(16, seed=0)
    model = twofold.load("runs/vae-gan-digits")

Importing this package imports nothing heavy; each name below imports what it needs when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "Model",
    "Spec",
    "arithmetic",
    "attributes",
    "classify",
    "compare",
    "complete",
    "doctor",
    "evaluate",
    "interpolate",
    "invert",
    "load",
    "recipes",
    "reconstruct",
    "sample",
    "score",
    "show",
    "train",
    "translate",
    "traverse",
]

if TYPE_CHECKING:
    from twofold import recipes
    from twofold.comparison import compare
    from twofold.errors import InputError
    from twofold.evaluation import evaluate
    from twofold.exploring import arithmetic, attributes, invert, traverse
    from twofold.health import doctor
    from twofold.model import Model, load
    from twofold.overview import show
    from twofold.scoring import classify, score
    from twofold.spec import Spec
    from twofold.training import train
    from twofold.translating import translate
    from twofold.using import complete, interpolate, reconstruct, sample

_HOMES = {
    "InputError": "errors",
    "Model": "model",
    "Spec": "spec",
    "arithmetic": "exploring",
    "attributes": "exploring",
    "classify": "scoring",
    "compare": "comparison",
    "complete": "using",
    "doctor": "health",
    "evaluate": "evaluation",
    "interpolate": "using",
    "invert": "exploring",
    "load": "model",
    "reconstruct": "using",
    "sample": "using",
    "score": "scoring",
    "show": "overview",
    "train": "training",
    "traverse": "exploring",
    "translate": "translating",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("recipes", "data"):
        return import_module(f"twofold.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'twofold' has no attribute {name!r}")
    return getattr(import_module(f"twofold.{_HOMES[name]}"), name)
