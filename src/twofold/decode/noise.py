"""Randomness by row and place: the number for token 17 of a row depends on the row's seed and on 17, and on nothing
else. So a row's tokens depend neither on its neighbours nor on the size of the batch, and nothing waits for the host.

The generator is SplitMix64 (Steele, Lea & Flood 2014) used by counter: each number is a bijective mixing of 64 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from twofold.errors import InputError

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_BITS = 23
"""Of a uniform number: the largest is so far below 1 that float32 does not round it times a sum up to that sum."""

_AHEAD = 64
"""Places whose numbers are computed together."""


def row_seeds(n: int, *, generator: torch.Generator) -> Tensor:
    """`n` seeds (n,) int64, one a row, on the generator's device. From equal generators the first of many are those of
    few.

    >>> row_seeds(2, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2])
    """
    if n < 1:
        raise InputError(f"n is {n}; ask for at least 1 row")
    base = torch.randint(2**63 - 1, (1,), generator=generator, device=generator.device)
    return _mixed(base + torch.arange(1, n + 1, device=base.device) * _signed(_GOLDEN))


def uniforms(seeds: Tensor, place: int, count: int = 1) -> Tensor:
    """`count` numbers in [0, 1) for each row at one place of its sequence: (rows, count) float32.

    >>> seeds = torch.tensor([5, 6, 7])
    >>> torch.equal(uniforms(seeds, 17)[2:], uniforms(seeds[2:], 17))
    True
    """
    if seeds.dtype != torch.int64 or seeds.ndim != 1:
        raise InputError(f"seeds are {seeds.dtype} of shape {tuple(seeds.shape)}; give int64 of shape (rows,)")
    return _at(seeds, range(place, place + 1), count)[0]


def uniforms_from(seeds: Tensor, place: int) -> Iterator[Tensor]:
    """`uniforms` of this place and of each one after it, without end, (rows, 1) each. They are computed for many places
    at a time: alone, a token's number would take some thirty small operations.

    >>> numbers = uniforms_from(torch.tensor([5, 6, 7]), 16)
    >>> next(numbers).shape, torch.equal(next(numbers), uniforms(torch.tensor([5, 6, 7]), 17))
    (torch.Size([3, 1]), True)
    """
    while True:
        yield from _at(seeds, range(place, place + _AHEAD), 1).unbind()
        place += _AHEAD


def _at(seeds: Tensor, places: range, count: int) -> Tensor:
    """(places, rows, count)."""
    steps = torch.arange(places.start + 1, places.stop + 1, device=seeds.device) * _signed(_GOLDEN)
    numbers = torch.arange(1, count + 1, device=seeds.device) * _signed(_GOLDEN)
    rows = _mixed(_mixed(seeds) + steps[:, None])
    bits = _mixed(rows[..., None] + numbers) & (2**_BITS - 1)
    return bits.to(torch.float32) * 2.0**-_BITS


def _mixed(bits: Tensor) -> Tensor:
    for shift, factor in _MIX:
        bits = (bits ^ _right(bits, shift)) * _signed(factor)
    return bits ^ _right(bits, 31)


def _right(bits: Tensor, shift: int) -> Tensor:
    """Shifted right with zeros coming in; torch's shift of int64 brings in the sign."""
    return (bits >> shift) & ((1 << (64 - shift)) - 1)


def _signed(number: int) -> int:
    """The low 64 bits as torch's int64 holds them."""
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number
