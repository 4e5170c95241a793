"""How many nats a code takes without a network: the yardsticks below which a trained prior must come."""

from __future__ import annotations

import torch
from torch import Tensor


def unigram_nats(train: Tensor, test: Tensor, codes: int) -> float:
    """Mean -log p of each test code by its frequency among the training codes, one added to every count (so that no
    code is impossible). Any shapes, int64.

    >>> round(unigram_nats(torch.tensor([0, 0, 1]), torch.tensor([0]), 2), 4)
    0.5108
    """
    counts = torch.bincount(train.flatten(), minlength=codes).double() + 1
    return float(-(counts / counts.sum()).log()[test.flatten()].mean())


def bigram_nats(train: Tensor, test: Tensor, codes: int) -> float:
    """Mean -log p of each test code given the one before it in raster order, (batch, n) each, from the training codes:
    pair counts mixed with the unigram frequencies as if those had been seen `PRIOR_COUNT` times after every code. The
    first code of a row is predicted by the unigram.
    """
    unigram = torch.bincount(train.flatten(), minlength=codes).double() + 1
    unigram /= unigram.sum()
    pairs = torch.bincount((train[:, :-1] * codes + train[:, 1:]).flatten(), minlength=codes**2).double()
    pairs = pairs.view(codes, codes)
    totals = pairs.sum(1)
    before, after = test[:, :-1], test[:, 1:]
    p = (pairs[before, after] + PRIOR_COUNT * unigram[after]) / (totals[before] + PRIOR_COUNT)
    return float(-torch.cat([unigram[test[:, :1]].log(), p.log()], dim=1).mean())


PRIOR_COUNT = 100.0
