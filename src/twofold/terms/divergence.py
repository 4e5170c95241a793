"""Divergences between distributions: Gaussian KL in closed form, two ways to loosen it, importance-weighted bounds, and
the maximum mean discrepancy between two sets of samples. All KLs are in nats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from twofold.errors import InputError, unknown
from twofold.terms.matching import require_same_shape, single_precision, sum_per_example

KERNELS = ("rbf", "imq")
VARIANCE_FLOOR = 1e-9
RELATIVE_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def kl_normal_per_dimension(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, e^log_var) ‖ N(0, 1)) of every dimension. Shapes (batch, ...) → (batch, dims), dims flattened.

    ½ (mean² + σ² - 1 - log σ²), Kingma & Welling 2014, appendix B. With expm1, so that a posterior close to the prior
    keeps its digits.
    """
    require_same_shape(mean=mean, log_var=log_var)
    mean, log_var = single_precision(mean), single_precision(log_var)
    return 0.5 * (mean.square() + torch.expm1(log_var) - log_var).flatten(1)


def kl_normal(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, diag e^log_var) ‖ N(0, I)) per example, in nats. Shapes (batch, ...) → (batch,).

    >>> kl_normal(torch.ones(2, 3), torch.zeros(2, 3))
    tensor([1.5000, 1.5000])
    """
    return kl_normal_per_dimension(mean, log_var).sum(1)


def kl_normals(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
    """KL(q ‖ p) of two diagonal normals per example, in nats. Four equal shapes (batch, ...) → (batch,)."""
    require_same_shape(mean_q=mean_q, log_var_q=log_var_q, mean_p=mean_p, log_var_p=log_var_p)
    mean_q, log_var_q, mean_p, log_var_p = map(single_precision, (mean_q, log_var_q, mean_p, log_var_p))
    log_ratio = log_var_q - log_var_p
    distance = (mean_q - mean_p).square() * torch.exp(-log_var_p)
    return 0.5 * sum_per_example(torch.expm1(log_ratio) - log_ratio + distance)


def kl_normal_full(mean: Tensor, covariance: Tensor) -> Tensor:
    """KL(N(mean, covariance) ‖ N(0, I)) per example, in nats. Shapes (batch, dims), (batch, dims, dims) → (batch,).

    The covariance is symmetric and positive definite. Where it is not positive definite the result is NaN: an exception
    would make the device wait at every step. Raises `ValueError` for wrong shapes.
    """
    if mean.ndim != 2 or covariance.shape != (*mean.shape, mean.shape[-1]):
        raise ValueError(
            f"mean is {tuple(mean.shape)}, covariance is {tuple(covariance.shape)}; "
            "give (batch, dims) and (batch, dims, dims)"
        )
    mean, covariance = single_precision(mean), single_precision(covariance)
    cholesky, info = torch.linalg.cholesky_ex(covariance)
    log_determinant = 2 * cholesky.diagonal(dim1=1, dim2=2).log().sum(1)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    kl = 0.5 * (trace + mean.square().sum(1) - mean.shape[1] - log_determinant)
    return torch.where(info == 0, kl, torch.nan)


def kl_moments(z: Tensor) -> Tensor:
    """KL(N(m, diag s²) ‖ N(0, I)) in nats, a scalar, with m and s² the batch's own mean and variance of each dimension.
    Shapes (batch, dims) → ().

    Σ_j ½ (m_j² + s_j² - 1) - log s_j: how far a batch of codes is from the prior, as AGE (Ulyanov et al. 2018) measures
    it. The variance divides by the batch. A small number inside the logarithm keeps a dimension in which all
    codes agree finite (at most 10 nats). Depends on all examples, so parts of a batch do not add up to it.

    >>> kl_moments(torch.tensor([[1.0], [-1.0]]))
    tensor(0.)
    """
    if z.ndim != 2:
        raise ValueError(f"z is {tuple(z.shape)}; give (batch, dims)")
    variance, mean = torch.var_mean(single_precision(z), dim=0, correction=0)
    return 0.5 * (mean.square() + variance - 1 - (variance + VARIANCE_FLOOR).log()).sum()


def free_bits(kl_per_dimension: Tensor, *, nats: float) -> Tensor:
    """Σ_j max(nats, batch mean of KL_j), a scalar. Shape (batch, dims), see `kl_normal_per_dimension`.

    Kingma et al. 2016 (inverse autoregressive flow), with one latent per group: a dimension whose mean KL lies under
    the floor receives no gradient. The value is never below dims · nats; report the KL itself beside it.

    >>> free_bits(torch.tensor([[0.0, 3.0], [0.2, 5.0]]), nats=0.5)
    tensor(4.5000)
    """
    if kl_per_dimension.ndim != 2:
        raise ValueError(f"kl_per_dimension is {tuple(kl_per_dimension.shape)}; give (batch, dims)")
    if not nats >= 0:
        raise InputError(f"free bits: the floor is {nats} nats; give 0 or more")
    return single_precision(kl_per_dimension).mean(0).clamp(min=nats).sum()


def capacity(kl: Tensor, *, target_nats: float | Tensor) -> Tensor:
    """|batch mean of kl - target_nats|, a scalar; kl has shape (batch,).

    Burgess et al. 2018 (controlled capacity) without its γ, 1000 there. The distance is taken after the batch mean, so
    that examples may differ in the information they need while the average is held at the target.
    """
    if kl.ndim != 1:
        raise ValueError(f"kl is {tuple(kl.shape)}; give (batch,)")
    return (single_precision(kl).mean() - target_nats).abs()


def margin(kl: Tensor, *, nats: float) -> Tensor:
    """max(0, nats - kl) per example: pushes a KL up to the margin and no further. Shape kept.

    The [m - L_reg]₊ of IntroVAE (Huang et al. 2018); above the margin its gradient is exactly zero.
    """
    return (nats - single_precision(kl)).clamp(min=0)


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """log 1/k Σ_i w_i, a lower bound of log p(x) per example, in nats: minimise its minus.

    Shapes (batch, k) → (batch,). log_weights: log p(x, z_i) - log q(z_i | x) with z_i drawn from q (Burda et al. 2016,
    eq. 8). k = 1 is the ELBO. Its gradient weights the k samples by softmax(log_weights), which autograd does by
    itself.

    >>> importance_weighted_bound(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    tensor([0., 1.])
    """
    if log_weights.ndim != 2 or not log_weights.shape[1]:
        raise ValueError(f"log_weights is {tuple(log_weights.shape)}; give (batch, k)")
    return torch.logsumexp(single_precision(log_weights), dim=1) - math.log(log_weights.shape[1])


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    kernel: str = "rbf",
    scales: Sequence[float] | None = None,
    unbiased: bool = True,
) -> Tensor:
    """Squared maximum mean discrepancy between two sets of samples, a scalar. Shapes (n, dims), (m, dims).

    The kernel is summed over `scales`, which are squared distances: "rbf" is exp(-d²/scale), that is a Gaussian of
    variance scale/2; "imq" is scale / (scale + d²). By default the scales are 2 · dims · (0.1, 0.2, 0.5, 1, 2, 5, 10):
    2 · dims is the mean squared distance of two draws from N(0, I), as in Tolstikhin et al. 2018 (WAE-MMD), section 4.
    For samples of another variance give scales of that size.

    `unbiased` (Gretton et al. 2012, eq. 3) leaves out each sample's distance to itself; its mean over batches is exact
    and single values may be negative. Otherwise their eq. 5: never negative beyond rounding, zero for x = y, biased
    upward. Gradient reaches x and y.

    Raises `ValueError` for wrong shapes or too few samples, `InputError` for an unknown kernel or a scale that is not
    positive.
    """
    if kernel not in KERNELS:
        raise unknown("kernel", kernel, KERNELS)
    least = 2 if unbiased else 1
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < least:
        raise ValueError(f"x is {tuple(x.shape)}, y is {tuple(y.shape)}; give (n, dims) and (m, dims), n, m ≥ {least}")
    if scales is None:
        scales = [2.0 * x.shape[1] * scale for scale in RELATIVE_SCALES]
    if not scales or not all(scale > 0 for scale in scales):
        raise InputError(f"the kernel scales are {list(scales)}; give positive squared distances")
    x, y = single_precision(x), single_precision(y)
    within_x = _mean_within(_kernel(x, x, kernel, scales), len(scales), unbiased)
    within_y = _mean_within(_kernel(y, y, kernel, scales), len(scales), unbiased)
    return within_x + within_y - 2 * _kernel(x, y, kernel, scales).mean()


def _kernel(x: Tensor, y: Tensor, kernel: str, scales: Sequence[float]) -> Tensor:
    distance = _squared_distances(x, y)
    if kernel == "rbf":
        return sum((torch.exp(-distance / scale) for scale in scales), torch.zeros_like(distance))
    return sum((scale / (scale + distance) for scale in scales), torch.zeros_like(distance))


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(n, dims), (m, dims) → (n, m) without an (n, m, dims) tensor."""
    # Distances do not change under a shift, and |x|² + |y|² - 2xy loses its digits far from the origin.
    centre = y.detach().mean(0)
    x, y = x - centre, y - centre
    # Autocast would multiply in bfloat16, where the difference of large squares is noise.
    with torch.autocast(device_type=x.device.type, enabled=False):
        product = x @ y.T
    return (x.square().sum(1)[:, None] + y.square().sum(1)[None, :] - 2 * product).clamp(min=0)


def _mean_within(values: Tensor, at_zero: int, unbiased: bool) -> Tensor:
    """Mean of k(x_i, x_j), over i ≠ j if unbiased; `at_zero` is k(x, x), exact where the distance had rounding."""
    n = len(values)
    off_diagonal = values.sum() - values.diagonal().sum()
    return off_diagonal / (n * (n - 1)) if unbiased else (off_diagonal + n * at_zero) / n**2
