"""Likelihoods against scipy, against sums over all outcomes, and against their own samples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from twofold.errors import InputError
from twofold.terms.likelihood import (
    LIKELIHOODS,
    LOG_SCALE_RANGE,
    Bernoulli,
    Categorical,
    DiscretizedLogisticMixture,
    Laplace,
    Likelihood,
    Normal,
    bernoulli_nll,
    build_likelihood,
    categorical_nll,
    discretized_logistic_mixture_nll,
    laplace_nll,
    normal_nll,
    soft_clamp,
)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------- functions


def test_bernoulli_is_minus_the_sum_of_the_log_probabilities():
    logits = random(4, 2, 3)
    x = (random(4, 2, 3, seed=1) > 0).double()
    expected = -stats.bernoulli.logpmf(x.numpy(), special.expit(logits.numpy())).sum((1, 2))
    np.testing.assert_allclose(bernoulli_nll(logits, x), expected, rtol=1e-12)


def test_bernoulli_of_grey_values_is_least_at_their_logit():
    x = torch.tensor([[0.2, 0.7]], dtype=torch.float64)
    logits = torch.logit(x).requires_grad_()
    bernoulli_nll(logits, x).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(x), atol=1e-12, rtol=0)


def test_bernoulli_at_logits_of_a_hundred():
    logits = torch.tensor([[100.0], [-100.0], [100.0], [-100.0], [0.0]], requires_grad=True)
    x = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0]])
    nll = bernoulli_nll(logits, x)
    torch.testing.assert_close(nll, torch.tensor([0.0, 0.0, 100.0, 100.0, math.log(2)]))
    nll.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0], [0.0], [1.0], [-1.0], [-0.5]]))


def test_normal_and_laplace_agree_with_scipy():
    mean, x, log_scale = random(3, 2, 4), random(3, 2, 4, seed=1), random(3, 2, 4, seed=2)
    scale = log_scale.exp().numpy()
    expected = -stats.norm.logpdf(x, mean, scale).sum((1, 2))
    np.testing.assert_allclose(normal_nll(mean, x, log_std=log_scale), expected, rtol=1e-12)
    expected = -stats.laplace.logpdf(x, mean, scale).sum((1, 2))
    np.testing.assert_allclose(laplace_nll(mean, x, log_scale=log_scale), expected, rtol=1e-12)
    expected = -stats.norm.logpdf(x, mean, math.exp(-0.7)).sum((1, 2))
    np.testing.assert_allclose(normal_nll(mean, x, log_std=-0.7), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (2, 1), (3, 1, 1), (3, 2, 4)])
def test_a_log_scale_that_broadcasts_counts_once_per_value(shape):
    mean, x, log_std = random(3, 2, 4), random(3, 2, 4, seed=1), random(*shape, seed=2)
    expected = -stats.norm.logpdf(x, mean, log_std.expand(3, 2, 4).exp()).sum((1, 2))
    np.testing.assert_allclose(normal_nll(mean, x, log_std=log_std), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 2), (5,), (1, 3, 2, 4), (2, 2, 4)])
def test_a_log_scale_that_does_not_broadcast_to_the_mean_is_an_error(shape):
    x = torch.zeros(3, 2, 4)
    with pytest.raises(ValueError, match=r"log_std is \(.*mean is \(3, 2, 4\); log_std must broadcast"):
        normal_nll(x, x, log_std=torch.zeros(shape))
    with pytest.raises(ValueError, match="log_scale must broadcast"):
        laplace_nll(x, x, log_scale=torch.zeros(shape))


def test_categorical_agrees_with_scipy():
    logits = random(2, 5, 3, 4, scale=3)
    x = torch.randint(0, 5, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    table = np.moveaxis(special.log_softmax(logits.numpy(), axis=1), 1, -1)
    expected = -np.take_along_axis(table, x.numpy()[..., None], -1).sum((1, 2, 3))
    np.testing.assert_allclose(categorical_nll(logits, x), expected, rtol=1e-12)
    np.testing.assert_allclose(categorical_nll(logits[:, :, 0, 0], x[:, 0, 0]), -table[range(2), 0, 0, x[:, 0, 0]])


def test_categorical_never_skips_a_label():
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        categorical_nll(torch.zeros(2, 5), torch.tensor([0, -100]))


def test_categorical_rejects_other_shapes_and_dtypes():
    with pytest.raises(ValueError, match=r"logits is \(2, 5, 3\), x is \(2, 4\)"):
        categorical_nll(torch.zeros(2, 5, 3), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x has dtype torch.int32; class indices are torch.int64"):
        categorical_nll(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int32))


@pytest.mark.parametrize("nll", [bernoulli_nll, normal_nll, laplace_nll])
def test_shapes_are_never_broadcast(nll):
    with pytest.raises(ValueError, match=r"is \(4, 1\), x is \(4,\)"):
        nll(torch.zeros(4, 1), torch.zeros(4))


@pytest.mark.parametrize("nll", [bernoulli_nll, normal_nll, laplace_nll])
def test_half_precision_is_summed_in_single(nll):
    # In bfloat16 a running sum of ones stops at 256.
    value = nll(torch.zeros(1, 4096, dtype=torch.bfloat16), torch.ones(1, 4096, dtype=torch.bfloat16))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, nll(torch.zeros(1, 4096), torch.ones(1, 4096)), rtol=1e-6, atol=0)


# ------------------------------------------------------------------------------------------- discretised logistics


def all_grid_values(levels: int, channels: int) -> Tensor:
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64)
    return torch.tensor(list(itertools.product(grid.tolist(), repeat=channels)), dtype=torch.float64)


@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 3), (1, 256), (2, 16), (3, 2), (3, 6), (4, 4)])
@pytest.mark.parametrize("spread", [0.5, 3.0, 40.0])
def test_mixture_probabilities_of_all_outcomes_sum_to_one(channels, levels, spread):
    x = all_grid_values(levels, channels)
    width = 1 + (3 if channels == 3 else 2) * channels
    for seed in range(5):
        params = random(1, 4 * width, seed=seed, scale=spread).expand(len(x), -1)
        total = torch.exp(-discretized_logistic_mixture_nll(params, x, levels=levels)).sum()
        assert total.item() == pytest.approx(1, abs=1e-10)


def reference_mixture_nll(params: np.ndarray, x: np.ndarray, levels: int) -> np.ndarray:
    """The definition, value by value: differences of the logistic distribution function."""
    batch, channels, *rest = x.shape
    groups = 3 if channels == 3 else 2
    k = params.shape[1] // (1 + groups * channels)
    half = 1 / (levels - 1)
    nll = np.zeros(batch)
    for b, *at in np.ndindex(batch, *rest):
        vector, value = params[(b, slice(None), *at)], x[(b, slice(None), *at)]
        weights = special.softmax(vector[:k])
        table = vector[k:].reshape(groups, channels, k)
        total = 0.0
        for m in range(k):
            product = weights[m]
            for c in range(channels):
                mean = table[0, c, m]
                if channels == 3 and c == 1:
                    mean += np.tanh(table[2, 0, m]) * value[0]
                if channels == 3 and c == 2:
                    mean += np.tanh(table[2, 1, m]) * value[0] + np.tanh(table[2, 2, m]) * value[1]
                scale = np.exp(table[1, c, m])
                top = 1.0 if value[c] > 1 - half else special.expit((value[c] + half - mean) / scale)
                bottom = 0.0 if value[c] < -1 + half else special.expit((value[c] - half - mean) / scale)
                product *= top - bottom
            total += product
        nll[b] -= np.log(total)
    return nll


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("rest", [(), (3,), (2, 3)])
def test_mixture_agrees_with_its_definition(channels, rest):
    levels, k = 17, 3
    params = random(2, k * (1 + (3 if channels == 3 else 2) * channels), *rest)
    x = torch.randint(0, levels, (2, channels, *rest), generator=torch.Generator().manual_seed(1)) * (2 / 16) - 1.0
    nll = discretized_logistic_mixture_nll(params, x.double(), levels=levels)
    np.testing.assert_allclose(nll, reference_mixture_nll(params.numpy(), x.double().numpy(), levels), rtol=1e-6)


def test_mixture_is_exact_in_the_tails_in_single_precision():
    """650 scales from its mean a bin's probability is e^-650: the difference of its sigmoids is 0 in any precision."""
    params = torch.tensor([[0.0, 0.9, -6.0]], requires_grad=True)
    x = torch.tensor([[2 * 32 / 255 - 1]])
    nll = discretized_logistic_mixture_nll(params, x)
    scale = soft_clamp(torch.tensor(-6.0, dtype=torch.float64), *LOG_SCALE_RANGE).exp().item()
    edge = (x.item() - 0.9 + 1 / 255) / scale
    assert edge < -500
    assert nll.item() == pytest.approx(-edge - math.log(-math.expm1(-2 / 255 / scale)), rel=1e-5)
    nll.sum().backward()
    assert params.grad[0, 1].item() == pytest.approx(1 / scale, rel=1e-4)


def test_mixture_gradient():
    params = random(2, 2 * 10, 2).requires_grad_()
    x = torch.randint(0, 4, (2, 3, 2), generator=torch.Generator().manual_seed(1)).double() * (2 / 3) - 1
    assert torch.autograd.gradcheck(lambda p: discretized_logistic_mixture_nll(p, x, levels=4), (params,))


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_mixture_stays_finite_for_absurd_parameters(size):
    params = random(8, 3 * 10, 4, scale=size).float().requires_grad_()
    x = torch.randint(0, 256, (8, 3, 4), generator=torch.Generator().manual_seed(1)) * (2 / 255) - 1
    nll = discretized_logistic_mixture_nll(params, x)
    nll.sum().backward()
    assert nll.isfinite().all() and params.grad.isfinite().all()


@pytest.mark.parametrize(
    ("params", "x"),
    [((2, 30, 4), (2, 3, 5)), ((2, 31, 4), (2, 3, 4)), ((1, 30, 4), (2, 3, 4)), ((2, 30), (2, 3, 4)), ((2, 0), (2, 1))],
)
def test_mixture_names_both_shapes(params, x):
    with pytest.raises(ValueError, match=r"params is \(.*, x is \(.*give x"):
        discretized_logistic_mixture_nll(torch.zeros(params), torch.zeros(x))


def test_mixture_needs_two_levels_and_channels():
    with pytest.raises(ValueError, match="levels is 1; give 2 or more"):
        discretized_logistic_mixture_nll(torch.zeros(2, 3), torch.zeros(2, 1), levels=1)
    with pytest.raises(ValueError, match=r"params is \(2,\), x is \(2,\)"):
        discretized_logistic_mixture_nll(torch.zeros(2), torch.zeros(2))


def test_soft_clamp_is_the_identity_inside_and_keeps_a_gradient_outside():
    values = torch.tensor([-8.0, 0.0, 8.0, -1e4, 1e4, -6.0, 5.0], dtype=torch.float64, requires_grad=True)
    clamped = soft_clamp(values, -7, 7)
    np.testing.assert_allclose(clamped.detach()[[1, 5, 6]], [0, -6 + 0.0045, 5 - 0.0001], atol=6e-5)
    assert clamped.min() >= -7 and clamped.max() <= 7 + 1e-6
    clamped.sum().backward()
    assert (values.grad[[0, 2]] > 0.01).all() and values.grad[1].item() == pytest.approx(1)


# ------------------------------------------------------------------------------------------------------------ modules

BOUNDED = [
    Bernoulli(),
    *(kind(True, scale=scale) for kind in (Normal, Laplace) for scale in ("fixed", "scalar", "output")),
    Categorical(levels=7),
    DiscretizedLogisticMixture(components=3, levels=7),
]
UNBOUNDED = [kind(False, scale=scale) for kind in (Normal, Laplace) for scale in ("fixed", "scalar", "output")]
named = pytest.mark.parametrize("likelihood", BOUNDED + UNBOUNDED, ids=repr)


@named
@pytest.mark.parametrize("shape", [(5, 3, 4, 2), (5, 1, 4, 2), (5, 2, 6), (5, 4)])
def test_shapes_ranges_gradients_and_seeds(likelihood: Likelihood, shape: tuple[int, ...]):
    params = random(shape[0], likelihood.outputs(shape[1]), *shape[2:]).float().requires_grad_()
    x = random(*shape, seed=1).float().clamp(-1, 1).mul(3).round().div(3)

    nll = likelihood.nll(params, x)
    assert nll.shape == (5,) and nll.isfinite().all()
    torch.testing.assert_close(likelihood(params, x), nll)
    # Examples are independent: the gradient of the first reaches the first only.
    (gradient,) = torch.autograd.grad(nll[0], params)
    assert gradient[0].abs().sum() > 0 and gradient[1:].abs().sum() == 0

    mean = likelihood.mean(params)
    assert mean.shape == shape
    if likelihood in BOUNDED:
        assert mean.abs().max() <= 1 + 1e-5
    assert torch.autograd.grad(mean.sum(), params)[0].abs().sum() > 0

    draws = [likelihood.sample(params, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert draws[0].shape == shape and not draws[0].requires_grad
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@named
def test_parameters_in_bfloat16_give_single_precision(likelihood: Likelihood):
    params = random(2, likelihood.outputs(3), 4).bfloat16()
    x = torch.zeros(2, 3, 4)
    assert likelihood.nll(params, x).dtype == torch.float32
    assert likelihood.mean(params).dtype == torch.float32
    assert likelihood.sample(params).dtype == torch.float32


@named
def test_wrong_shapes_are_named(likelihood: Likelihood):
    x = torch.zeros(2, 3, 4)
    for params in (torch.zeros(2, likelihood.outputs(3) + 1, 4), torch.zeros(2, likelihood.outputs(3), 1)):
        with pytest.raises(ValueError, match=r"params is \(2, .*x is \(2, 3, 4\); .* needs params"):
            likelihood.nll(params, x)
    with pytest.raises(ValueError, match=r"params is \(2,\), x is \(2,\)"):
        likelihood.nll(torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize(
    ("likelihood", "channels"),
    [
        (Normal(True, scale="output"), 3),
        (Laplace(False, scale="output"), 5),
        (Categorical(levels=7), 6),
        (DiscretizedLogisticMixture(components=2), 2 * 7),
        (DiscretizedLogisticMixture(components=2), 19),
    ],
    ids=repr,
)
def test_params_that_no_data_can_have(likelihood: Likelihood, channels: int):
    for call in (likelihood.mean, likelihood.sample):
        with pytest.raises(ValueError, match=rf"params is \(2, {channels}, 4\);"):
            call(torch.zeros(2, channels, 4))


# The mean of the logistic mixture leaves out the rounding to the grid and has its own test.
@pytest.mark.parametrize("likelihood", BOUNDED[:-1] + UNBOUNDED, ids=repr)
def test_the_mean_is_the_mean_of_samples(likelihood: Likelihood):
    n = 20_000
    params = random(1, likelihood.outputs(3), seed=5, scale=0.5)
    draws = likelihood.sample(params.expand(n, -1), generator=torch.Generator().manual_seed(0))
    error = (draws.mean(0) - likelihood.mean(params)[0]).abs() / (draws.std(0) / math.sqrt(n))
    assert error.max() < 4


@pytest.mark.parametrize("kind", [Normal, Laplace])
@pytest.mark.parametrize("scale", ["fixed", "scalar", "output"])
def test_samples_have_the_distribution_that_nll_scores(kind, scale):
    likelihood = kind(False, scale=scale, **{"log_std" if kind is Normal else "log_scale": -0.5})
    params = random(1, likelihood.outputs(1), seed=2)
    draws = likelihood.sample(params.expand(4000, -1), generator=torch.Generator().manual_seed(0))[:, 0]
    grid = torch.linspace(-25, 25, 20_001, dtype=torch.float64)
    density = torch.exp(-likelihood.nll(params.expand(len(grid), -1), grid[:, None])).detach()
    cumulative = torch.cumulative_trapezoid(density, grid)
    assert cumulative[-1].item() == pytest.approx(1, abs=1e-4)
    assert stats.kstest(draws.numpy(), lambda v: np.interp(v, grid[1:], cumulative)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("likelihood", "channels", "levels"),
    [
        (Bernoulli(), 2, 2),
        (Categorical(levels=4), 2, 4),
        (DiscretizedLogisticMixture(components=2, levels=3), 3, 3),
        (DiscretizedLogisticMixture(components=3, levels=4), 2, 4),
        (DiscretizedLogisticMixture(components=3, levels=9), 1, 9),
    ],
    ids=repr,
)
def test_sample_frequencies_match_probabilities(likelihood: Likelihood, channels: int, levels: int):
    n = 30_000
    params = random(1, likelihood.outputs(channels), seed=7)
    outcomes = all_grid_values(levels, channels)
    probability = torch.exp(-likelihood.nll(params.expand(len(outcomes), -1), outcomes))
    assert probability.sum().item() == pytest.approx(1, abs=1e-10)
    draws = likelihood.sample(params.expand(n, -1), generator=torch.Generator().manual_seed(0))
    counts = (draws[:, None] - outcomes[None]).abs().amax(2).lt(1e-6).sum(0)
    assert counts.sum() == n, "a sample off the grid"
    assert stats.chisquare(counts.numpy(), probability.numpy() * n).pvalue > 1e-3


def test_mixture_mean_is_exact_up_to_rounding():
    likelihood = DiscretizedLogisticMixture(components=3, levels=256)
    params = random(20, likelihood.outputs(1), scale=2)
    grid = all_grid_values(256, 1)
    for row, mean in zip(params, likelihood.mean(params), strict=True):
        probability = torch.exp(-likelihood.nll(row.expand(len(grid), -1), grid))
        assert mean.item() == pytest.approx((probability * grid[:, 0]).sum().item(), abs=1 / 255)


def test_mixture_mean_follows_the_coupling_of_channels():
    """One sharp component, red 0.5: green's coefficient adds tanh(1) · 0.5, blue's add from both."""
    likelihood = DiscretizedLogisticMixture(components=1)
    params = torch.tensor([[0.0, 0.5, -0.2, 0.1, -6.0, -6.0, -6.0, 1.0, -1.0, 0.5]])
    green = -0.2 + math.tanh(1) * 0.5
    blue = 0.1 + math.tanh(-1) * 0.5 + math.tanh(0.5) * green
    np.testing.assert_allclose(likelihood.mean(params)[0], [0.5, green, blue], atol=1e-3)
    draws = likelihood.sample(params.expand(500, -1), generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(draws.mean(0), [0.5, green, blue], atol=3e-3)


@pytest.mark.parametrize("mean", [-1e4, -3.0, 0.0, 3.0, 1e4])
@pytest.mark.parametrize("log_scale", [-30.0, 0.0, 30.0])
def test_mixture_mean_stays_in_range_and_keeps_its_slope(mean, log_scale):
    params = torch.tensor([[0.0, mean, log_scale]], requires_grad=True)
    value = DiscretizedLogisticMixture(components=1).mean(params)
    assert value.abs().item() <= 1 + 1e-6
    (gradient,) = torch.autograd.grad(value.sum(), params)
    assert gradient.isfinite().all() and gradient[0, 1] >= 0
    if mean == 0:
        assert gradient[0, 1] > 0


def test_mixture_mean_is_odd_and_keeps_its_digits_in_single_precision():
    means = torch.linspace(-60, 60, 241)
    params = torch.stack([torch.zeros(241), means, torch.full((241,), -6.0)], dim=1)
    likelihood = DiscretizedLogisticMixture(components=1)
    values = likelihood.mean(params)
    torch.testing.assert_close(values.double(), likelihood.mean(params.double()), atol=1e-6, rtol=0)
    assert values.abs().max() <= 1
    torch.testing.assert_close(values, -values.flip(0), atol=1e-6, rtol=0)


def test_bernoulli_maps_the_range_of_images_to_bits():
    params = torch.tensor([[2.0, 2.0]])
    nll = [Bernoulli().nll(params, torch.tensor([[a, b]])).item() for a, b in [(-1.0, -1.0), (1.0, 1.0)]]
    np.testing.assert_allclose(nll, [2 * math.log1p(math.exp(2)), 2 * math.log1p(math.exp(-2))], rtol=1e-6)
    np.testing.assert_allclose(Bernoulli().mean(params)[0], 2 * special.expit([2.0, 2.0]) - 1, rtol=1e-6)
    assert set(Bernoulli().sample(torch.zeros(100, 1)).unique().tolist()) == {-1.0, 1.0}


def test_fixed_unit_normal_is_half_the_squared_error():
    params, x = random(3, 2, 4), random(3, 2, 4, seed=1)
    expected = 0.5 * (torch.tanh(params) - x).square().sum((1, 2)) + 4 * math.log(2 * math.pi)
    torch.testing.assert_close(Normal(True, scale="fixed").nll(params, x), expected)
    expected = 0.5 * (params - x).square().sum((1, 2)) + 4 * math.log(2 * math.pi)
    torch.testing.assert_close(Normal(False, scale="fixed").nll(params, x), expected)


def test_learned_scalar_is_optimal_at_the_root_mean_square_error():
    mean, x = random(8, 4), random(8, 4, seed=1, scale=0.3)
    best = 0.5 * (mean - x).square().mean().log()
    likelihood = Normal(False, scale="scalar", log_std=best.item())
    likelihood.nll(mean, x).sum().backward()
    assert abs(likelihood.log_scale.grad.item()) < 0.1
    for offset, sign in [(-0.2, -1), (0.2, 1)]:
        likelihood = Normal(False, scale="scalar", log_std=best.item() + offset)
        likelihood.nll(mean, x).sum().backward()
        assert math.copysign(1, likelihood.log_scale.grad.item()) == sign


def test_only_the_scalar_scale_is_a_parameter():
    counts = {scale: len(list(Normal(True, scale=scale).parameters())) for scale in ("fixed", "scalar", "output")}
    assert counts == {"fixed": 0, "scalar": 1, "output": 0}


def test_output_scale_is_read_from_the_second_half():
    likelihood = Laplace(False, scale="output", log_scale=0.5)
    params, x = random(3, 4, 2), random(3, 2, 2, seed=1)
    log_scale = soft_clamp(params[:, 2:] + 0.5, *LOG_SCALE_RANGE)
    expected = -stats.laplace.logpdf(x, params[:, :2], log_scale.exp()).sum((1, 2))
    np.testing.assert_allclose(likelihood.nll(params, x), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", [Normal, Laplace])
def test_a_perfect_reconstruction_cannot_make_the_density_infinite(kind):
    likelihood = kind(False, scale="output")
    params = torch.cat([torch.zeros(1, 3), torch.full((1, 3), -1e6)], dim=1).requires_grad_()
    nll = likelihood.nll(params, torch.zeros(1, 3))
    assert nll.item() >= 3 * (LOG_SCALE_RANGE[0] + 0.5)
    nll.sum().backward()
    assert params.grad.isfinite().all()


# -------------------------------------------------------------------------------------------------------------- names


def test_every_name_builds_its_likelihood():
    for name, kind in LIKELIHOODS.items():
        assert type(build_likelihood(name, bounded=True)) is kind
    normal = build_likelihood("normal", bounded=False, scale="output")
    assert isinstance(normal, Normal) and not normal.bounded and normal.scale == "output"
    assert build_likelihood("categorical", bounded=True, levels=17).outputs(2) == 34
    assert build_likelihood("logistic-mixture", bounded=True).outputs(3) == 100


def test_bad_choices_are_explained():
    with pytest.raises(InputError, match="unknown likelihood 'gaussian'"):
        build_likelihood("gaussian", bounded=True)
    for name in ("normal", "bernoulli"):
        with pytest.raises(InputError, match="unknown scale 'scaler'; did you mean 'scalar'"):
            build_likelihood(name, bounded=True, scale="scaler")
    for name in ("bernoulli", "categorical", "logistic-mixture"):
        with pytest.raises(InputError, match=f"{name}.*known bounds.*normal or laplace"):
            build_likelihood(name, bounded=False)
    for name in ("categorical", "logistic-mixture"):
        with pytest.raises(InputError, match="levels is 1; give 2 or more"):
            build_likelihood(name, bounded=True, levels=1)
    with pytest.raises(InputError, match="unknown scale"):
        Laplace(True, scale="free")
    with pytest.raises(InputError, match="log-scale of a likelihood is nan"):
        Normal(True, scale="fixed", log_std=math.nan)
    with pytest.raises(InputError, match=r"learned log-scale starts at -8.0; give a number between -7.0 and 7.0"):
        Normal(True, scale="scalar", log_std=-8.0)
    with pytest.raises(InputError, match="mixture of 0 components"):
        DiscretizedLogisticMixture(components=0)
