"""Precision, recall, density and coverage: do samples lie where data lie, and data where samples lie?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from twofold.errors import InputError
from twofold.metrics.record import require_sets

_BLOCK = 1024


class Manifold(NamedTuple):
    """The four figures; each but density lies in [0, 1]."""

    precision: float
    """Part of the samples inside the data's manifold (Kynkäänniemi et al. 2019)."""
    recall: float
    """Part of the data inside the samples' manifold."""
    density: float
    """Precision that counts how many neighbourhoods of data a sample lies in (Naeem et al. 2020); 1 on average for
    two draws of one distribution."""
    coverage: float
    """Part of the data's neighbourhoods that hold a sample."""


def manifold_figures(features: Tensor, features_real: Tensor, *, k: int = 3, k_density: int = 5) -> Manifold:
    """Of (n, d) features of samples and (m, d) of data. A manifold is the union of balls around its points, each
    reaching to the point's k-th nearest neighbour in its own set, itself not counted.

    `k` is for precision and recall (their authors: 3), `k_density` for density and coverage (theirs: 5).
    """
    require_sets(features, features_real)
    if not min(k, k_density) >= 1 or max(k, k_density) >= min(len(features), len(features_real)):
        raise InputError(f"k is {k} and {k_density}; allowed: 1 to {min(len(features), len(features_real)) - 1}")
    fake, real = features.double(), features_real.double()
    (reach, reach_density), (reach_fake, _) = _reaches(real, k, k_density), _reaches(fake, k, k_density)
    inside, count = torch.zeros(len(fake), dtype=torch.bool), 0.0
    covered, nearest = torch.zeros(len(real), dtype=torch.bool), torch.full((len(real),), torch.inf).double()
    for start in range(0, len(fake), _BLOCK):
        distance = torch.cdist(fake[start : start + _BLOCK], real, compute_mode="donot_use_mm_for_euclid_dist")
        inside[start : start + _BLOCK] = (distance <= reach).any(1)
        count += float((distance <= reach_density).sum())
        covered |= (distance <= reach_fake[start : start + _BLOCK, None]).any(0)
        nearest = torch.minimum(nearest, distance.amin(0))
    coverage = (nearest <= reach_density).double().mean()
    density = count / (k_density * len(fake))
    return Manifold(float(inside.double().mean()), float(covered.double().mean()), density, float(coverage))


def _reaches(x: Tensor, k: int, k_density: int) -> tuple[Tensor, Tensor]:
    """Distance of each point to its k-th and k_density-th neighbour."""
    parts = []
    for block in x.split(_BLOCK):
        distance = torch.cdist(block, x, compute_mode="donot_use_mm_for_euclid_dist")
        # The point itself is the nearest, at distance 0.
        parts.append(distance.topk(max(k, k_density) + 1, largest=False).values)
    nearest = torch.cat(parts)
    return nearest[:, k], nearest[:, k_density]


def nearest_neighbour_accuracy(train: Tensor, y_train: Tensor, test: Tensor, y_test: Tensor) -> Tensor:
    """(n,) float: 1 where the nearest training example (Euclidean) of a test example has its label, else 0."""
    require_sets(train, test, least=1)
    nearest = [torch.cdist(block.double(), train.double()).argmin(1) for block in test.split(_BLOCK)]
    return (y_train[torch.cat(nearest)] == y_test).double()
