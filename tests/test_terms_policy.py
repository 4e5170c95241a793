"""REINFORCE against exact gradients: the policy is small enough to list every trajectory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from twofold.errors import InputError
from twofold.terms.policy import discounted_returns, reinforce

ACTIONS, STEPS = 3, 2
TRAJECTORIES = torch.tensor(list(itertools.product(range(ACTIONS), repeat=STEPS)))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_probabilities(first: Tensor, second: Tensor) -> Tensor:
    """(trajectories, steps): the first action from `first`, the second from the row of `second` that it chose."""
    a, b = TRAJECTORIES.T
    return torch.stack([torch.log_softmax(first, 0)[a], torch.log_softmax(second, 1)[a, b]], dim=1)


@pytest.fixture
def policy() -> tuple[Tensor, Tensor]:
    return random(ACTIONS, seed=1).requires_grad_(), random(ACTIONS, ACTIONS, seed=2).requires_grad_()


def expected_surrogate_gradient(policy, surrogate) -> list[Tensor]:
    """Σ over trajectories of probability times the gradient of the surrogate: what sampling gives on average."""
    log_prob = log_probabilities(*policy)
    probability = log_prob.sum(1).exp().detach()
    total = sum(p * surrogate(log_prob[i : i + 1], i) for i, p in enumerate(probability))
    return list(torch.autograd.grad(total, policy, allow_unused=True))


@pytest.mark.parametrize("baseline", [None, 0.7, torch.tensor(-3.0)])
def test_the_expected_gradient_is_minus_that_of_the_expected_reward(policy, baseline):
    reward = random(len(TRAJECTORIES))
    expected_reward = (log_probabilities(*policy).sum(1).exp() * reward).sum()
    exact = torch.autograd.grad(expected_reward, policy)
    estimate = expected_surrogate_gradient(
        policy, lambda log_prob, i: reinforce(log_prob.sum(1), reward[i : i + 1], baseline=baseline)
    )
    for e, x in zip(estimate, exact, strict=True):
        torch.testing.assert_close(e, -x)


@pytest.mark.parametrize("with_baseline", [False, True])
def test_returns_per_step_are_unbiased_too(policy, with_baseline):
    """Each action is credited with what follows it; the baseline of a step knows only the past (the first action)."""
    rewards = random(len(TRAJECTORIES), STEPS)
    # The first reward may depend on the first action only, or it would not be causal.
    rewards[:, 0] = random(ACTIONS, seed=5)[TRAJECTORIES[:, 0]]
    baseline = torch.stack([torch.full((9,), 0.3), random(ACTIONS, seed=6).float()[TRAJECTORIES[:, 0]]], dim=1)
    expected_reward = (log_probabilities(*policy).sum(1).exp() * rewards.sum(1)).sum()
    exact = torch.autograd.grad(expected_reward, policy)
    returns = discounted_returns(rewards, discount=1.0)

    def surrogate(log_prob: Tensor, i: int) -> Tensor:
        return reinforce(log_prob, returns[i : i + 1], baseline=baseline[i : i + 1] if with_baseline else None)

    for e, x in zip(expected_surrogate_gradient(policy, surrogate), exact, strict=True):
        torch.testing.assert_close(e, -x)


def test_a_baseline_that_knows_the_action_is_biased(policy):
    """The negative control: with the reward itself as baseline nothing is learned."""
    reward = random(len(TRAJECTORIES))
    estimate = expected_surrogate_gradient(
        policy, lambda log_prob, i: reinforce(log_prob.sum(1), reward[i : i + 1], baseline=reward[i : i + 1])
    )
    assert all(torch.equal(e, torch.zeros_like(e)) for e in estimate)


def test_value_and_sign():
    log_prob = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], requires_grad=True)
    reward = torch.tensor([[1.0, 3.0], [2.0, 5.0]])
    loss = reinforce(log_prob, reward, baseline=1.0)
    # Σ over time, mean over the batch: -((0·-1 + 2·-2) + (1·-0.5 + 4·0)) / 2
    assert loss.item() == pytest.approx(2.25)
    loss.backward()
    torch.testing.assert_close(log_prob.grad, -(reward - 1) / 2)


def test_rewards_and_baselines_receive_no_gradient():
    log_prob, reward, baseline = (torch.ones(3, requires_grad=True) for _ in range(3))
    gradients = torch.autograd.grad(
        reinforce(log_prob, 2 * reward, baseline=3 * baseline), (log_prob, reward, baseline), allow_unused=True
    )
    assert gradients[0] is not None and gradients[1] is None and gradients[2] is None


def test_integer_rewards():
    assert reinforce(torch.tensor([-1.0, -2.0]), torch.tensor([1, 0])).item() == 0.5
    assert discounted_returns(torch.tensor([[0, 0, 1]]), discount=0.5).tolist() == [[0.25, 0.5, 1.0]]


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_discounted_returns_agree_with_the_definition(discount, steps):
    rewards = random(4, steps)
    expected = [
        [sum(discount ** (j - i) * row[j] for j in range(i, steps)) for i in range(steps)] for row in rewards.tolist()
    ]
    np.testing.assert_allclose(discounted_returns(rewards, discount=discount), expected)


def test_policy_errors():
    with pytest.raises(ValueError, match=r"log_prob is \(2, 3\), reward is \(2,\)"):
        reinforce(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"reward is \(2, 3\), baseline is \(3,\)"):
        reinforce(torch.zeros(2, 3), torch.zeros(2, 3), baseline=torch.zeros(3))
    for shape in ((), (2, 3, 4)):
        with pytest.raises(ValueError, match=r"log_prob is \(.*; give \(batch,\) or \(batch, time\)"):
            reinforce(torch.zeros(shape), torch.zeros(shape))
    for shape in ((3,), (3, 0)):
        with pytest.raises(ValueError, match=r"rewards is \(3.*; give \(batch, time\)"):
            discounted_returns(torch.zeros(shape), discount=1.0)
    for discount in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="discount is .*; give a number from 0 to 1"):
            discounted_returns(torch.zeros(2, 3), discount=discount)
