"""Kernel distance between two sets of features (Bińkowski et al. 2018)."""

from __future__ import annotations

from torch import Tensor

from twofold.metrics.record import require_sets

_BLOCK = 1024


def kernel_distance(features: Tensor, features_real: Tensor) -> float:
    """The unbiased estimate of MMD² under the kernel (x·y / d + 1)³, from all pairs of (n, d) and (m, d) features.

    On pool3 of the standard Inception network this is the KID. Its expectation does not depend on n, and it may be
    negative. Deviation: published figures average subsets of 1,000; all pairs have the same expectation and less
    spread.
    """
    require_sets(features, features_real)
    x, y = features.double(), features_real.double()
    n, m = len(x), len(y)
    within_x = (_kernel_sum(x, x) - float(_diagonal(x))) / (n * (n - 1))
    within_y = (_kernel_sum(y, y) - float(_diagonal(y))) / (m * (m - 1))
    return within_x + within_y - 2 * _kernel_sum(x, y) / (n * m)


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    return sum(float((rows @ y.T / x.shape[1] + 1).pow(3).sum()) for rows in x.split(_BLOCK))


def _diagonal(x: Tensor) -> Tensor:
    return (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
