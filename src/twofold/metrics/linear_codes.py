"""Linear encoders fitted to data, as baselines of disentanglement: principal and independent components."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def pca(x: Tensor, components: int) -> Callable[[Tensor], Tensor]:
    """The function (n, d) → (n, components) onto the directions of largest variance of x (examples, d)."""
    mean, directions, _ = _principal(x, components)
    return lambda z: (z.double() - mean) @ directions


def ica(x: Tensor, components: int, *, seed: int = 0, max_iter: int = 500) -> Callable[[Tensor], Tensor]:
    """The function onto the `components` independent components of x (FastICA, Hyvärinen 1999), found in the space of
    as many principal components, whitened, with the logcosh contrast, all directions at once.

    Pictures are no mixture of independent sources, so on them the iteration may still turn after `max_iter` rounds;
    what it has found then is used.
    """
    from warnings import catch_warnings, simplefilter

    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    mean, directions, deviation = _principal(x, components)
    white = ((x.double() - mean) @ directions) / deviation
    with catch_warnings():
        simplefilter("ignore", ConvergenceWarning)
        found = FastICA(whiten=False, random_state=seed, max_iter=max_iter).fit(white.numpy())
    unmix = torch.from_numpy(found.components_.T.copy())
    return lambda z: ((z.double() - mean) @ directions / deviation) @ unmix


def _principal(x: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d,), directions (d, components) and the deviation along each (components,)."""
    mean = x.double().mean(0)
    centred = x.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(x) - 1))
    order = values.argsort(descending=True)[:components]
    return mean, vectors[:, order], values[order].clamp(min=1e-12).sqrt()
