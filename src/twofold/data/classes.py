"""Some classes of a labelled source: for training on one kind of example, and for knowing what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from twofold.data.arrays import part, standardised
from twofold.data.split import Data, Split, fingerprint
from twofold.errors import InputError, unknown
from twofold.spec import Spec


def class_numbers(classes: Any, spec: Spec, *, where: str) -> tuple[int, ...]:
    """The numbers, in ascending order, of classes given by name or by number.

    Raises `InputError` if the data has no labels, for a class that is not there, and for no classes at all.

    >>> class_numbers([7, "3"], Spec("image", (1, 8, 8), classes=10), where="digits")
    (3, 7)
    """
    if spec.classes is None:
        raise InputError(f"classes are {_shown(classes)}, but {where} has no labels to choose by")
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not classes:
        raise InputError(f"classes are {classes!r}; give a list of one class or more, by name or number")
    return tuple(sorted({_number(given, spec, where) for given in classes}))


def _number(given: Any, spec: Spec, where: str) -> int:
    names = spec.class_names or ()
    if isinstance(given, str) and given in names:
        return names.index(given)
    if isinstance(given, str) and given.isdecimal() and len(given) < 8:
        given = int(given)
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < (spec.classes or 0):
        return given
    if names and isinstance(given, str):
        raise unknown(f"class of {where}", given, names)
    raise InputError(f"{where} has no class {given!r}; it has classes 0 to {(spec.classes or 1) - 1}")


def _shown(classes: Any) -> str:
    return ", ".join(map(str, classes)) if isinstance(classes, Sequence) and not isinstance(classes, str) else classes


def keep_classes(data: Data, classes: Any) -> Data:
    """`data` with the examples of some classes only, in both splits. Labels keep their numbers and names.

    The splits are parts of the whole source's splits, so that no example kept for testing there is trained on here.
    Vectors are standardised anew, by what is left to train on. Raises `InputError` as `class_numbers` does, and if one
    of the classes has no training example.
    """
    if data.spec.input is not None:
        raise InputError(f"classes cannot be used here: {data.name} is pairs, of which all are kept")
    numbers = class_numbers(classes, data.spec, where=data.name)
    train, test = _kept(data.train, numbers), None if data.test is None else _kept(data.test, numbers)
    assert train.y is not None
    if missing := sorted(set(numbers) - set(train.y.unique().tolist())):
        raise InputError(f"{data.name} has no training example of class {missing[0]}; leave it out of the classes")
    if test is not None and not len(test):
        test = None
    spec = data.spec
    if spec.mean is not None:
        train, test, spec = standardised(train, test, spec)
    notes = (*data.notes, f"kept classes {_shown(numbers)}: {len(train):,} of {len(data.train):,} training examples")
    every_mode = data.modes is not None and len(data.modes) == spec.classes
    modes = data.modes[list(numbers)] if every_mode and data.modes is not None else data.modes
    digest = fingerprint(spec, [train, test])
    return replace(data, spec=spec, train=train, test=test, notes=notes, fingerprint=digest, modes=modes)


def _kept(split: Split, numbers: tuple[int, ...]) -> Split:
    assert split.y is not None
    return part(split, torch.isin(split.y, torch.tensor(numbers)).nonzero().squeeze(1))
