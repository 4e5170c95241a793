"""Codes: draws against their moments, gradients against closed forms, paths against geometry."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import scipy.spatial
import scipy.stats
import torch

import twofold.latents
from twofold.errors import InputError
from twofold.latents import (
    gumbel_softmax_sample,
    lerp,
    nearest_code,
    perplexity,
    prior,
    sample_normal,
    slerp,
    split_mean_log_var,
    straight_through,
)

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


# sample_normal


def test_sample_normal_has_the_moments_and_the_law():
    n = 40_000
    mean, log_var = torch.tensor([1.5, -2.0]).expand(n, 2), torch.tensor([0.7, -1.3]).expand(n, 2)
    z = sample_normal(mean, log_var, generator=seeded())
    for k in range(2):
        sd = math.exp(log_var[0, k].item() / 2)
        assert scipy.stats.kstest(z[:, k].numpy(), scipy.stats.norm(mean[0, k].item(), sd).cdf).pvalue > 0.01
    assert abs(np.corrcoef(z.T.numpy())[0, 1]) < 5 / n**0.5


def test_reparameterised_gradients_are_the_closed_forms():
    """E[z²] = mean² + exp(log_var): its derivatives are 2·mean and exp(log_var)."""
    n = 200_000
    mean = torch.tensor([0.8], dtype=F64, requires_grad=True)
    log_var = torch.tensor([-0.4], dtype=F64, requires_grad=True)
    z = sample_normal(mean.expand(n), log_var.expand(n), generator=seeded())
    d_mean, d_log_var = torch.autograd.grad(z.square().mean(), [mean, log_var])
    sd = math.exp(-0.2)
    assert d_mean.item() == pytest.approx(1.6, abs=5 * 2 * sd / n**0.5)
    # Per draw z·σ·ε, with variance below 2·(mean²σ² + 3σ⁴).
    assert d_log_var.item() == pytest.approx(sd**2, abs=5 * (2 * (0.64 * sd**2 + 3 * sd**4) / n) ** 0.5)


def test_sample_normal_repeats_under_a_seed_and_leaves_the_global_generator_alone():
    mean = torch.zeros(3, 2, dtype=F64)
    state = torch.random.get_rng_state()
    one, two, other = (sample_normal(mean, mean, generator=seeded(s)) for s in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.dtype == F64


def test_sample_normal_refuses_shapes_that_would_broadcast():
    with pytest.raises(InputError, match=r"mean is \(3, 3\) and log_var is \(3,\); give equal shapes"):
        sample_normal(torch.zeros(3, 3), torch.zeros(3))


# split_mean_log_var


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_log_var_is_exact_with_slope_one_in_the_useful_range(dtype):
    raw = torch.linspace(-10, 10, 401).to(dtype).requires_grad_()
    mean, log_var = split_mean_log_var(torch.stack([raw * 7, raw], dim=1))
    assert torch.equal(log_var[:, 0], raw) and torch.equal(mean[:, 0], raw * 7)
    (slope,) = torch.autograd.grad(log_var.sum(), raw)
    assert torch.equal(slope, torch.ones_like(slope))


def test_log_var_beyond_is_the_formula_monotone_bounded_and_never_without_gradient():
    raw = torch.cat([-torch.logspace(1.001, 6, 200, dtype=F64).flip(0), torch.logspace(1.001, 6, 200, dtype=F64)])
    raw.requires_grad_()
    _, log_var = split_mean_log_var(torch.stack([raw, raw], dim=1))
    expected = raw.sign() * (20 - 100 / raw.abs())
    torch.testing.assert_close(log_var[:, 0], expected)
    assert (log_var[:, 0].diff() > 0).all() and log_var.abs().max() < 20
    (slope,) = torch.autograd.grad(log_var.sum(), raw)
    torch.testing.assert_close(slope, 100 / raw.square())
    assert (slope > 0).all()


def test_log_var_stays_finite_where_exp_would_not_and_hides_no_nan():
    raw = torch.tensor([1e30, 3e38, math.inf, -math.inf, 200.0], requires_grad=True)
    _, log_var = split_mean_log_var(torch.stack([torch.zeros(5), raw], dim=1))
    assert log_var.exp().square().isfinite().all()
    assert log_var[2].item() == 20 and log_var[3].item() == -20
    (slope,) = torch.autograd.grad(log_var.exp().sum(), raw)
    assert slope.isfinite().all()
    assert split_mean_log_var(torch.tensor([[0.0, math.nan]]))[1].isnan().all()


def test_a_variance_that_ran_away_is_pulled_back():
    """A clamp would leave it without a gradient; here the KL alone brings it home."""
    raw = torch.tensor([[0.0, 60.0]], dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=1.0)
    for _ in range(200):
        _, log_var = split_mean_log_var(raw)
        loss = 0.5 * (log_var.exp() - 1 - log_var).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(raw[0, 1].item()) < 12


def test_split_halves_dimension_one():
    params = torch.arange(2 * 6 * 3.0).reshape(2, 6, 3) / 10
    mean, log_var = split_mean_log_var(params)
    assert torch.equal(mean, params[:, :3]) and torch.equal(log_var, params[:, 3:])


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 0)])
def test_split_refuses(shape):
    with pytest.raises(InputError, match=r"give \(batch, 2·latent, …\)"):
        split_mean_log_var(torch.zeros(shape))


# prior


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        ("normal", scipy.stats.norm()),
        ("uniform", scipy.stats.uniform(-1, 2)),
        ("uniform-sqrt3", scipy.stats.uniform(-(3**0.5), 2 * 3**0.5)),
    ],
)
def test_prior_has_its_law(kind, law):
    z = prior(5_000, 4, kind=kind, generator=seeded())
    assert scipy.stats.kstest(z.flatten().numpy(), law.cdf).pvalue > 0.01
    assert z.var().item() == pytest.approx(law.var(), rel=0.05)


def test_prior_takes_dtype_and_device_and_repeats_under_a_seed():
    like = torch.zeros(1, dtype=F64)
    one, two = (prior(3, 2, like=like, generator=seeded(5)) for _ in range(2))
    assert one.dtype == F64 and torch.equal(one, two)
    assert prior(3, 2, like=like, dtype=torch.float32).dtype == torch.float32
    assert prior(3, 2, like=like, device="meta").device.type == "meta"
    assert prior(3, 2).dtype == torch.get_default_dtype()
    assert prior(0, 2).shape == (0, 2)


def test_prior_refuses():
    with pytest.raises(InputError, match="unknown prior 'normla'; did you mean 'normal'"):
        prior(1, 1, kind="normla")
    for sizes in ((-1, 2), (3, 0)):
        with pytest.raises(InputError, match=f"asked for {sizes[0]} codes of {sizes[1]} values"):
            prior(*sizes)


# lerp and slerp


@pytest.mark.parametrize("path", [lerp, slerp])
def test_ends_and_shapes(path):
    a, b = rand(5, 3, seed=1), rand(5, 3, seed=2)
    torch.testing.assert_close(path(a, b, 0.0), a, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(path(a, b, 1.0), b, rtol=1e-12, atol=1e-14)
    each = torch.linspace(0, 1, 5, dtype=F64)
    points = path(a, b, each)
    for k in range(5):
        torch.testing.assert_close(points[k], path(a[k], b[k], each[k].item()))
    assert path(a[0], b[0], each).shape == (5, 3)
    assert path(a[:, None], b[:, None], torch.linspace(0, 1, 7)).shape == (5, 7, 3)
    assert path(a.float(), b.float(), 0.5).dtype == torch.float32
    assert path(a.bfloat16(), b.bfloat16(), 0.5).dtype == torch.bfloat16


def test_lerp_ends_are_exact():
    a, b = 1e6 * rand(50, seed=1), rand(50, seed=2)
    assert torch.equal(lerp(a, b, 0.0), a) and torch.equal(lerp(a, b, 1.0), b)


def test_slerp_turns_at_constant_speed_in_the_plane_of_its_ends():
    a, b = rand(6, seed=1), 3 * rand(6, seed=2)
    t = torch.linspace(0, 1, 11, dtype=F64)
    points = slerp(a, b, t)
    units = points / points.norm(dim=1, keepdim=True)
    whole = torch.acos((units[0] * units[-1]).sum())
    torch.testing.assert_close(torch.acos((units[:-1] * units[1:]).sum(1)), (whole / 10).expand(10))
    torch.testing.assert_close(points.norm(dim=1), torch.lerp(a.norm(), b.norm(), t))
    assert torch.linalg.matrix_rank(points, tol=1e-9) == 2


def test_slerp_between_unit_vectors_agrees_with_scipy():
    """Rotations by slerp of quaternions are the reference."""
    from scipy.spatial.transform import Rotation, Slerp

    quaternions = np.array([[0.1, 0.2, 0.3, 0.9], [0.4, -0.1, 0.5, 0.7]])
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    t = np.linspace(0, 1, 6)
    expected = Slerp([0, 1], Rotation.from_quat(quaternions))(t).as_quat()
    got = slerp(*torch.from_numpy(quaternions), torch.from_numpy(t)).numpy()
    np.testing.assert_allclose(got * np.sign((got * expected).sum(1, keepdims=True)), expected, atol=1e-12)


def test_slerp_keeps_the_length_where_lerp_loses_it():
    a, b = (v / v.norm() for v in (rand(100, seed=1), rand(100, seed=2)))
    assert slerp(a, b, 0.5).norm().item() == pytest.approx(1)
    assert lerp(a, b, 0.5).norm().item() < 0.8


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 2.0], [2.0, 4.0]),
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([0.0, 0.0], [1.0, 2.0]),
        ([1.0, 2.0], [0.0, 0.0]),
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_slerp_without_an_arc_is_lerp_with_finite_gradients(a, b):
    start, end = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (a, b))
    t = torch.tensor([0.0, 0.3, 1.0], dtype=F64)
    points = slerp(start, end, t)
    torch.testing.assert_close(points, lerp(start, end, t))
    for gradient in torch.autograd.grad(points.sum(), [start, end]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("angle", [1e-9, 1e-7, 1e-4, 3.1, 3.1415])
def test_slerp_is_accurate_at_tiny_and_wide_angles(angle):
    a = torch.tensor([1.0, 0.0], dtype=F64)
    b = torch.tensor([math.cos(angle), math.sin(angle)], dtype=F64)
    point = slerp(a, b, 0.25)
    assert math.atan2(point[1].item(), point[0].item()) == pytest.approx(0.25 * angle, rel=1e-7)


# Discrete codes


def test_straight_through_is_exact_forwards_and_the_identity_backwards():
    z = (1e4 * rand(20, 3)).float().requires_grad_()
    z_q = rand(20, 3, seed=2).float().requires_grad_()
    out = straight_through(z, z_q)
    assert torch.equal(out, z_q)
    # The usual form rounds: the reason for ours.
    assert not torch.equal(z + (z_q - z).detach(), z_q)
    weight = torch.arange(60.0).reshape(20, 3)
    (gradient,) = torch.autograd.grad((weight * out).sum(), z, retain_graph=True)
    assert torch.equal(gradient, weight)
    assert torch.autograd.grad(out.sum(), z_q, allow_unused=True) == (None,)


def test_straight_through_refuses():
    with pytest.raises(InputError, match=r"z is \(2, 3\) and z_q is \(3,\)"):
        straight_through(torch.zeros(2, 3), torch.zeros(3))


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_nearest_code_is_brute_force(offset):
    """Also far from the origin, where |z|² - 2z·c + |c|² in float32 has no digits left for the difference."""
    z, codebook = (rand(3, 40, 4, seed=1) + offset).float(), (rand(30, 4, seed=2) + offset).float()
    distances = scipy.spatial.distance.cdist(z.reshape(-1, 4).double().numpy(), codebook.double().numpy())
    got = nearest_code(z, codebook)
    assert got.shape == (3, 40) and got.dtype == torch.int64
    assert np.array_equal(got.flatten().numpy(), distances.argmin(1))


def test_nearest_code_is_not_rounded_under_autocast_and_carries_no_gradient():
    codebook = torch.linspace(1, 2, 1000)[:, None].requires_grad_()
    z = codebook.detach().clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = nearest_code(z, codebook)
    assert torch.equal(got, torch.arange(1000))
    assert not got.requires_grad


@pytest.mark.parametrize(("z", "codebook"), [((2, 3), (4, 2)), ((2, 3), (3,)), ((2, 3), (0, 3)), ((), (4, 1))])
def test_nearest_code_refuses(z, codebook):
    with pytest.raises(InputError, match=r"give \(…, latent\) and \(codes, latent\)"):
        nearest_code(torch.zeros(z), torch.zeros(codebook))


def test_perplexity_is_the_exponential_of_scipys_entropy_between_one_and_all():
    for seed in range(5):
        indices = torch.randint(0, 3 + 4 * seed, (4, 50), generator=seeded(seed))
        counts = np.bincount(indices.flatten().numpy(), minlength=30)
        got = perplexity(indices, 30).item()
        assert got == pytest.approx(math.exp(scipy.stats.entropy(counts)), rel=1e-5)
        assert 1 <= got <= 30
    assert perplexity(torch.full((9,), 7), 30).item() == 1
    assert perplexity(torch.arange(30).repeat(3), 30).item() == pytest.approx(30, rel=1e-6)
    assert perplexity(torch.zeros(5, dtype=torch.int64), 1).item() == 1


def test_perplexity_refuses():
    with pytest.raises(InputError, match="perplexity of 0 indices into 4 codes"):
        perplexity(torch.zeros(0, dtype=torch.int64), 4)
    with pytest.raises(InputError, match="into 0 codes"):
        perplexity(torch.zeros(2, dtype=torch.int64), 0)
    with pytest.raises(RuntimeError):
        perplexity(torch.tensor([4]), 4)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_hard_gumbel_draws_are_categorical_at_any_temperature(temperature):
    n = 20_000
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = gumbel_softmax_sample(
        (probabilities.log() + 3).expand(n, 4), temperature=temperature, hard=True, generator=seeded()
    )
    assert torch.equal(draws.sum(1), torch.ones(n)) and set(draws.unique().tolist()) == {0.0, 1.0}
    assert (
        scipy.stats.chisquare(
            draws.sum(0).numpy(), (n * probabilities.double() / probabilities.double().sum()).numpy()
        ).pvalue
        > 0.01
    )


def test_soft_gumbel_draws_have_the_concrete_law():
    """Two codes: logit of the first is (l₁ - l₂ + Logistic) / temperature."""
    draws = gumbel_softmax_sample(
        torch.tensor([0.7, -0.5], dtype=F64).expand(5_000, 2), temperature=2.0, generator=seeded()
    )
    logits = torch.logit(draws[:, 0]).numpy()
    assert scipy.stats.kstest(logits, scipy.stats.logistic(0.6, 0.5).cdf).pvalue > 0.01
    torch.testing.assert_close(draws.sum(1), torch.ones(5_000, dtype=F64))


def test_hard_gumbel_has_the_soft_gradient_and_both_repeat_under_a_seed():
    logits = rand(6, 5).requires_grad_()
    weight = rand(6, 5, seed=2)
    state = torch.random.get_rng_state()
    gradients = [
        torch.autograd.grad(
            (weight * gumbel_softmax_sample(logits, temperature=0.7, hard=hard, generator=seeded(9))).sum(), logits
        )[0]
        for hard in (False, True)
    ]
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0


def test_soft_gumbel_gradient_is_that_of_the_formula():
    logits = rand(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: gumbel_softmax_sample(v, temperature=0.8, generator=seeded(3)), (logits,))


def test_gumbel_in_low_precision_and_with_a_tensor_temperature():
    out = gumbel_softmax_sample(torch.zeros(4, 3).bfloat16(), temperature=torch.tensor(0.5), generator=seeded())
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_gumbel_refuses(temperature):
    with pytest.raises(InputError, match="temperature is .*; give a number above 0"):
        gumbel_softmax_sample(torch.zeros(2, 2), temperature=temperature)


def test_examples_in_the_docs_run():
    failed, tried = doctest.testmod(twofold.latents)
    assert failed == 0 and tried > 0
