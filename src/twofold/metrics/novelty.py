"""How far examples are from normal ones in a space of features: nearest neighbours and Mahalanobis distance."""

from __future__ import annotations

import torch
from torch import Tensor

from twofold.errors import InputError

WIDEST = 4096
"""Features of which `mahalanobis` estimates a covariance: more would take minutes and gigabytes."""
_CHUNK = 2**24


def knn_distance(x: Tensor, reference: Tensor, *, k: int) -> Tensor:
    """Distance (n,) of each row of `x` (n, features) to the `k`-th nearest row of `reference` (m, features) (Ramaswamy
    et al. 2000). Raises `InputError` if there are fewer than `k` rows.

    >>> knn_distance(torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [3.0]]), k=2)
    tensor([3., 4.])
    """
    if not 1 <= k <= len(reference):
        raise InputError(f"k is {k} and there are {len(reference)} normal examples; give 1 to {len(reference)}")
    size = max(1, _CHUNK // len(reference))
    # Distances themselves, not through the expanded square, which loses digits for near neighbours.
    exact = "donot_use_mm_for_euclid_dist"
    parts = [torch.cdist(part, reference, compute_mode=exact).kthvalue(k, dim=1).values for part in x.split(size)]
    return torch.cat(parts)


def mahalanobis(x: Tensor, reference: Tensor) -> Tensor:
    """Mahalanobis distance (n,) of each row of `x` (n, features) to the rows of `reference` (m, features), whose
    covariance is shrunk towards a multiple of the identity as Ledoit & Wolf 2004 say, so that it can be inverted with
    fewer rows than features too. Raises `InputError` for more than 4,096 features or a single row."""
    if reference.shape[1] > WIDEST or len(reference) < 2:
        raise InputError(
            f"Mahalanobis distance from {len(reference)} normal examples of {reference.shape[1]:,} features; "
            f"give at least 2 and at most {WIDEST:,} features"
        )
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(reference.double().numpy())
    return torch.from_numpy(fitted.mahalanobis(x.double().numpy()).clip(0)).sqrt()
