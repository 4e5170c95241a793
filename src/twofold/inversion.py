"""Codes for given examples by optimisation: what a generator without an encoder knows of an example."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def invert(
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
    starts: Tensor,
    *,
    steps: int,
    learning_rate: float,
    features: Callable[[Tensor], Tensor] | None = None,
    feature_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The codes z (n, latent) whose examples are nearest to `x` (n, …), and the squared errors (n,) that are left.

    Adam on z from each of `starts` (starts, n, latent) minimises

        ‖x - decode(z)‖² + feature_weight · ‖features(x) - features(decode(z))‖²

    each summed over dimensions, with a rate that falls to 0 along half a cosine. Of all starts and steps, the code with
    the smallest objective is returned (Schlegl et al. 2017 for medical images; Creswell & Bharath 2018 for GANs at
    large). The problem is not convex: more starts find better codes. Networks must be in eval mode; they receive no
    gradient. A feature that is not a function of z at all raises `ValueError`.
    """
    count = len(starts)
    with torch.inference_mode(False), torch.enable_grad():
        target = x.repeat(count, *[1] * (x.dim() - 1))
        wanted = None if features is None or not feature_weight else features(target).detach()
        z = starts.flatten(0, 1).clone().requires_grad_()
        adam = torch.optim.Adam([z], lr=learning_rate)
        best, found = torch.full((len(z),), math.inf, device=z.device), z.detach().clone()
        for k in range(steps + 1):
            x_rec = decode(z)
            loss = (target - x_rec).square().flatten(1).sum(1)
            if wanted is not None and features is not None:
                loss = loss + feature_weight * (wanted - features(x_rec)).square().flatten(1).sum(1)
            better = loss.detach() < best
            best = torch.where(better, loss.detach(), best)
            found = torch.where(better[:, None], z.detach(), found)
            if k == steps:
                break
            gradient = torch.autograd.grad(loss.sum(), z, allow_unused=True)[0] if loss.requires_grad else None
            if gradient is None:
                raise ValueError("the decoded example is not a differentiable function of the code")
            z.grad = gradient
            for group in adam.param_groups:
                group["lr"] = learning_rate * (1 + math.cos(math.pi * k / steps)) / 2
            adam.step()
    which = best.unflatten(0, (count, -1)).argmin(dim=0)
    z = found.unflatten(0, (count, -1))[which, torch.arange(len(x), device=x.device)]
    with torch.no_grad():
        return z, (x - decode(z)).square().flatten(1).sum(1)
