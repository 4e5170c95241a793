"""Distances between two tensors of equal shape: pixels, features, and moments of features. Also the three small rules
that every file of this package follows: equal shapes, at least single precision, and the sum over one example."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def require_same_shape(**tensors: Tensor) -> None:
    """Raises `ValueError` naming the arguments and their shapes if they differ.

    >>> require_same_shape(mean=torch.zeros(2, 1), x=torch.zeros(2))
    Traceback (most recent call last):
    ...
    ValueError: shapes must be equal: mean is (2, 1), x is (2,)
    """
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} is {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes must be equal: {shapes}")


def single_precision(values: Tensor) -> Tensor:
    """`values` in float32, or unchanged if already at least as precise.

    A network run in bfloat16 has about three significant digits; a sum over the thousands of values of an image needs
    more, so every term starts here.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def sum_per_example(values: Tensor) -> Tensor:
    """(batch, ...) → (batch,): the sum over everything but the first dimension."""
    return values.sum(dim=tuple(range(1, values.ndim))) if values.ndim > 1 else values


def l1(x_rec: Tensor, x: Tensor) -> Tensor:
    """Σ |x_rec - x| per example. Shapes (batch, ...) → (batch,).

    The data term of α-GAN, pix2pix and CycleGAN, up to their coefficient; those papers' code often takes the mean over
    the pixels, so divide their coefficient by the number of values.

    >>> l1(torch.zeros(2, 3), torch.ones(2, 3))
    tensor([3., 3.])
    """
    require_same_shape(x_rec=x_rec, x=x)
    return sum_per_example((single_precision(x_rec) - single_precision(x)).abs())


def l1_per_value(x_rec: Tensor, x: Tensor) -> Tensor:
    """Mean over the values of |x_rec - x| per example: `l1` divided by their number. Shapes (batch, ...) → (batch,).

    The one distance here that is a mean: pix2pix, CycleGAN and BicycleGAN state their weights (100, 10, 0.5) for it.

    >>> l1_per_value(torch.zeros(2, 3), torch.ones(2, 3))
    tensor([1., 1.])
    """
    return l1(x_rec, x) / max(1, x[0].numel())


def squared_error(x_rec: Tensor, x: Tensor) -> Tensor:
    """Σ (x_rec - x)² per example. Shapes (batch, ...) → (batch,). No factor ½; see `likelihood.normal_nll` for nats."""
    require_same_shape(x_rec=x_rec, x=x)
    return sum_per_example((single_precision(x_rec) - single_precision(x)).square())


def cosine_distance(z_rec: Tensor, z: Tensor) -> Tensor:
    """1 - cos of the angle between two codes, per example, in [0, 2]. Shapes (batch, dims) → (batch,).

    Half the squared distance of both on the unit sphere: AGE's reconstruction of codes.

    >>> cosine_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([1.])
    """
    require_same_shape(z_rec=z_rec, z=z)
    return 1 - F.cosine_similarity(single_precision(z_rec), single_precision(z), dim=1)


def feature_reconstruction(features_rec: Tensor, features_real: Tensor) -> Tensor:
    """½ Σ (features_rec - features_real)² per example, in nats. Shapes (batch, ...) → (batch,).

    -log N(Dis_l(x); Dis_l(x_rec), I) without its constant, Larsen et al. 2016, eq. 7-8. Both arguments carry gradient;
    which player receives it is the routing table's business. The sum grows with the number of features, and with it
    the meaning of the paper's γ: a coefficient tuned for a mean over features is smaller by that number.
    """
    require_same_shape(features_rec=features_rec, features_real=features_real)
    return 0.5 * squared_error(features_rec, features_real)


def feature_moments(features_fake: Tensor, features_real: Tensor) -> Tensor:
    """‖mean of features_fake - mean of features_real‖², a scalar; the means are over the batch.

    Feature matching, Salimans et al. 2016, section 3.1. Shapes (batch, ...); the two batch sizes may differ. The
    estimate is biased upward by the sum of both batches' feature variances, each divided by its batch size.
    """
    if features_fake.shape[1:] != features_real.shape[1:]:
        raise ValueError(
            "shapes must be equal after the batch: "
            f"features_fake is {tuple(features_fake.shape)}, features_real is {tuple(features_real.shape)}"
        )
    return (single_precision(features_fake).mean(0) - single_precision(features_real).mean(0)).square().sum()
