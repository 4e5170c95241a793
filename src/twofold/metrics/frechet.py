"""Fréchet distance between two sets of features, as if both were Gaussian (Heusel et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from twofold.metrics.record import require_sets


def frechet_distance(features: Tensor, features_real: Tensor) -> float:
    """|m₁ - m₂|² + tr(S₁ + S₂ - 2 (S₁ S₂)^½) of means m and covariances S of (n, d) and (m, d) features.

    On pool3 of the standard Inception network this is the FID; on other features call it a Fréchet distance. It is
    biased upwards by an amount that falls with n, so compare only equal n. With n ≤ d the covariances are singular;
    the value is still defined. Raises `InputError` for sets that do not fit.

    >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    >>> round(frechet_distance(x + 2.0, x), 6)
    12.0
    """
    require_sets(features, features_real)
    x, y = features.double(), features_real.double()
    if x.shape[1] <= min(len(x), len(y)):
        return gaussian_distance(x.mean(0), _covariance(x), y.mean(0), _covariance(y))
    # Fewer examples than features: the eigenvalues of S₁ S₂ that are not 0 are the squared singular values of X Yᵀ,
    # of centred and scaled examples, which is the smaller matrix.
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    spread = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float((x.mean(0) - y.mean(0)).square().sum() + spread))


def gaussian_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The same of two Gaussians given by mean (d,) and covariance (d, d): their squared 2-Wasserstein distance.

    tr (S₁ S₂)^½ is the sum of the square roots of the eigenvalues of the symmetric matrix S₁^½ S₂ S₁^½: no matrix
    root of a product that is not symmetric, and no offset on the diagonal for singular covariances.
    """
    values, vectors = torch.linalg.eigh(cov_a.double())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ cov_b.double() @ root
    trace_root = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).double().square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace_root
    return max(0.0, float(distance))


def _covariance(x: Tensor) -> Tensor:
    return torch.cov(x.T).reshape(x.shape[1], x.shape[1])
