"""A measured figure with its protocol, the error of a figure, and the comparison of two figures.

A figure without its protocol means nothing: a Fréchet distance from 2,000 images is not one from 10,000, and one on
another extractor is another quantity. So the protocol stands in the name and in the record, and `compare_results`
refuses two figures whose protocols differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from twofold.errors import InputError

BETTER = ("higher", "lower", "data")
FREE = ("seed", "seeds", "note")
"""What may differ between two figures that are compared: other draws of the same protocol."""
ERRORS = 2.0
"""A difference of at most this many standard errors is called a tie."""


@dataclass(frozen=True)
class Result:
    """One figure."""

    name: str
    """With the protocol in it: "fd_2k_test_classifier_acc98.1"."""
    value: float
    better: str
    """"higher", "lower", or "data": the nearer to what real data give (`reference`)."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """How it was measured: sample counts, split, extractor, k, seeds …"""
    uncertainty: float | None = None
    """One standard error (how it was estimated is the protocol's "uncertainty"); None where none is known."""
    reference: float | None = None
    """The same measurement with real training examples in the place of the model's."""

    def __post_init__(self) -> None:
        if self.better not in BETTER:
            raise ValueError(f"better is {self.better!r}; allowed: {', '.join(BETTER)}")

    def to_json(self) -> dict[str, Any]:
        """A plain record. JSON has no infinity and no NaN: such numbers become the texts "inf", "-inf" and "nan"."""
        return {key: _said(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Result:
        """The Result written by `to_json`. Raises `InputError` for anything else."""
        try:
            values: dict[str, Any] = {key: float(v) if v in ("inf", "-inf", "nan") else v for key, v in record.items()}
            return cls(**values)
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is not a stored result: {error}") from None


@dataclass(frozen=True)
class Comparison:
    """What `compare_results` finds."""

    difference: float
    """The second figure minus the first."""
    uncertainty: float | None
    """Standard error of the difference; None if one of the two has none."""
    winner: str
    """"first", "second" or "tie"; "tie" too if the difference is within 2 standard errors or these are unknown."""


def compare_results(first: Result, second: Result) -> Comparison:
    """Which of two figures is better. Raises `InputError` if their protocols differ.

    >>> from dataclasses import replace
    >>> a = Result("mse_test_360", 0.04, "lower", {"count": 360}, uncertainty=0.001)
    >>> compare_results(a, replace(a, value=0.03)).winner
    'second'
    """
    _refuse_different(first, second)
    difference = second.value - first.value
    errors = (first.uncertainty, second.uncertainty)
    spread = None if None in errors else math.hypot(*(e for e in errors if e is not None))
    gain = _distance(first) - _distance(second)
    decided = spread is not None and abs(gain) > ERRORS * spread
    return Comparison(difference, spread, ("second" if gain > 0 else "first") if decided else "tie")


def _refuse_different(first: Result, second: Result) -> None:
    if first.name != second.name:
        raise InputError(f"{first.name} and {second.name} are different measurements and cannot be compared")
    for key in sorted({*first.protocol, *second.protocol} - set(FREE)):
        a, b = first.protocol.get(key), second.protocol.get(key)
        if a != b:
            raise InputError(f"{first.name} was measured with {key} = {a} and with {b}: these cannot be compared")


def _distance(result: Result) -> float:
    """How far a figure is from the best, up to a constant."""
    if result.better == "data":
        if result.reference is None:
            raise InputError(f"{result.name} is better the nearer it is to real data's value, which is not recorded")
        return abs(result.value - result.reference)
    return result.value if result.better == "lower" else -result.value


def _said(value: Any) -> Any:
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


# Errors and names.


def count_text(count: int) -> str:
    """A sample count in a name: 10000 is "10k", 360 is "360".

    >>> count_text(10_000), count_text(1_797)
    ('10k', '1797')
    """
    return f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)


def standard_error(values: Tensor) -> float | None:
    """Of the mean of independent values (n,); None for a single one."""
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else None


def half_sample_errors(
    statistic: Callable[..., Sequence[float]], *sets: Tensor, generator: torch.Generator, times: int = 10
) -> list[float | None]:
    """Standard errors of the figures `statistic(*sets)`, from their values on random halves of each set, drawn without
    replacement.

    The delete-d jackknife with d = n/2 (Shao & Wu 1989): the spread over halves estimates the spread of the statistic
    at full size. Drawing with replacement, as a bootstrap does, would put copies of an example among its nearest
    neighbours. None for sets of fewer than 16 examples.
    """
    if min(len(x) for x in sets) < 16:
        return [None] * len(statistic(*sets))
    values = [
        list(statistic(*(x[torch.randperm(len(x), generator=generator)[: len(x) // 2]] for x in sets)))
        for _ in range(times)
    ]
    return torch.tensor(values, dtype=torch.float64).std(0).tolist()


def require_sets(*sets: Tensor, dimensions: int | None = 2, least: int = 2) -> None:
    """Raise `InputError` unless all sets are finite, of `least` examples or more, and of equal shape per example."""
    for x in sets:
        if (dimensions is not None and x.dim() != dimensions) or x.shape[1:] != sets[0].shape[1:] or len(x) < least:
            shapes = " and ".join(str(tuple(x.shape)) for x in sets)
            raise InputError(f"the sets are {shapes}; give equal shapes per example and at least {least} examples each")
        if not bool(x.isfinite().all()):
            raise InputError("a set to be measured holds values that are not finite")
