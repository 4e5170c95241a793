"""Log-likelihood in bits per dimension, and the Parzen-window estimate of historical tables."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from twofold.metrics.record import require_sets

_BLOCK = 256


def bits_per_dimension(log_prob_nats: Tensor, dimensions: int, *, bin_width: float | None = None) -> Tensor:
    """-log₂ p / dimensions of each example (n,).

    bin_width: None if the nats are of a probability (Bernoulli, categorical, discretised logistic). If they are of a
    density, the width of one grey level in the units of that density: a density at x + u, u uniform in the bin around
    x, bounds the probability of the bin by E log p(x + u) + dimensions · log(width) (Theis et al. 2016), so the
    examples must have had such noise added (`dequantised`).
    """
    nats = log_prob_nats.double() + (0.0 if bin_width is None else dimensions * math.log(bin_width))
    return -nats / (dimensions * math.log(2))


def dequantised(x: Tensor, bin_width: float, *, generator: torch.Generator) -> Tensor:
    """x plus noise uniform in [-bin_width / 2, bin_width / 2]."""
    return x + bin_width * (torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5)


def parzen_log_likelihood(samples: Tensor, test: Tensor, *, sigma: float) -> Tensor:
    """log of the mean over samples (n, d) of N(test; sample, σ²), in nats, of each test example (m,).

    Historical: it ranks models in another order than their likelihood does (Theis et al. 2016). Kept because the
    tables of 2014 and 2015 have no other figure.
    """
    require_sets(samples, test, least=1)
    samples, test = samples.double(), test.double()
    constant = math.log(len(samples)) + samples.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    parts = [
        torch.logsumexp(-torch.cdist(block, samples).square() / (2 * sigma**2), dim=1) for block in test.split(_BLOCK)
    ]
    return torch.cat(parts) - constant


def parzen_sigma(samples: Tensor, validation: Tensor) -> float:
    """The bandwidth of ten from 0.1 to 1, evenly in the logarithm, that validation examples find most likely
    (Goodfellow et al. 2014, their code)."""
    grid = torch.logspace(-1, 0, 10, dtype=torch.float64).tolist()
    scores = [float(parzen_log_likelihood(samples, validation, sigma=sigma).mean()) for sigma in grid]
    return grid[scores.index(max(scores))]
