"""Adversarial losses against the theory: values at the optimum, divergences, Wasserstein distances, and every sign."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import Normal

from twofold.errors import InputError
from twofold.terms.adversarial import (
    ADVERSARIAL,
    Hinge,
    LeastSquares,
    LogRatio,
    Minimax,
    NonSaturating,
    Relativistic,
    RelativisticAverage,
    Wasserstein,
    bce_fake,
    bce_real,
    build_adversarial,
    deceive_kinds,
    discriminate_kinds,
    how_to_weigh,
    log_ratio_generator,
)

LOSSES = [
    Minimax(),
    Minimax(real_label=0.9),
    NonSaturating(),
    NonSaturating(real_label=0.9),
    LogRatio(),
    LogRatio(real_label=0.9),
    LeastSquares(),
    LeastSquares(a=-1, b=1, c=0),
    Hinge(),
    Wasserstein(),
    Relativistic(),
    RelativisticAverage(),
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=repr)


def nodes(mean: float, n: int = 20_000) -> Tensor:
    """Midpoints of n equally likely slices of N(mean, 1): averages over them are integrals."""
    return mean + torch.from_numpy(stats.norm.ppf((np.arange(n) + 0.5) / n))


def optimal_logit(x: Tensor, m: float) -> Tensor:
    """log p/q of N(0, 1) and N(m, 1)."""
    return -m * x + m**2 / 2


def tensors(*values: list[float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values)


# ----------------------------------------------------------------------------------------------- values at the optimum


@pytest.mark.parametrize(("m", "value"), [(0, -1.38629), (1, -1.16345), (2, -0.71263)])
def test_value_at_the_optimal_discriminator(m, value):
    """V(D*) = -2 log 2 + 2 JSD."""
    grid = torch.linspace(-12, 14, 40_001, dtype=torch.float64)
    p, q = Normal(0.0, 1.0).log_prob(grid).exp(), Normal(float(m), 1.0).log_prob(grid).exp()
    logit = optimal_logit(grid, m)
    by_quadrature = -integrate.trapezoid((p * bce_real(logit) + q * bce_fake(logit)).numpy(), grid.numpy())
    assert by_quadrature == pytest.approx(value, abs=1e-5)
    real, fake = optimal_logit(nodes(0), m), optimal_logit(nodes(m), m)
    for loss in (Minimax(), NonSaturating(), LogRatio()):
        assert -loss.discriminator(real, fake).item() == pytest.approx(value, abs=2e-5)


@pytest.mark.parametrize("m", [1.0, 2.0])
@pytest.mark.parametrize("loss", [Minimax(), NonSaturating()], ids=repr)
def test_minimising_the_discriminator_loss_finds_the_density_ratio(m, loss):
    real, fake = nodes(0, 2000), nodes(m, 2000)
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss.discriminator(weights[0] * real + weights[1], weights[0] * fake + weights[1])
        value.backward()
        return value

    optimiser.step(closure)
    np.testing.assert_allclose(weights.detach(), [-m, m**2 / 2], rtol=1e-2)


@pytest.mark.parametrize("m", [0.5, 1.0, 2.0])
def test_log_ratio_is_the_kl_of_generated_from_real(m):
    """E_q [log(1 - C) - log C] = KL(q ‖ p) = m²/2 at the optimal C, in the sign that a generator minimises."""
    codes = nodes(m)
    logit = optimal_logit(codes, m)
    assert log_ratio_generator(logit).mean().item() == pytest.approx(m**2 / 2, rel=1e-6)
    torch.testing.assert_close(log_ratio_generator(logit), bce_real(logit) - bce_fake(logit))


def test_label_smoothing_moves_the_optimum_to_the_label():
    """Where only real examples lie the smoothed discriminator says 0.9, and log 9 is a stationary point."""
    (logits,) = tensors([math.log(9.0)])
    bce_real(logits, 0.9).sum().backward()
    assert logits.grad.item() == pytest.approx(0, abs=1e-12)
    for loss in (Minimax(0.9), NonSaturating(0.9), LogRatio(0.9)):
        real, fake = tensors([0.3, -2.0], [1.0])
        expected = (0.9 * bce_real(real) + 0.1 * bce_fake(real)).mean() + bce_fake(fake).mean()
        torch.testing.assert_close(loss.discriminator(real, fake), expected)
        # One-sided: neither the generated half nor the generator is smoothed.
        torch.testing.assert_close(loss.generator(fake), type(loss)().generator(fake))


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (-1.0, 1.0)])
def test_least_squares_optimum_is_the_weighted_target(a, b):
    """With p real and q generated examples at one point, D* = (b p + a q) / (p + q)."""
    p, q = 3, 5
    (level,) = tensors([(b * p + a * q) / (p + q)])
    loss = p * LeastSquares(a, b).discriminator(level, torch.full((1,), a, dtype=torch.float64))
    loss = loss + q * LeastSquares(a, b).discriminator(torch.full((1,), b, dtype=torch.float64), level)
    loss.backward()
    assert level.grad.item() == pytest.approx(0, abs=1e-12)


def test_least_squares_at_its_optimum_is_half_a_pearson_chi_square():
    loss, m = LeastSquares(a=-1, b=1, c=0), 1.0

    def optimal(x: Tensor) -> Tensor:
        p, q = Normal(0.0, 1.0).log_prob(x).exp(), Normal(m, 1.0).log_prob(x).exp()
        return (p - q) / (p + q)

    # 2 C(G) counts the generator's loss over real examples too, which no generator can change.
    twice = 2 * (loss.generator(optimal(nodes(0))) + loss.generator(optimal(nodes(m))))
    grid = np.linspace(-12, 14, 40_001)
    p, q = stats.norm.pdf(grid), stats.norm.pdf(grid, m)
    chi_square = integrate.trapezoid((p + q - 2 * q) ** 2 / (p + q), grid)
    assert chi_square == pytest.approx(0.40811, abs=1e-5)
    assert twice.item() == pytest.approx(chi_square, abs=2e-5)


def kantorovich_potential(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The optimal 1-Lipschitz critic in one dimension: its slope is the sign of F_fake - F_real."""
    at = np.sort(np.concatenate([real, fake]))
    middle = (at[1:] + at[:-1]) / 2
    slope = np.sign((fake[None] <= middle[:, None]).mean(1) - (real[None] <= middle[:, None]).mean(1))
    return at, np.concatenate([[0.0], np.cumsum(slope * np.diff(at))])


@pytest.mark.parametrize("seed", range(4))
def test_wasserstein_loss_of_the_optimal_critic_is_minus_the_distance(seed):
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(0, 1, 200), rng.normal(1, 2, 150)
    at, values = kantorovich_potential(real, fake)
    logits = [torch.from_numpy(np.interp(x, at, values)) for x in (real, fake)]
    assert -Wasserstein().discriminator(*logits).item() == pytest.approx(stats.wasserstein_distance(real, fake))


def test_wasserstein_loss_of_shifted_gaussians():
    real, fake = nodes(0), nodes(1.7)
    assert -Wasserstein().discriminator(-real, -fake).item() == pytest.approx(1.7)


# ------------------------------------------------------------------------------------------------- gradients and signs


@every_loss
def test_each_side_pushes_its_own_way(loss):
    """Descending, the discriminator raises real logits and lowers generated ones; the generator raises its own."""
    # Real logits below and generated ones above every target of least squares.
    real, fake = tensors([-0.4, 0.3, 0.1], [0.5, 0.2, 0.05])
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    # LeastSquares(-1, 1, 0) aims its fakes at 0, from below.
    real, fake = tensors([0.4, 0.3, 0.1], [-0.5, -0.2, -0.05])
    loss.generator(fake, real if loss.needs_real else None).backward()
    assert (fake.grad < 0).all()
    if loss.needs_real:
        assert (real.grad > 0).all()


@every_loss
def test_gradient_sizes_are_means_over_the_logits(loss):
    real, fake = tensors([-0.4, 0.3], [0.5, -0.2])
    once = loss.discriminator(real, fake), loss.generator(fake, real)
    doubled = torch.cat([real, real]), torch.cat([fake, fake])
    torch.testing.assert_close(loss.discriminator(*doubled), once[0])
    torch.testing.assert_close(loss.generator(doubled[1], doubled[0]), once[1])
    patches = real.reshape(1, 1, 2, 1), fake.reshape(1, 1, 2, 1)
    torch.testing.assert_close(loss.discriminator(*patches), once[0])
    torch.testing.assert_close(loss.generator(patches[1], patches[0]), once[1])
    assert once[0].shape == once[1].shape == ()


@pytest.mark.parametrize(
    ("generator", "gradient"),
    [
        (lambda d: Minimax().generator(d), lambda D: -D),
        (lambda d: NonSaturating().generator(d), lambda D: -(1 - D)),
        (lambda d: LogRatio().generator(d), lambda D: -torch.ones_like(D)),
        (lambda d: Wasserstein().generator(d), lambda D: -torch.ones_like(D)),
        (lambda d: Hinge().generator(d), lambda D: -torch.ones_like(D)),
    ],
    ids=["minimax", "non-saturating", "log ratio", "wasserstein", "hinge"],
)
def test_generator_gradient_by_logit(generator, gradient):
    (logits,) = tensors([-30.0, -2.0, 0.0, 2.0, 30.0])
    generator(logits).backward()
    torch.testing.assert_close(5 * logits.grad, gradient(torch.sigmoid(logits.detach())), rtol=1e-9, atol=1e-15)


def test_ratio_of_the_two_generator_gradients():
    """The saturating gradient is D / (1 - D) times the other."""
    (logits,) = tensors([-3.0, 0.5, 2.0])
    saturating, other = (
        torch.autograd.grad(loss.generator(logits), logits)[0] for loss in (Minimax(), NonSaturating())
    )
    torch.testing.assert_close(saturating / other, torch.exp(logits.detach()))


def test_log_ratio_gradient_is_exactly_minus_one():
    logits = torch.tensor([[-100.0, -1.0], [0.0, 100.0]], requires_grad=True)
    value = log_ratio_generator(logits)
    assert value.shape == logits.shape
    value.sum().backward()
    assert torch.equal(logits.grad, torch.full((2, 2), -1.0))


def test_hinge_stops_where_the_margin_is_kept():
    real, fake = tensors([0.5, 1.5], [-0.5, -1.5])
    loss = Hinge().discriminator(real, fake)
    assert loss.item() == pytest.approx(0.25 + 0.25)
    loss.backward()
    assert real.grad.tolist() == [-0.5, 0.0] and fake.grad.tolist() == [0.5, 0.0]


def test_least_squares_values():
    real, fake = tensors([0.5, 2.0], [-1.0])
    assert LeastSquares().discriminator(real, fake).item() == pytest.approx(0.5 * (0.25 + 1) / 2 + 0.5)
    assert LeastSquares().generator(fake).item() == pytest.approx(2.0)
    assert LeastSquares(a=-1, b=1, c=0).discriminator(real, fake).item() == pytest.approx(0.5 * (0.25 + 1) / 2)
    assert LeastSquares(a=-1, b=1, c=0).generator(fake).item() == pytest.approx(0.5)


def test_relativistic_values():
    real, fake = tensors([1.0, -0.5], [0.2, 0.7])
    softplus = torch.nn.functional.softplus
    torch.testing.assert_close(Relativistic().discriminator(real, fake), softplus(fake - real).mean())
    torch.testing.assert_close(Relativistic().generator(fake, real), softplus(real - fake).mean())
    # Pairs count: another order is another loss.
    assert Relativistic().discriminator(real, fake.flip(0)) != Relativistic().discriminator(real, fake)


def test_relativistic_average_values():
    real, fake = tensors([1.0, -0.5, 0.3], [0.2, 0.7])
    softplus = torch.nn.functional.softplus
    d = softplus(fake.mean() - real).mean() + softplus(fake - real.mean()).mean()
    g = softplus(real.mean() - fake).mean() + softplus(real - fake.mean()).mean()
    torch.testing.assert_close(RelativisticAverage().discriminator(real, fake), d)
    torch.testing.assert_close(RelativisticAverage().generator(fake, real), g)


def test_relativistic_losses_ignore_a_common_shift():
    real, fake = tensors([1.0, -0.5], [0.2, 0.7])
    for loss in (Relativistic(), RelativisticAverage()):
        torch.testing.assert_close(loss.discriminator(real + 50, fake + 50), loss.discriminator(real, fake))


def test_relativistic_losses_need_the_real_logits():
    for loss, name in ((Relativistic(), "relativistic"), (RelativisticAverage(), "relativistic-average")):
        assert loss.needs_real
        with pytest.raises(ValueError, match=f"the {name} loss compares: .*generator"):
            loss.generator(torch.zeros(2))
    with pytest.raises(ValueError, match=r"real is \(2, 1\), fake is \(2,\)"):
        Relativistic().discriminator(torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match=r"fake is \(3,\), real is \(2,\)"):
        Relativistic().generator(torch.zeros(3), torch.zeros(2))


# ------------------------------------------------------------------------------------------------------ kinds of fakes


def test_a_sum_of_kinds_is_the_papers_sum_of_expectations():
    """Larsen et al. 2016, L_GAN; Rosca et al. 2017, algorithm 1: the real side once, each kind of fake once."""
    real, rec, fake = tensors([0.3, -1.0], [2.0, 0.1], [-0.7, 0.4])
    by_hand = -(real.sigmoid().log().mean() + (1 - rec.sigmoid()).log().mean() + (1 - fake.sigmoid()).log().mean())
    torch.testing.assert_close(discriminate_kinds(LogRatio(), real, [rec, fake], weigh="sum"), by_hand)
    smooth = discriminate_kinds(NonSaturating(0.9), real, [rec, fake], weigh="sum")
    torch.testing.assert_close(smooth, bce_real(real, 0.9).mean() + bce_fake(torch.cat([rec, fake])).sum() / 2)
    torch.testing.assert_close(deceive_kinds(LogRatio(), [rec, fake], weigh="sum"), -(rec + fake).mean())


@every_loss
def test_a_mean_over_kinds_gives_each_an_equal_share(loss):
    real, rec, fake = tensors([0.3, -1.0], [2.0, 0.1], [-0.7, 0.4])
    both = (loss.discriminator(real, rec) + loss.discriminator(real, fake)) / 2
    torch.testing.assert_close(discriminate_kinds(loss, real, [rec, fake]), both)
    both = (loss.generator(rec, real) + loss.generator(fake, real)) / 2
    torch.testing.assert_close(deceive_kinds(loss, [rec, fake], real), both)
    for weigh in ("sum", "mean") if hasattr(loss, "real_label") else ("mean",):
        one = discriminate_kinds(loss, real, [fake], weigh=weigh), deceive_kinds(loss, [fake], real, weigh=weigh)
        torch.testing.assert_close(one, (loss.discriminator(real, fake), loss.generator(fake, real)))


def test_a_constant_added_to_a_wasserstein_critic_changes_nothing():
    real, rec, fake = tensors([0.3, -1.0], [2.0, 0.1], [-0.7, 0.4])
    plain = discriminate_kinds(Wasserstein(), real, [rec, fake])
    torch.testing.assert_close(discriminate_kinds(Wasserstein(), real + 9, [rec + 9, fake + 9]), plain)
    slopes = torch.autograd.grad(plain, (real, rec, fake))
    assert [s.sum().item() for s in slopes] == pytest.approx([-1.0, 0.5, 0.5])


def test_how_kinds_are_weighed():
    assert [how_to_weigh(name) for name in ("minimax", "non-saturating", "log-ratio")] == ["sum"] * 3
    assert {how_to_weigh(n) for n in set(ADVERSARIAL) - {"minimax", "non-saturating", "log-ratio"}} == {"mean"}
    assert how_to_weigh("minimax", "mean") == "mean"
    with pytest.raises(InputError, match="'wasserstein' compares one real .* weigh ½ each"):
        how_to_weigh("wasserstein", "sum")
    with pytest.raises(InputError, match="unknown way to weigh kinds of fakes 'max'"):
        how_to_weigh("hinge", "max")
    with pytest.raises(ValueError, match="Hinge has no sum"):
        discriminate_kinds(Hinge(), torch.ones(2), [torch.ones(2)], weigh="sum")
    with pytest.raises(ValueError, match="no fakes"):
        deceive_kinds(Hinge(), [])


# ------------------------------------------------------------------------------------------------------------ numerics


@every_loss
def test_finite_and_accurate_at_a_hundred(loss):
    """Single precision against double precision, values and gradients, over all pairs of extreme logits."""
    extremes = torch.tensor([-100.0, -20.5, -19.5, 0.0, 19.5, 20.5, 100.0])
    for real in extremes:
        for fake in extremes:
            results = []
            for dtype in (torch.float32, torch.float64):
                r, f = (v.clone().to(dtype).reshape(1).requires_grad_() for v in (real, fake))
                d, g = loss.discriminator(r, f), loss.generator(f, r)
                slopes = [*torch.autograd.grad(d, (r, f)), *torch.autograd.grad(g, f)]
                results.append(torch.stack([d, g, *(slope[0] for slope in slopes)]).double())
            assert results[0].isfinite().all()
            torch.testing.assert_close(*results, rtol=1e-5, atol=1e-12)


def test_cross_entropy_against_scipy():
    logits = torch.linspace(-40, 40, 81, dtype=torch.float64)
    np.testing.assert_allclose(bce_real(logits), -stats.logistic.logcdf(logits), rtol=1e-12)
    np.testing.assert_allclose(bce_fake(logits), -stats.logistic.logsf(logits), rtol=1e-12)
    expected = -0.9 * stats.logistic.logcdf(logits) - 0.1 * stats.logistic.logsf(logits)
    np.testing.assert_allclose(bce_real(logits, 0.9), expected, rtol=1e-12)
    assert bce_real(torch.zeros(2, 1, 3)).shape == bce_fake(torch.zeros(2, 1, 3)).shape == (2, 1, 3)


@every_loss
def test_logits_in_bfloat16_give_a_loss_in_single_precision(loss):
    logits = torch.ones(8, dtype=torch.bfloat16)
    assert loss.discriminator(logits, logits).dtype == loss.generator(logits, logits).dtype == torch.float32


# --------------------------------------------------------------------------------------------------------------- names


def test_every_name_builds_its_loss():
    for name, kind in ADVERSARIAL.items():
        assert build_adversarial(name) == kind()
    assert build_adversarial("minimax", real_label=0.9) == Minimax(0.9)
    assert build_adversarial("non-saturating", real_label=0.9) == NonSaturating(0.9)
    assert [name for name in ADVERSARIAL if build_adversarial(name).needs_real] == [
        "relativistic",
        "relativistic-average",
    ]


def test_bad_choices_are_explained():
    with pytest.raises(InputError, match="unknown adversarial loss 'hinges'; did you mean 'hinge'"):
        build_adversarial("hinges")
    for name in set(ADVERSARIAL) - {"minimax", "non-saturating", "log-ratio"}:
        with pytest.raises(InputError, match=f"'{name}' has no label to smooth .*minimax, non-saturating, log-ratio"):
            build_adversarial(name, real_label=0.9)
    for label in (0.0, -1.0, 1.1, math.nan):
        for kind in (Minimax, NonSaturating, LogRatio):
            with pytest.raises(InputError, match="real_label is .*; give a number above 0, at most 1"):
                kind(real_label=label)
