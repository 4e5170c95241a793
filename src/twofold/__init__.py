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
    "interpolate",
    "load",
    "recipes",
    "reconstruct",
    "sample",
    "show",
    "train",
    "translate",
]

if TYPE_CHECKING:
    from twofold import recipes
    from twofold.errors import InputError
    from twofold.model import Model, load
    from twofold.overview import show
    from twofold.spec import Spec
    from twofold.training import train
    from twofold.translating import translate
    from twofold.using import interpolate, reconstruct, sample

_HOMES = {
    "InputError": "errors",
    "Model": "model",
    "Spec": "spec",
    "interpolate": "using",
    "load": "model",
    "reconstruct": "using",
    "sample": "using",
    "show": "overview",
    "train": "training",
    "translate": "translating",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("recipes", "data"):
        return import_module(f"twofold.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'twofold' has no attribute {name!r}")
    return getattr(import_module(f"twofold.{_HOMES[name]}"), name)
