"""Inception Score (Salimans et al. 2016) of a classifier's probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from twofold.errors import InputError


def inception_score(probabilities: Tensor, *, splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) of (n, classes) probabilities: mean and standard deviation over `splits` parts, as
    published scores have it.

    Between 1 (every sample gets the same answer) and the number of classes (sure answers, all classes alike). It says
    nothing about likeness to the data. Raises `InputError` for rows that are no probabilities, or fewer than `splits`.
    """
    p = probabilities.double()
    if p.dim() != 2 or len(p) < splits or splits < 1:
        raise InputError(f"probabilities are {tuple(p.shape)}; give (n, classes) with n of at least {splits}")
    if bool((p < 0).any()) or not torch.allclose(p.sum(1), torch.ones(len(p), dtype=p.dtype), atol=1e-4):
        raise InputError("the rows are no probabilities: they must be at least 0 and add up to 1")
    scores = torch.stack([_score(part) for part in p.tensor_split(splits)])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(p: Tensor) -> Tensor:
    entropy = -torch.special.entr(p).sum(1)
    return (entropy - torch.xlogy(p, p.mean(0)).sum(1)).mean().exp()
