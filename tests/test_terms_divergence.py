"""Divergences against torch.distributions, against loops in float64, and against Gaussians, where all is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.distributions import Normal as TorchNormal

from twofold.errors import InputError
from twofold.terms.divergence import (
    capacity,
    free_bits,
    importance_weighted_bound,
    kl_moments,
    kl_normal,
    kl_normal_full,
    kl_normal_per_dimension,
    kl_normals,
    margin,
    mmd,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------------------- KL


def test_kl_normal_is_the_closed_form_summed_over_dimensions():
    mean, log_var = random(5, 3, 2), random(5, 3, 2, seed=1)
    reference = kl_divergence(TorchNormal(mean, (log_var / 2).exp()), TorchNormal(0.0, 1.0))
    torch.testing.assert_close(kl_normal(mean, log_var), reference.sum((1, 2)))
    torch.testing.assert_close(kl_normal_per_dimension(mean, log_var), reference.flatten(1))
    assert torch.equal(kl_normal(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2))


def test_kl_moments_is_that_of_the_normal_with_the_batchs_moments():
    z = (2 * random(50, 3) + 1).requires_grad_()
    mean, std = z.detach().mean(0), z.detach().std(0, correction=0)
    reference = kl_divergence(TorchNormal(mean, std), TorchNormal(0.0, 1.0)).sum()
    torch.testing.assert_close(kl_moments(z), reference)
    (gradient,) = torch.autograd.grad(kl_moments(z), z)
    torch.testing.assert_close(gradient, (mean + (z.detach() - mean) * (1 - 1 / std**2)) / 50)
    # Standardised codes are at 0, and codes that all agree are far away but finite.
    assert kl_moments((z.detach() - mean) / std).abs() < 1e-7
    same = torch.zeros(4, 1, requires_grad=True)
    assert 9 < kl_moments(same).item() < 11
    assert torch.autograd.grad(kl_moments(same), same)[0].isfinite().all()
    with pytest.raises(ValueError, match="give \\(batch, dims\\)"):
        kl_moments(torch.zeros(3))


def test_kl_normal_agrees_with_the_average_of_the_log_ratio():
    mean, log_var = torch.tensor([[0.7, -1.0]]), torch.tensor([[-1.2, 0.4]])
    q = TorchNormal(mean, (log_var / 2).exp())
    z = q.loc + q.scale * random(100_000, 2)
    log_ratio = (q.log_prob(z) - TorchNormal(0.0, 1.0).log_prob(z)).sum(1)
    error = (log_ratio.mean() - kl_normal(mean, log_var)).abs() / (log_ratio.std() / math.sqrt(len(z)))
    assert error.item() < 4


def test_kl_normal_gradient():
    mean, log_var = random(4, 3).requires_grad_(), random(4, 3, seed=1).requires_grad_()
    kl_normal(mean, log_var).sum().backward()
    torch.testing.assert_close(mean.grad, mean.detach())
    torch.testing.assert_close(log_var.grad, 0.5 * (log_var.detach().exp() - 1))


def test_kl_normal_keeps_its_digits_next_to_the_prior():
    """At log_var = 1e-4 the KL is about 2.5e-9, which σ² - 1 - log σ² loses entirely in single precision."""
    log_var = torch.tensor([[1e-4, -3e-4]])
    exact = kl_normal(torch.zeros(1, 2, dtype=torch.float64), log_var.double())
    torch.testing.assert_close(kl_normal(torch.zeros(1, 2), log_var).double(), exact, rtol=1e-3, atol=0)
    zeros = torch.zeros(1, 2)
    value = kl_normals(zeros, log_var, zeros, zeros).double()
    torch.testing.assert_close(value, exact, rtol=1e-3, atol=0)


def test_kl_of_two_normals():
    mean_q, log_var_q, mean_p, log_var_p = (random(4, 3, 2, seed=seed) for seed in range(4))
    q, p = TorchNormal(mean_q, (log_var_q / 2).exp()), TorchNormal(mean_p, (log_var_p / 2).exp())
    forward = kl_normals(mean_q, log_var_q, mean_p, log_var_p)
    torch.testing.assert_close(forward, kl_divergence(q, p).sum((1, 2)))
    torch.testing.assert_close(kl_normals(mean_p, log_var_p, mean_q, log_var_q), kl_divergence(p, q).sum((1, 2)))
    assert (forward > 0).all()
    zeros = torch.zeros_like(mean_q)
    torch.testing.assert_close(kl_normals(mean_q, log_var_q, zeros, zeros), kl_normal(mean_q, log_var_q))
    assert torch.equal(kl_normals(mean_q, log_var_q, mean_q, log_var_q), torch.zeros(4, dtype=torch.float64))


def test_kl_of_a_full_covariance():
    mean, root = random(4, 3), random(4, 3, 3, seed=1)
    covariance = root @ root.mT + 0.1 * torch.eye(3, dtype=torch.float64)
    standard = MultivariateNormal(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    reference = kl_divergence(MultivariateNormal(mean, covariance), standard)
    torch.testing.assert_close(kl_normal_full(mean, covariance), reference)
    log_var = random(4, 3, seed=2)
    torch.testing.assert_close(kl_normal_full(mean, torch.diag_embed(log_var.exp())), kl_normal(mean, log_var))


def test_kl_of_a_full_covariance_has_the_known_gradient():
    root = random(2, 3, 3)
    covariance = (root @ root.mT + torch.eye(3, dtype=torch.float64)).requires_grad_()
    kl_normal_full(torch.zeros(2, 3, dtype=torch.float64), covariance).sum().backward()
    expected = 0.5 * (torch.eye(3, dtype=torch.float64) - torch.linalg.inv(covariance.detach()))
    torch.testing.assert_close(0.5 * (covariance.grad + covariance.grad.mT), expected)


def test_a_covariance_that_is_none_gives_nan_for_that_example_only():
    covariance = torch.stack([torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])])
    kl = kl_normal_full(torch.zeros(2, 2), covariance)
    assert kl[0] == 0 and kl[1].isnan()


@pytest.mark.parametrize(("mean", "covariance"), [((2, 3), (2, 3)), ((2, 3), (2, 3, 4)), ((3,), (3, 3))])
def test_full_covariance_shapes(mean, covariance):
    with pytest.raises(ValueError, match=r"mean is \(.*covariance is \(.*give \(batch, dims\) and"):
        kl_normal_full(torch.zeros(mean), torch.zeros(covariance))


def test_kl_shapes_are_never_broadcast():
    with pytest.raises(ValueError, match=r"mean is \(4, 3\), log_var is \(3,\)"):
        kl_normal(torch.zeros(4, 3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"mean_q is \(4, 3\).*mean_p is \(1, 3\)"):
        kl_normals(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(1, 3), torch.zeros(4, 3))


def test_kl_in_bfloat16_is_summed_in_single_precision():
    kl = kl_normal(torch.ones(1, 4096, dtype=torch.bfloat16), torch.zeros(1, 4096, dtype=torch.bfloat16))
    assert kl.dtype == torch.float32 and kl.item() == 2048


# -------------------------------------------------------------------------------------------------- floors and targets


def test_free_bits_hold_the_batch_mean_of_each_dimension():
    # Means 0.5, 1.5 and 0.25; the floor per example instead of per mean would give (1 + 0.4)/2 for the first.
    kl = torch.tensor([[1.0, 1.0, 0.5], [0.0, 2.0, 0.0]], requires_grad=True)
    value = free_bits(kl, nats=0.4)
    assert value.item() == pytest.approx(0.5 + 1.5 + 0.4)
    value.backward()
    assert torch.equal(kl.grad, torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]))
    assert free_bits(kl, nats=0).item() == pytest.approx(kl.sum(1).mean().item())


def test_free_bits_errors():
    with pytest.raises(ValueError, match=r"kl_per_dimension is \(4,\); give \(batch, dims\)"):
        free_bits(torch.zeros(4), nats=1)
    with pytest.raises(InputError, match="floor is -1 nats; give 0 or more"):
        free_bits(torch.zeros(4, 2), nats=-1)


@pytest.mark.parametrize(("target", "value", "gradient"), [(1.0, 1.0, 0.5), (5.0, 3.0, -0.5)])
def test_capacity_pulls_the_mean_from_both_sides(target, value, gradient):
    kl = torch.tensor([0.0, 4.0], requires_grad=True)
    loss = capacity(kl, target_nats=target)
    assert loss.item() == value
    loss.backward()
    assert torch.equal(kl.grad, torch.full((2,), gradient))


def test_capacity_takes_the_distance_after_the_mean():
    assert capacity(torch.tensor([0.0, 4.0]), target_nats=torch.tensor(2.0)).item() == 0
    with pytest.raises(ValueError, match=r"kl is \(2, 3\); give \(batch,\)"):
        capacity(torch.zeros(2, 3), target_nats=1.0)


def test_margin_has_no_gradient_above_it():
    kl = torch.tensor([0.0, 2.0, 3.5, 100.0], requires_grad=True)
    loss = margin(kl, nats=3.0)
    assert torch.equal(loss, torch.tensor([3.0, 1.0, 0.0, 0.0]))
    loss.sum().backward()
    assert torch.equal(kl.grad, torch.tensor([-1.0, -1.0, 0.0, 0.0]))


# ------------------------------------------------------------------------------------------ importance-weighted bounds


def test_one_importance_sample_is_the_elbo():
    log_weights = random(5, 1)
    assert torch.equal(importance_weighted_bound(log_weights), log_weights[:, 0])


def test_importance_weights_of_the_gradient_sum_to_one():
    log_weights = random(3, 7).requires_grad_()
    importance_weighted_bound(log_weights).sum().backward()
    torch.testing.assert_close(log_weights.grad, torch.softmax(log_weights.detach(), 1))


def test_importance_weighted_bound_does_not_overflow():
    assert importance_weighted_bound(torch.tensor([[1000.0, 1000.0], [-1000.0, -1000.0]])).tolist() == [1000, -1000]


def test_bounds_rise_to_the_exact_likelihood():
    """x = w z + noise with a posterior that is off: ELBO < IWAE_5 < IWAE_50 < log p(x), all known."""
    w, noise, x, batch = 1.3, 0.6, torch.tensor(0.9, dtype=torch.float64), 20_000
    exact = TorchNormal(0.0, math.sqrt(w**2 + noise**2)).log_prob(x).item()
    q = TorchNormal(torch.tensor(0.3, dtype=torch.float64), 0.7)
    z = q.loc + q.scale * random(batch, 50)
    log_weights = TorchNormal(0.0, 1.0).log_prob(z) + TorchNormal(w * z, noise).log_prob(x) - q.log_prob(z)
    bounds = [importance_weighted_bound(log_weights[:, :k]).mean().item() for k in (1, 5, 50)]
    posterior = TorchNormal(w * x / (w**2 + noise**2), noise / math.sqrt(w**2 + noise**2))
    assert exact - bounds[0] == pytest.approx(kl_divergence(q, posterior).item(), rel=0.05)
    assert bounds[0] < bounds[1] < bounds[2] < exact
    assert bounds[2] == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 2, 2)])
def test_importance_weights_need_two_dimensions(shape):
    with pytest.raises(ValueError, match=r"log_weights is \(4.*give \(batch, k\)"):
        importance_weighted_bound(torch.zeros(shape))


# ---------------------------------------------------------------------------------------------------------------- MMD


def mmd_by_loop(x: np.ndarray, y: np.ndarray, kernel: str, scales: list[float], unbiased: bool) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        d = float(((a - b) ** 2).sum())
        return sum(math.exp(-d / s) if kernel == "rbf" else s / (s + d) for s in scales)

    def within(a: np.ndarray) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(a)) if i != j or not unbiased]
        return sum(k(a[i], a[j]) for i, j in pairs) / len(pairs)

    return within(x) + within(y) - 2 * float(np.mean([[k(a, b) for b in y] for a in x]))


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("scales", [None, [0.5, 3.0]])
def test_mmd_agrees_with_a_double_loop(kernel, unbiased, scales):
    x, y = random(6, 3), 0.5 + random(4, 3, seed=1)
    # The default: 2 · dims · (0.1 … 10).
    used = scales or [0.6, 1.2, 3.0, 6.0, 12.0, 30.0, 60.0]
    expected = mmd_by_loop(x.numpy(), y.numpy(), kernel, used, unbiased)
    value = mmd(x, y, kernel=kernel, scales=scales, unbiased=unbiased)
    assert value.shape == () and value.item() == pytest.approx(expected, rel=1e-10)


def test_mmd_agrees_with_the_closed_form_for_gaussians():
    """E k(a, b) = Π (1 + 2v/s)^-½ exp(-δ²/(s + 2v)) for k = exp(-d²/s) and a - b ~ N(δ, v) in each dimension."""
    shift, std, scales, dims = torch.tensor([0.8, 0.0, -0.3], dtype=torch.float64), 1.5, (1.0, 6.0), 3

    def expected(delta: Tensor, variance: float) -> float:
        return sum(
            torch.prod((1 + 2 * variance / s) ** -0.5 * torch.exp(-(delta**2) / (s + 2 * variance))).item()
            for s in scales
        )

    none = torch.zeros(dims, dtype=torch.float64)
    exact = expected(none, 2.0) + expected(none, 2 * std**2) - 2 * expected(shift, 1 + std**2)
    draws = torch.stack(
        [
            mmd(random(150, dims, seed=i), shift + std * random(120, dims, seed=1000 + i), scales=scales)
            for i in range(200)
        ]
    )
    error = (draws.mean() - exact) / (draws.std() / math.sqrt(len(draws)))
    assert exact > 0.05 and error.abs().item() < 4


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_mmd_of_equal_distributions_is_zero_on_average(kernel):
    draws = torch.stack([mmd(random(30, 2, seed=i), random(20, 2, seed=1000 + i), kernel=kernel) for i in range(300)])
    assert (draws.mean() / (draws.std() / math.sqrt(len(draws)))).abs().item() < 4
    assert draws.min() < 0
    biased = torch.stack([mmd(random(30, 2, seed=i), random(20, 2, seed=1000 + i), unbiased=False) for i in range(20)])
    assert biased.min() > 0


def test_biased_mmd_of_a_set_with_itself_is_zero():
    x = random(8, 3).float()
    assert mmd(x, x, unbiased=False).item() == pytest.approx(0, abs=1e-5)
    assert mmd(x[:1], x[:1], unbiased=False).item() == pytest.approx(0, abs=1e-6)


def test_mmd_far_from_the_origin_in_single_precision():
    x, y = random(40, 3), 0.5 + random(40, 3, seed=1)
    near = mmd(x, y)
    far = mmd((x + 1000).float(), (y + 1000).float())
    assert far.item() == pytest.approx(near.item(), rel=1e-2)


def test_mmd_is_not_computed_in_bfloat16_under_autocast():
    x, y = random(40, 8).float(), 0.2 + random(40, 8, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        value = mmd(x, y)
    assert value.dtype == torch.float32 and torch.equal(value, mmd(x, y))


def test_mmd_gradient():
    x, y = random(5, 2).requires_grad_(), (1 + random(4, 2, seed=1)).requires_grad_()
    for kernel in ("rbf", "imq"):
        for unbiased in (True, False):
            assert torch.autograd.gradcheck(lambda a, b: mmd(a, b, kernel=kernel, unbiased=unbiased), (x, y))  # noqa: B023
    mmd(x, y).backward()
    # Descending moves x, which lies to the left and below, towards y.
    assert (x.grad.sum(0) < 0).all() and (y.grad.sum(0) > 0).all()


def test_mmd_errors():
    x = torch.zeros(4, 2)
    with pytest.raises(InputError, match="unknown kernel 'rbff'; did you mean 'rbf'"):
        mmd(x, x, kernel="rbff")
    for scales in ([], [1.0, 0.0], [-1.0]):
        with pytest.raises(InputError, match="give positive squared distances"):
            mmd(x, x, scales=scales)
    for other in (torch.zeros(4, 3), torch.zeros(4), torch.zeros(1, 2)):
        with pytest.raises(ValueError, match=r"x is \(4, 2\), y is \(.*n, m ≥ 2"):
            mmd(x, other)
    with pytest.raises(ValueError, match="n, m ≥ 1"):
        mmd(x, torch.zeros(0, 2), unbiased=False)
