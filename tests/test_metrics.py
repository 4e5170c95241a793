"""Metrics against closed forms, scipy, torchmetrics, and the cases in which the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from twofold.errors import InputError
from twofold.metrics import structure
from twofold.metrics.bits import bits_per_dimension, dequantised, parzen_log_likelihood, parzen_sigma
from twofold.metrics.clusters import clustering_accuracy, purity
from twofold.metrics.critic import critic_scores
from twofold.metrics.disentangle import (
    beta_vae_score,
    dci,
    difference_features,
    factor_vae_score,
    importance_scores,
    mutual_information_gap,
    separated_predictability,
)
from twofold.metrics.frechet import frechet_distance, gaussian_distance
from twofold.metrics.inception_score import inception_score
from twofold.metrics.kernel import kernel_distance
from twofold.metrics.linear_codes import ica, pca
from twofold.metrics.manifold import manifold_figures, nearest_neighbour_accuracy
from twofold.metrics.modes import mode_coverage
from twofold.metrics.probes import discriminator_features, few_label_curve, linear_probe
from twofold.metrics.record import Result, compare_results, count_text, half_sample_errors, standard_error
from twofold.metrics.sliced import laplacian_pyramid, patch_distances, sliced_wasserstein
from twofold.nets.build import build_discriminator
from twofold.spec import Spec


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


# Sets of features.


def test_frechet_distance_is_scipys():
    x, y = normal(400, 6), normal(300, 6, seed=1) @ normal(6, 6, seed=2) + 0.5
    s1, s2 = (np.cov(z.numpy(), rowvar=False) for z in (x, y))
    root = scipy.linalg.sqrtm(s1 @ s2).real
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(s1 + s2 - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x.float(), y.float()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("n", "m"), [(5, 40), (40, 5), (6, 7)])
def test_frechet_distance_of_fewer_examples_than_features(n, m):
    x, y = normal(n, 20), 2 * normal(m, 20, seed=1) + 0.5
    covariances = [torch.cov(z.T) for z in (x, y)]
    expected = gaussian_distance(x.mean(0), covariances[0], y.mean(0), covariances[1])
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_known_gaussians():
    mean, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
    eye = torch.eye(2).double()
    assert gaussian_distance(mean, eye, zero, eye) == pytest.approx(25)
    # Commuting covariances: Σ (σ₁ - σ₂)².
    assert gaussian_distance(zero, 4 * eye, zero, 9 * eye) == pytest.approx(2 * (2 - 3) ** 2)
    singular = torch.diag(torch.tensor([1.0, 0.0])).double()
    assert gaussian_distance(zero, singular, zero, eye) == pytest.approx(1)


def test_identical_sets_are_at_distance_0_and_disjoint_ones_are_not():
    x = normal(64, 5)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert sliced_wasserstein(x, x, generator=rng()) == 0
    assert frechet_distance(x + 100, x) == pytest.approx(5 * 100**2, rel=1e-6)
    assert kernel_distance(x + 10, x) > 100 > 1 > abs(kernel_distance(x, normal(64, 5, seed=3)))


def test_kernel_distance_is_the_unbiased_sum_over_pairs():
    x, y = normal(7, 3), normal(5, 3, seed=1) + 1

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within_x = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * between)


def test_the_kernel_distance_of_one_distribution_is_0_on_average():
    values = [kernel_distance(normal(40, 4, seed=s), normal(40, 4, seed=1000 + s)) for s in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(60)


def test_the_inception_score_lies_between_1_and_the_number_of_classes():
    sure = torch.eye(10).repeat(20, 1)
    assert inception_score(sure, splits=2) == (pytest.approx(10), pytest.approx(0, abs=1e-9))
    assert inception_score(torch.full((50, 10), 0.1), splits=5)[0] == pytest.approx(1)
    one_class = torch.zeros(50, 10)
    one_class[:, 3] = 1
    assert inception_score(one_class, splits=5)[0] == pytest.approx(1)
    p = torch.tensor([[0.9, 0.1], [0.3, 0.7]]).double()
    kl = (p * (p / p.mean(0)).log()).sum(1)
    assert inception_score(p, splits=1)[0] == pytest.approx(float(kl.mean().exp()))
    with pytest.raises(InputError, match="no probabilities"):
        inception_score(torch.ones(50, 10))


def test_manifold_figures_of_limit_cases():
    x = normal(200, 3)
    same = manifold_figures(x, x)
    assert same.precision == same.recall == same.coverage == 1 and same.density > 1
    apart = manifold_figures(x + 100, x)
    assert apart == (0, 0, 0, 0)
    constant = manifold_figures(x[:1].expand(200, 3), x)
    assert constant.precision == 1 and constant.recall <= 1 / 200 and constant.coverage < 0.1
    half = manifold_figures(x, torch.cat([x[:100], x[:100] + 100]))
    assert half.precision > 0.4 and half.recall == pytest.approx(0.5)


def test_manifold_figures_are_those_of_explicit_loops():
    fake, real, k = normal(12, 2, seed=1), normal(9, 2), 2
    distance = torch.cdist(fake, real)
    reach_real = torch.cdist(real, real).sort(1).values[:, k]
    reach_fake = torch.cdist(fake, fake).sort(1).values[:, k]
    found = manifold_figures(fake, real, k=k, k_density=k)
    assert found.precision == np.mean([bool((distance[j] <= reach_real).any()) for j in range(12)])
    assert found.recall == pytest.approx(np.mean([bool((distance[:, i] <= reach_fake).any()) for i in range(9)]))
    assert found.density == pytest.approx(float((distance <= reach_real).sum()) / (k * 12))
    assert found.coverage == pytest.approx(np.mean([bool(distance[:, i].min() <= reach_real[i]) for i in range(9)]))


def test_density_and_coverage_of_two_draws_of_one_distribution():
    found = manifold_figures(normal(1000, 4, seed=1), normal(1000, 4))
    assert found.density == pytest.approx(1, abs=0.1)
    assert found.coverage == pytest.approx(1 - 0.5**5, abs=0.03)  # Naeem et al. 2020, their eq. 9


def test_the_sliced_distance_is_scipys_in_one_dimension():
    x, y = normal(50, 1), 2 * normal(50, 1, seed=1) + 1
    expected = scipy.stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert sliced_wasserstein(x, y, generator=rng()) == pytest.approx(expected)


def test_the_sliced_distance_of_a_shift():
    x = normal(10, 2)
    found = sliced_wasserstein(x + torch.tensor([3.0, 4.0]), x, projections=20_000, generator=rng())
    assert found == pytest.approx(5 * 2 / math.pi, rel=0.02)  # E|cos| in the plane


def test_patch_distances_see_the_scale_that_differs():
    smooth = torch.nn.functional.interpolate(normal(40, 1, 4, 4), size=32, mode="bilinear", align_corners=True)
    noisy = smooth + 0.5 * normal(40, 1, 32, 32, seed=2)
    assert sum(level.abs().sum() for level in laplacian_pyramid(torch.ones(1, 1, 32, 32))[:-1]) < 1e-3
    options = {"patches": 32, "projections": 64}
    same = patch_distances(smooth, smooth.flip(0), generator=rng(), **options)
    found = patch_distances(smooth, noisy, generator=rng(), **options)
    assert list(found) == [32, 16] and found[32] > 3 * same[32] and found[32] > 2 * found[16]


def test_the_nearest_neighbour_and_the_linear_probe():
    x, y = torch.cat([normal(60, 2), normal(60, 2, seed=1) + 8]), torch.arange(120) // 60
    order = torch.randperm(120, generator=rng())
    train, test = order[:80], order[80:]
    assert nearest_neighbour_accuracy(x[train], y[train], x[test], y[test]).mean() == 1
    assert linear_probe(x[train], y[train], x[test], y[test]).mean() == 1
    scrambled = y[torch.randperm(120, generator=rng(5))]
    assert linear_probe(x[train], scrambled[train], x[test], scrambled[test]).mean() < 0.75


def test_more_labels_help_a_probe_up_to_what_there_is():
    y = torch.arange(300) % 3
    x = normal(300, 10) + 2 * torch.nn.functional.one_hot(y, 10)
    curve = few_label_curve(x[:200], y[:200], x[200:], y[200:], labels=(1, 20, 500), draws=4)
    assert list(curve) == [1, 20] and curve[20][0] > curve[1][0] + 0.1


def test_discriminator_features_are_pooled_to_a_4x4_grid():
    net = build_discriminator(Spec("image", (1, 16, 16)), width=8, min_size=2)
    with torch.no_grad():
        features = discriminator_features(net, torch.zeros(3, 1, 16, 16))
    assert features.shape == (3, 8 * 16 + 16 * 16 + 32 * 4)  # maps of 8, 4 and 2 pixels
    with pytest.raises(InputError, match="does not list"):
        discriminator_features(torch.nn.Linear(2, 2), torch.zeros(1, 2))


# Pairs of images.


def test_structure_is_torchmetrics_where_the_window_fits_inside():
    """torchmetrics' mean includes the border, for which it reflects the image; the definition (Wang et al. 2004) has no
    border. So its map is compared, without the border, and its terms put together by hand."""
    image = pytest.importorskip("torchmetrics.functional.image")
    x = torch.rand(4, 3, 32, 28, generator=rng()) * 2 - 1
    y = (x + 0.3 * torch.randn(x.shape, generator=rng(1))).clamp(-1, 1)
    assert structure.scales_for((32, 28)) == 2 and structure.window_for((32, 28)) == 11

    def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        options = {"data_range": 1.0, "reduction": "none", "return_full_image": True}
        return image.structural_similarity_index_measure(a, b, **options)[1][..., 5:-5, 5:-5].mean((1, 2, 3))

    def contrast(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        options = {"data_range": 1.0, "reduction": "none", "return_contrast_sensitivity": True}
        return image.structural_similarity_index_measure(a, b, **options)[1]

    a, b = (x.double() + 1) / 2, (y.double() + 1) / 2
    assert torch.allclose(structure.ssim(x, y), similarity(a, b), atol=1e-5)
    small = [torch.nn.functional.avg_pool2d(z, 2) for z in (a, b)]
    first, second = (w / sum(structure.SCALE_WEIGHTS[:2]) for w in structure.SCALE_WEIGHTS[:2])
    assert torch.allclose(structure.ms_ssim(x, y), contrast(a, b) ** first * similarity(*small) ** second, atol=1e-5)
    expected = image.peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(structure.psnr(x, y), expected, atol=1e-4)


def test_equal_images_are_alike_and_errors_have_their_closed_form():
    x = normal(3, 1, 28, 28).clamp(-1, 1)
    ones = torch.ones(3).double()
    assert torch.allclose(structure.ssim(x, x), ones) and torch.allclose(structure.ms_ssim(x, x), ones)
    assert structure.psnr(x, x).isinf().all()
    assert torch.allclose(structure.mse(x, x + 0.1), 0.01 * ones)
    assert torch.allclose(structure.psnr(x, x + 0.2), 10 * torch.log10(torch.tensor(4 / 0.04)).double() * ones)
    with pytest.raises(InputError, match="give equal images"):
        structure.ssim(x, x[:, :, 1:])


def test_the_diversity_of_a_constant_generator_is_0():
    one = normal(1, 1, 8, 8)
    assert structure.mean_similarity(one.expand(10, 1, 8, 8), pairs=20, generator=rng()) == pytest.approx(1)
    assert structure.mean_similarity(normal(40, 1, 8, 8), pairs=100, generator=rng()).mean() < 0.5


# Likelihood.


def test_bits_per_dimension():
    assert bits_per_dimension(torch.tensor([-10 * math.log(256)]), 10) == pytest.approx(8)
    # A density uniform on [-1, 1] gives 256 levels of width 2/255 nearly 8 bits: log₂(2 / width).
    uniform = torch.tensor([-10 * math.log(2)])
    assert bits_per_dimension(uniform, 10, bin_width=2 / 255) == pytest.approx(math.log2(255))
    x = torch.zeros(1000, 2)
    noisy = dequantised(x, 0.1, generator=rng())
    assert noisy.abs().max() <= 0.05 and noisy.std() == pytest.approx(0.1 / math.sqrt(12), rel=0.05)


def test_dequantisation_bounds_the_probability_of_the_level():
    """For p = N(0, 1) and levels a width apart: E log p(x + u) + log width ≤ log of the level's probability."""
    width, level = 0.5, torch.full((20_000, 1), 0.75).double()
    noisy = dequantised(level, width, generator=rng())
    log_density = scipy.stats.norm.logpdf(noisy.numpy())[:, 0]
    bound = -float(bits_per_dimension(torch.from_numpy(log_density), 1, bin_width=width).mean()) * math.log(2)
    exact = math.log(scipy.stats.norm.cdf(1.0) - scipy.stats.norm.cdf(0.5))
    assert bound <= exact and bound == pytest.approx(exact, abs=0.02)


def test_parzen_of_a_known_gaussian():
    """Samples of N(0, s²) smoothed by h: the density of N(0, s² + h²), up to sampling error."""
    s, h = 1.0, 0.5
    samples, test = s * normal(2000, 1), s * normal(1000, 1, seed=1)
    found = float(parzen_log_likelihood(samples, test, sigma=h).mean())
    expected = -0.5 * math.log(2 * math.pi * (s**2 + h**2)) - 0.5 * s**2 / (s**2 + h**2)
    assert found == pytest.approx(expected, abs=0.03)
    grid = scipy.stats.norm.logpdf(test[:5].numpy(), samples[:, 0].numpy(), h)
    reference = scipy.special.logsumexp(grid, axis=1) - math.log(2000)
    assert np.allclose(parzen_log_likelihood(samples, test[:5], sigma=h).numpy(), reference)
    assert 0.1 <= parzen_sigma(samples, test) < 0.5


# Mixtures and clusters.


def test_mode_coverage_of_known_samples():
    modes = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    on_modes = modes.repeat(25, 1)
    assert mode_coverage(on_modes, modes, 0.1) == (4, 1.0, pytest.approx(0, abs=1e-12))
    assert mode_coverage(modes[:1].repeat(9, 1), modes, 0.1) == (1, 1.0, pytest.approx(math.log(4)))
    assert mode_coverage(modes + 5, modes, 0.1) == (0, 0.0, math.inf)
    spread = modes[0] + 0.1 * normal(20_000, 2)
    assert mode_coverage(spread, modes, 0.1).high_quality == pytest.approx(1 - math.exp(-4.5), abs=0.003)
    uneven = torch.cat([modes[:1].repeat(3, 1), modes[1:2]])
    expected = 0.75 * math.log(0.75 * 4) + 0.25 * math.log(0.25 * 4)
    assert mode_coverage(uneven, modes, 0.1).reverse_kl == pytest.approx(expected)


def test_clusters_and_labels():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert purity(labels, labels).mean() == clustering_accuracy((labels + 1) % 3, labels).mean() == 1
    # Three clusters, of which two hold label 0: purity counts both, the assignment only one of them.
    clusters = torch.tensor([0, 0, 1, 2, 2, 2])
    assert purity(clusters, labels).mean() == pytest.approx(5 / 6)
    assert clustering_accuracy(clusters, labels).mean() == pytest.approx(4 / 6)
    assert purity(torch.zeros(6, dtype=torch.int64), labels).mean() == 0.5


# The independent critic.


def test_the_critic_orders_true_memorised_and_single_mode():
    spec = Spec("vector", (2,), layout="D", dtype="float32")
    data = 2 * torch.nn.functional.one_hot(torch.arange(2400) % 2, 2) + 0.3 * normal(2400, 2)
    validation, test, train, fresh = (part.float() for part in data.split(600))

    def distance(samples: torch.Tensor) -> float:
        half = len(samples) // 2
        args = (samples[:half], validation, samples[half:], test)
        real, fake = critic_scores(spec, *args, steps=150)
        return float(real.mean() - fake.mean())

    memorised = train[:10].repeat(60, 1)
    true, copies, single = distance(fresh), distance(memorised), distance(fresh[::2].repeat(2, 1))
    assert abs(true) < 0.1 and true + 0.05 < copies < single - 0.3


def test_the_critic_estimates_a_shift_and_leaves_the_callers_randomness_alone():
    spec = Spec("vector", (1,), layout="D", dtype="float32")
    sets = [normal(500, 1, seed=s).float() for s in range(4)]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    real, fake = critic_scores(spec, sets[0] + 2, sets[1], sets[2] + 2, sets[3], steps=150)
    assert torch.equal(before, torch.get_rng_state())
    assert float(real.mean() - fake.mean()) == pytest.approx(2, rel=0.15)  # W₁ of N(2, 1) and N(0, 1)
    again = critic_scores(spec, sets[0] + 2, sets[1], sets[2] + 2, sets[3], steps=150)
    assert torch.equal(real, again[0])


# Disentanglement.

SIZES = (1, 3, 8, 8, 8)
VARIED = (2, 3, 4)


def values(factors: torch.Tensor) -> torch.Tensor:
    return factors.double()


def rotated(factors: torch.Tensor) -> torch.Tensor:
    mix = torch.linalg.qr(normal(5, 5))[0]
    return factors.double() @ mix


def ignorant(factors: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(factors), 5, dtype=torch.float64)


def test_the_beta_vae_score_of_the_ground_truth_is_1_and_of_nothing_chance():
    features, fixed = difference_features([values, ignorant], SIZES, VARIED, pairs=16, votes=600, seed=0)
    assert features[0].shape == (600, 5) and set(fixed.tolist()) == {0, 1, 2}
    held = features[0][torch.arange(600), torch.tensor(VARIED)[fixed]]
    assert (held == 0).all()  # what was held fixed does not differ
    assert beta_vae_score(features[0], fixed, train=400).mean() == 1
    assert beta_vae_score(features[1], fixed, train=400).mean() == pytest.approx(1 / 3, abs=0.12)


def test_the_factor_vae_score():
    options = {"batch": 16, "train": 200, "test": 200, "spread": 1000}
    assert factor_vae_score(values, SIZES, (1, *VARIED), **options).mean() == 1
    assert factor_vae_score(rotated, SIZES, (1, *VARIED), **options).mean() < 0.8
    assert factor_vae_score(ignorant, SIZES, (1, *VARIED), **options).mean() == 0


def known_factors(n: int = 1500) -> torch.Tensor:
    return torch.stack([torch.randint(4, (n,), generator=rng(k)) for k in range(3)], dim=1)


def test_gaps_of_information_and_of_predictability():
    factors = known_factors()
    axes, twice = factors.double(), factors[:, [0, 0, 1, 1, 2, 2]].double()
    assert mutual_information_gap(axes, factors).mean() == pytest.approx(1, abs=0.01)
    assert mutual_information_gap(twice, factors).mean() == pytest.approx(0, abs=1e-9)
    assert separated_predictability(axes, factors, train=1000).mean() > 0.2
    assert separated_predictability(twice, factors, train=1000).mean() == pytest.approx(0, abs=1e-9)
    with pytest.raises(InputError, match="single value"):
        mutual_information_gap(axes, torch.zeros_like(factors))


def test_mutual_information_is_sklearns():
    from sklearn.metrics import mutual_info_score

    from twofold.metrics.disentangle import _information

    codes, factors = normal(400, 2), known_factors(400)
    information, entropy = _information(codes, factors, 20)
    low, high = codes[:, 0].min(), codes[:, 0].max()
    cells = np.minimum((20 * (codes[:, 0] - low) / (high - low)).long().numpy(), 19)
    assert float(information[0, 1]) == pytest.approx(mutual_info_score(cells, factors[:, 1].numpy()))
    assert float(entropy[2]) == pytest.approx(scipy.stats.entropy(torch.bincount(factors[:, 2]).numpy()))


def test_importance_scores_of_known_matrices():
    assert importance_scores(torch.eye(3).double()) == (pytest.approx(1), pytest.approx(1))
    assert importance_scores(torch.ones(3, 3).double()) == (pytest.approx(0), pytest.approx(0))
    # Two dimensions share the first factor: each still serves one factor, but it is not complete.
    shared = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]).double()
    disentangled, complete = importance_scores(shared)
    assert disentangled == pytest.approx(1) and complete == pytest.approx(1 - 0.5 * math.log(2) / math.log(3))


def test_dci_of_the_factors_themselves():
    factors = known_factors(400)[:, :2]
    found = dci(factors.double() + 0.01 * normal(400, 2), factors, train=300)
    assert min(found) > 0.97


def test_principal_and_independent_components():
    sources = torch.rand(2000, 3, generator=rng(), dtype=torch.float64) - 0.5
    mix = torch.linalg.qr(normal(8, 8))[0][:3] * torch.tensor([3.0, 2.0, 1.0])[:, None]
    x = sources @ mix + 5
    codes = pca(x, 3)(x)
    assert torch.allclose(codes.mean(0), torch.zeros(3).double(), atol=1e-9)
    assert torch.allclose(torch.cov(codes.T), torch.diag(torch.linalg.eigvalsh(torch.cov(x.T))[-3:].flip(0)), atol=1e-9)
    independent = ica(x, 3)(x)
    correlation = torch.corrcoef(torch.cat([independent, sources], dim=1).T)[:3, 3:].abs()
    assert (correlation.amax(0) > 0.98).all() and (correlation.amax(1) > 0.98).all()


# Records.


def result(value: float = 1.0, **more) -> Result:
    options = {"better": "lower", "protocol": {"count": 10, "seed": 0}, "uncertainty": 0.1, "reference": 0.5}
    return Result("fd_10_test", value, **(options | more))


def test_only_equal_protocols_are_compared():
    other_seed = result(0.5, protocol={"count": 10, "seed": 1})
    found = compare_results(result(), other_seed)
    assert found.winner == "second" and found.difference == -0.5
    assert found.uncertainty == pytest.approx(math.sqrt(0.02))
    with pytest.raises(InputError, match="count = 10 and with 20") as refused:
        compare_results(result(), result(protocol={"count": 20, "seed": 0}))
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="different measurements"):
        compare_results(result(), Result("fd_20_test", 1.0, "lower"))


def test_what_is_better_and_what_is_a_tie():
    assert compare_results(result(1.0), result(1.2)).winner == "tie"
    assert compare_results(result(1.0, better="higher"), result(2.0, better="higher")).winner == "second"
    data = {"better": "data", "reference": 1.0}
    assert compare_results(result(0.9, **data), result(1.6, **data)).winner == "first"
    assert compare_results(result(1.0, uncertainty=None), result(9.0)).winner == "tie"
    with pytest.raises(InputError, match="not recorded"):
        compare_results(result(reference=None, better="data"), result(reference=None, better="data"))
    with pytest.raises(ValueError, match="better is"):
        result(better="best")


def test_a_result_survives_json_with_what_json_cannot_say():
    for value in (1.5, math.inf, -math.inf):
        assert Result.from_json(result(value).to_json()) == result(value)
    assert math.isnan(Result.from_json(result(math.nan).to_json()).value)
    with pytest.raises(InputError, match="not a stored result"):
        Result.from_json({"name": "x", "worth": 1})


def test_the_error_over_halves_is_that_of_the_mean():
    x = normal(400, 1)
    (found,) = half_sample_errors(lambda a: [float(a.mean())], x, generator=rng(), times=200)
    assert found == pytest.approx(standard_error(x[:, 0]), rel=0.2)
    assert half_sample_errors(lambda a: [1.0, 2.0], x[:4], generator=rng()) == [None, None]
    assert [count_text(n) for n in (360, 2000, 2500, 10_000)] == ["360", "2k", "2500", "10k"]


@pytest.mark.parametrize("bad", [torch.zeros(3, 2), torch.zeros(1, 3), torch.full((3, 3), torch.nan)])
def test_sets_that_do_not_fit_are_refused(bad):
    for measure in (frechet_distance, kernel_distance, manifold_figures):
        with pytest.raises(InputError):
            measure(bad, torch.zeros(9, 3))
