"""Data: any source of images or vectors → batches that obey a `Spec`.

    data = twofold.data.load("digits")
    batches = twofold.data.Batches(data.train, data.spec, batch_size=64, seed=0)
    batches.draw(0)["x"]                # (64, 1, 8, 8) float32 in [-1, 1]

Names are imported when first used, so that listing the built-in sources costs neither torch nor scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from twofold.data.catalogue import Source, is_built_in, is_name, sources

if TYPE_CHECKING:
    from twofold.data.arrays import raw
    from twofold.data.batches import Batches, ordered
    from twofold.data.classes import class_numbers, keep_classes
    from twofold.data.convert import from_model, to_model
    from twofold.data.loading import load
    from twofold.data.pairs import pair
    from twofold.data.split import Data, Split, take
    from twofold.data.summary import describe

__all__ = [
    "Batches",
    "Data",
    "Source",
    "Split",
    "class_numbers",
    "describe",
    "from_model",
    "is_built_in",
    "is_name",
    "keep_classes",
    "load",
    "ordered",
    "pair",
    "raw",
    "sources",
    "take",
    "to_model",
]

_HOME = {
    "Batches": "batches",
    "Data": "split",
    "Split": "split",
    "class_numbers": "classes",
    "describe": "summary",
    "from_model": "convert",
    "keep_classes": "classes",
    "load": "loading",
    "ordered": "batches",
    "pair": "pairs",
    "raw": "arrays",
    "take": "split",
    "to_model": "convert",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
