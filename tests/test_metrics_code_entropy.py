"""Nats per code without a network, against chains whose entropy is known."""

from __future__ import annotations

import math

import pytest
import torch

from twofold.metrics.code_entropy import bigram_nats, unigram_nats


def chain(rows: int, stay: float, seed: int) -> torch.Tensor:
    """Codes of 4 that repeat the one before with probability `stay`, otherwise uniform."""
    random = torch.Generator().manual_seed(seed)
    codes = [torch.randint(4, (rows,), generator=random)]
    for _ in range(49):
        fresh = torch.randint(4, (rows,), generator=random)
        codes.append(torch.where(torch.rand(rows, generator=random) < stay, codes[-1], fresh))
    return torch.stack(codes, dim=1)


def test_yardsticks_of_a_chain_and_of_noise():
    train, test = chain(2000, 0.8, 0), chain(2000, 0.8, 1)
    same, other = 0.8 + 0.2 / 4, 0.2 / 4
    entropy = -(same * math.log(same) + 3 * other * math.log(other))
    assert unigram_nats(train, test, 4) == pytest.approx(math.log(4), abs=2e-3)
    assert bigram_nats(train, test, 4) == pytest.approx((math.log(4) + 49 * entropy) / 50, rel=0.015)
    noise = chain(2000, 0.0, 2), chain(2000, 0.0, 3)
    assert bigram_nats(*noise, 4) == pytest.approx(math.log(4), abs=2e-3)  # nothing to gain from the code before


def test_codes_that_were_never_seen_cost_much_and_not_infinitely_much():
    train, test = torch.zeros(10, 5, dtype=torch.int64), torch.full((1, 5), 3)
    assert unigram_nats(train, test, 4) == pytest.approx(math.log(54))
    assert math.isfinite(bigram_nats(train, test, 4)) and bigram_nats(train, test, 4) > 3
    assert unigram_nats(train, train, 4) < 0.1 and bigram_nats(train, train, 4) < 0.1
