"""Estimators and training against linear-Gaussian models, where everything is known in closed form (cards B1, B2, A8).

x = W z + b + N(0, s² I), z ~ N(0, I): p(x) is Normal with covariance W Wᵀ + s² I, and p(z|x) is Normal with precision
M = I + Wᵀ W / s² and mean M⁻¹ Wᵀ (x - b) / s².
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from twofold import recipes
from twofold.game import begin, step
from twofold.rollouts import LikelihoodDecoder, elbo, iw_bound, log_weights
from twofold.spec import Spec
from twofold.terms.divergence import importance_weighted_bound
from twofold.terms.likelihood import Normal

DATA, LATENT, NOISE = 6, 2, 0.5


class LinearEncoder(nn.Module):
    """q(z|x) with the exact posterior's mean and a variance given."""

    def __init__(self, gain: Tensor, variance: Tensor):
        super().__init__()
        self.gain = nn.Parameter(gain)
        self.log_var = nn.Parameter(variance.log())

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        mean = x @ self.gain.T
        return torch.cat([mean, self.log_var.expand_as(mean)], 1)


class Linear(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return z @ self.weight.T


def model(orthogonal: bool) -> tuple[nn.ModuleDict, Tensor, Tensor, float]:
    """Networks with the best mean-field posterior, data, log p(x) of each example, and KL(q ‖ p(z|x)).

    With orthogonal columns of W the posterior factorises, and mean-field is exact.
    """
    generator = torch.Generator().manual_seed(3)
    w = torch.linalg.qr(torch.randn(DATA, LATENT, dtype=torch.float64, generator=generator)).Q
    cosine = 0.0 if orthogonal else 0.75  # between the columns, which makes the gap -½ log(1 - 0.6²) = 0.2231
    w = w @ torch.tensor([[1.0, cosine], [0.0, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    precision = torch.eye(LATENT, dtype=torch.float64) + w.T @ w / NOISE**2
    covariance = precision.inverse()
    variance = 1 / precision.diagonal()  # minimises KL(q ‖ p) among factorised q
    gap = 0.5 * ((precision.diagonal() * variance).sum() - LATENT - torch.logdet(precision) - variance.log().sum())
    nets = nn.ModuleDict(
        {
            "encoder": LinearEncoder(covariance @ w.T / NOISE**2, variance),
            "decoder": LikelihoodDecoder(Linear(w), Normal(False, scale="fixed", log_std=math.log(NOISE))),
        }
    )
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(DATA, dtype=torch.float64),
        w @ w.T + NOISE**2 * torch.eye(DATA, dtype=torch.float64),
    )
    z = torch.randn(2000, LATENT, dtype=torch.float64, generator=generator)
    x = z @ w.T + NOISE * torch.randn(2000, DATA, dtype=torch.float64, generator=generator)
    return nets, x, marginal.log_prob(x), gap.item()


def bound(nets: nn.ModuleDict, x: Tensor, k: int, seed: int = 0) -> Tensor:
    with torch.no_grad():
        return iw_bound(nets, x, generator=torch.Generator().manual_seed(seed), k=k)["log_prob_nats"]


def test_the_bounds_climb_from_the_elbo_to_log_p():
    """B1: ELBO ≤ L_5 ≤ L_50 ≤ L_500 ≤ log p, the gap at k = 1 being KL(q ‖ p)."""
    nets, x, log_p, gap = model(orthogonal=False)
    assert gap == pytest.approx(-0.5 * math.log(1 - 0.6**2))
    bounds = {k: bound(nets, x, k).mean().item() for k in (1, 5, 50, 500)}
    exact = log_p.mean().item()
    with torch.no_grad():
        parts = elbo(nets, x, generator=torch.Generator().manual_seed(0))
    single = -(parts["rate_nats"] + parts["distortion_nats"])
    error = 3 * single.std().item() / len(x) ** 0.5
    assert bounds[1] == pytest.approx(exact - gap, abs=error)
    assert single.mean().item() == pytest.approx(exact - gap, abs=error)  # the ELBO with its KL in closed form
    assert bounds[1] < bounds[5] < bounds[50] < bounds[500] < exact + 0.005
    assert bounds[500] > exact - 0.02


def test_the_exact_posterior_leaves_no_gap_and_no_noise():
    """The control of the test above: with q = p(z|x) every weight is p(x)."""
    nets, x, log_p, gap = model(orthogonal=True)
    assert gap == pytest.approx(0.0, abs=1e-12)
    for k in (1, 7):
        torch.testing.assert_close(bound(nets, x[:50], k), log_p[:50], rtol=1e-9, atol=1e-9)
    wider, *_ = model(orthogonal=True)
    with torch.no_grad():
        wider["encoder"].log_var += 1.0
    assert bound(wider, x, 1).mean() < log_p.mean() - 0.2
    assert bound(wider, x, 500).mean().item() == pytest.approx(log_p.mean().item(), abs=0.02)


def test_a_bound_in_parts_is_the_bound(monkeypatch):
    """Large k is decoded in parts; at one example per part the draws are those of a single pass."""
    nets, x, _, _ = model(orthogonal=False)
    monkeypatch.setattr("twofold.rollouts.DRAWS", 7)
    sizes = []
    nets["decoder"].register_forward_hook(lambda module, inputs, out: sizes.append(len(inputs[0])))
    parted = bound(nets, x[:3], 5)
    assert sizes == [6, 6, 3]
    many = torch.stack([bound(nets, x[:3], 5, seed) for seed in range(300)]).mean(0)
    monkeypatch.undo()
    whole = torch.stack([bound(nets, x[:3], 5, seed) for seed in range(300)]).mean(0)
    torch.testing.assert_close(many, whole, rtol=0, atol=0.15)
    assert parted.shape == (3,)


def test_the_gradient_weighs_the_draws_by_their_normalised_weights():
    """A8 and eq. 14: ∇L_k = Σ w̃_i ∇log w_i, w̃ adding to 1; checked on encoder and decoder."""
    nets, x, _, _ = model(orthogonal=False)
    weights = log_weights(nets, x[:4], k=5, generator=torch.Generator().manual_seed(0))
    parameters = list(nets.parameters())
    found = torch.autograd.grad(importance_weighted_bound(weights).sum(), parameters, retain_graph=True)
    normalised = weights.detach().exp() / weights.detach().exp().sum(1, keepdim=True)
    torch.testing.assert_close(normalised.sum(1), torch.ones(4, dtype=torch.float64))
    expected = torch.autograd.grad((normalised * weights).sum(), parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    leaf = weights.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(importance_weighted_bound(leaf).sum(), leaf)
    torch.testing.assert_close(gradient, normalised)


def test_a_linear_vae_finds_the_principal_components():
    """B2: the span of the first components within 2°, σ² the mean of the discarded eigenvalues, ELBO = log p.

    Mean-field costs nothing here, as the decoder may turn until its columns are orthogonal. The control is the start.
    """
    generator = torch.Generator().manual_seed(0)
    w = torch.linalg.qr(torch.randn(DATA, DATA, generator=generator)).Q[:, :LATENT] * torch.tensor([2.0, 1.2])
    x = torch.randn(500, LATENT, generator=generator) @ w.T + 0.4 * torch.randn(500, DATA, generator=generator)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    discarded = values[:-LATENT].mean().item()
    covariance = vectors[:, -LATENT:] @ torch.diag(values[-LATENT:] - discarded) @ vectors[:, -LATENT:].T
    best = torch.distributions.MultivariateNormal(torch.zeros(DATA), covariance + discarded * torch.eye(DATA))

    torch.manual_seed(0)
    spec = Spec("vector", (DATA,), layout="D", dtype="float32")
    _, recipe = recipes.build("vae", spec, {"latent": LATENT, "depth": 0, "learning_rate": 1e-2})
    nets = recipe.nets

    def angle() -> float:
        """The largest angle between the decoder's span and the first components', in degrees."""
        span = torch.linalg.qr(nets["decoder"].net.head.weight.detach()).Q
        cosine = torch.linalg.svdvals(span.T @ vectors[:, -LATENT:]).min().clamp(max=1.0)
        return math.degrees(math.acos(cosine))

    assert angle() > 20
    game = recipe.stages[0].game
    progress = begin(game)
    for rate, steps in ((1e-2, 700), (1e-3, 300)):
        for optimizer in progress.optimizers.values():
            optimizer.param_groups[0]["lr"] = rate
        for _ in range(steps):
            step(game, progress, lambda: {"x": x})
    scale = nets["decoder"].likelihood.log_scale_of(x).exp().item()
    assert angle() < 2
    assert scale**2 == pytest.approx(discarded, rel=0.03)
    many = x.repeat(20, 1)
    with torch.no_grad():
        parts = elbo(nets, many, generator=torch.Generator().manual_seed(1))
    found = -(parts["rate_nats"] + parts["distortion_nats"]).mean().item()
    assert found == pytest.approx(best.log_prob(x).mean().item(), abs=0.03)
