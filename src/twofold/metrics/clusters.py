"""How well clusters agree with labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from twofold.errors import InputError


def purity(clusters: Tensor, labels: Tensor) -> Tensor:
    """(n,) float: 1 where an example has the commonest label of its cluster. The mean is the purity; it grows with the
    number of clusters, so state that number."""
    return (_table(clusters, labels).argmax(1)[clusters] == labels).double()


def clustering_accuracy(clusters: Tensor, labels: Tensor) -> Tensor:
    """(n,) float: 1 where the label is the one its cluster stands for, under the one-to-one assignment of clusters to
    labels that is right most often (Kuhn 1955). Clusters left over are wrong."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-_table(clusters, labels).numpy())
    stands_for = torch.full((int(clusters.max()) + 1,), -1, dtype=torch.int64)
    stands_for[torch.from_numpy(np.asarray(rows))] = torch.from_numpy(np.asarray(columns))
    return (stands_for[clusters] == labels).double()


def _table(clusters: Tensor, labels: Tensor) -> Tensor:
    """Counts (clusters, labels)."""
    if clusters.shape != labels.shape or clusters.dim() != 1 or len(labels) == 0:
        raise InputError(f"clusters are {tuple(clusters.shape)}, labels {tuple(labels.shape)}; give equal (n,)")
    size = int(clusters.max()) + 1, int(labels.max()) + 1
    return torch.bincount(clusters * size[1] + labels, minlength=size[0] * size[1]).view(size)
