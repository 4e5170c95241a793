"""Information bounds and total correlation: closed forms, signs of their gradients, what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from twofold.errors import InputError
from twofold.latents import permute_dims
from twofold.terms.adversarial import bce_fake, bce_real
from twofold.terms.information import categorical_information, total_correlation, uniform_information


def test_categorical_information_is_entropy_plus_log_probability():
    logits = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    code = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    value = categorical_information(logits, code)
    q = logits.detach().softmax(1)
    expected = math.log(5) + q[torch.arange(7), code].log()
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(gradient, torch.eye(5, dtype=torch.float64)[code] - q)  # up towards the code


def test_categorical_information_lies_between_nothing_and_log_values():
    """For a channel with a known error rate the bound at the exact posterior is the mutual information."""
    values, error = 10, 0.2
    channel = torch.full((values, values), error / (values - 1), dtype=torch.float64)
    channel.fill_diagonal_(1 - error)  # p(x|c), and by symmetry p(c|x)
    exact = math.log(values) + (channel[0] * channel[0].log()).sum()
    c = torch.arange(values).repeat_interleave(values)
    x = torch.arange(values).repeat(values)
    weight = channel.flatten() / values
    assert (weight * categorical_information(channel.log()[x], c)).sum() == pytest.approx(exact.item(), abs=1e-12)
    wrong = channel.log() + torch.randn(values, values, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (weight * categorical_information(wrong[x], c)).sum() < exact  # any other Q: a lower bound
    certain = categorical_information(1e3 * torch.eye(values), torch.arange(values))
    torch.testing.assert_close(certain, torch.full((values,), math.log(values)))
    torch.testing.assert_close(categorical_information(torch.zeros(3, 4), torch.tensor([0, 1, 3])), torch.zeros(3))


def test_uniform_information_is_entropy_plus_log_density():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    code = torch.rand(6, 3, dtype=torch.float64, generator=generator) * 2 - 1
    for std in (0.1, 1.0, 2.5):
        value = uniform_information(mean, code, std=std)
        density = torch.distributions.Normal(mean.detach(), std).log_prob(code).sum(1)
        torch.testing.assert_close(value, 3 * math.log(2) + density)
        (gradient,) = torch.autograd.grad(value.sum(), mean)
        torch.testing.assert_close(gradient, (code - mean.detach()) / std**2)
    exact = uniform_information(code, code, std=1.0)
    torch.testing.assert_close(
        exact, torch.full((6,), 3 * (math.log(2) - 0.5 * math.log(2 * math.pi)), dtype=exact.dtype)
    )


def test_information_refuses():
    with pytest.raises(ValueError, match="give \\(batch, values\\) and int64"):
        categorical_information(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="give \\(batch, values\\)"):
        categorical_information(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="deviation of the continuous codes is 0.0"):
        uniform_information(torch.zeros(3, 1), torch.zeros(3, 1), std=0.0)
    with pytest.raises(ValueError, match="shape"):
        uniform_information(torch.zeros(3, 1), torch.zeros(3, 2), std=1.0)


# Total correlation.


def correlated(n: int, correlation: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, dtype=torch.float64, generator=generator)
    return torch.stack([a, correlation * a + math.sqrt(1 - correlation**2) * b, torch.randn(n, generator=generator)], 1)


def test_permuted_dimensions_keep_their_marginals_and_lose_their_correlation():
    z = correlated(4000, 0.9)
    shuffled = permute_dims(z, generator=torch.Generator().manual_seed(1))
    assert torch.equal(shuffled.sort(0).values, z.sort(0).values)
    assert torch.corrcoef(z.T)[0, 1] > 0.88
    assert torch.corrcoef(shuffled.T).fill_diagonal_(0).abs().max() < 0.05
    assert not torch.equal(shuffled, permute_dims(z, generator=torch.Generator().manual_seed(2)))
    assert torch.equal(shuffled, permute_dims(z, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(InputError, match="give \\(batch, latent\\)"):
        permute_dims(z[0])


def test_permuted_dimensions_pass_gradients_to_where_they_came_from():
    z = torch.arange(6.0).reshape(3, 2).requires_grad_()
    shuffled = permute_dims(z, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((shuffled * torch.tensor([[1.0], [2.0], [3.0]])).sum(), z)
    for j in range(2):
        order = [int((shuffled[:, j] == z[i, j]).nonzero()) for i in range(3)]
        assert gradient[:, j].tolist() == [k + 1.0 for k in order]


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_a_trained_density_ratio_gives_the_closed_form(correlation):
    """Normal codes: TC = -½ log det R. The optimal logit is a quadratic, which logistic regression finds; the negative
    control is the independent pair, whose estimate is 0."""
    exact = -0.5 * math.log(1 - correlation**2)
    z = correlated(20_000, correlation)
    shuffled = permute_dims(z, generator=torch.Generator().manual_seed(3))

    def features(v):
        i, j = torch.triu_indices(3, 3)
        return torch.cat([torch.ones(len(v), 1, dtype=v.dtype), v, v[:, i] * v[:, j]], 1)

    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = bce_real(features(z) @ w).mean() + bce_fake(features(shuffled) @ w).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert total_correlation(features(z) @ w).item() == pytest.approx(exact, abs=0.03)
    logits = torch.zeros(5, requires_grad=True)
    (gradient,) = torch.autograd.grad(total_correlation(logits), logits)
    torch.testing.assert_close(gradient, torch.full((5,), 0.2))  # the encoder descends: less sure of q(z)
