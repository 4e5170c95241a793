"""Policy gradients: for generators whose samples are discrete, so that no gradient passes through them."""

from __future__ import annotations

import torch
from torch import Tensor

from twofold.errors import InputError
from twofold.terms.matching import require_same_shape, single_precision, sum_per_example


def reinforce(log_prob: Tensor, reward: Tensor, *, baseline: Tensor | float | None = None) -> Tensor:
    """A scalar whose gradient is minus an unbiased estimate of the gradient of the expected reward; minimise it.

    -(reward - baseline) · log_prob, summed over time and averaged over the batch (Williams 1992). Its value means
    nothing by itself.

    `log_prob`: (batch,) log-probability of whole samples, or (batch, time) of each action, in nats; 0 at padding.
    `reward`: the same shape; for (batch, time) the return that follows each action, see `discounted_returns`.
    `baseline`: a number, a scalar tensor or a tensor of the same shape, which may not depend on the action it is
    subtracted for. Reward and baseline are detached: the estimator holds them constant, whatever computed them.

    Raises `ValueError` for shapes that differ.

    >>> log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    >>> reinforce(log_prob, torch.tensor([3.0, 1.0]), baseline=2.0).backward()
    >>> log_prob.grad
    tensor([-0.5000,  0.5000])
    """
    if log_prob.ndim not in (1, 2):
        raise ValueError(f"log_prob is {tuple(log_prob.shape)}; give (batch,) or (batch, time)")
    require_same_shape(log_prob=log_prob, reward=reward)
    advantage = single_precision(reward).detach()
    if isinstance(baseline, Tensor):
        if baseline.ndim:
            require_same_shape(reward=reward, baseline=baseline)
        advantage = advantage - single_precision(baseline).detach()
    elif baseline is not None:
        advantage = advantage - baseline
    return -sum_per_example(advantage * single_precision(log_prob)).mean()


def discounted_returns(rewards: Tensor, *, discount: float) -> Tensor:
    """The return from each step on, G_t = r_t + discount · G_{t+1}. Shapes (batch, time) → (batch, time).

    `discount` lies in [0, 1]; 1 gives the plain sum of what is still to come.

    >>> discounted_returns(torch.tensor([[1.0, 0.0, 4.0]]), discount=0.5)
    tensor([[2., 2., 4.]])
    """
    if rewards.ndim != 2 or not rewards.shape[1]:
        raise ValueError(f"rewards is {tuple(rewards.shape)}; give (batch, time) with at least one step")
    if not 0 <= discount <= 1:
        raise InputError(f"discount is {discount}; give a number from 0 to 1")
    *earlier, last = single_precision(rewards).unbind(1)
    returns = [last]
    for reward in reversed(earlier):
        returns.append(reward + discount * returns[-1])
    return torch.stack(returns[::-1], dim=1)
