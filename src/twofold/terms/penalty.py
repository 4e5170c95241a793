"""Penalties that keep a critic smooth. Each returns the bare penalty; its coefficient (λ, γ) belongs to the caller.

In all of them `critic` maps (batch, ...) to logits of shape (batch,) or (batch, ...), and an example's gradient is that
of the sum of its own logits. A critic with BatchNorm mixes its examples and has no such gradient; use another norm.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from twofold.errors import InputError
from twofold.terms.matching import require_same_shape, single_precision, sum_per_example

Critic = Callable[[Tensor], Tensor]

_DIFFERENTIATING: ContextVar[bool] = ContextVar("differentiating", default=False)


def differentiating() -> bool:
    """Whether this is inside `input_gradient`'s call of its critic, whose graph is differentiated twice."""
    return _DIFFERENTIATING.get()


def input_gradient(critic: Critic, x: Tensor) -> Tensor:
    """∂ Σ critic(x) / ∂x, the shape of x, differentiable in the critic's parameters.

    x is detached first: a penalty is measured at given points, and is no function of the network that made them.
    """
    x = x.detach().requires_grad_(True)
    before = _DIFFERENTIATING.set(True)
    try:
        logits = critic(x)
    finally:
        _DIFFERENTIATING.reset(before)
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return single_precision(gradient)


def gradient_penalty(
    critic: Critic,
    x_real: Tensor,
    x_fake: Tensor,
    *,
    generator: torch.Generator | None = None,
    target: float = 1.0,
    one_sided: bool = False,
) -> Tensor:
    """E (‖∇ critic(x̂)‖₂ - target)², a scalar, at x̂ = ε x_real + (1 - ε) x_fake with one ε ~ U(0, 1) per example.

    Gulrajani et al. 2017, eq. 3 without its λ (10 there). The norm runs over all values of one example. `one_sided`
    penalises only norms above the target (their section 4, "two-sided penalty"); `target=0` is the zero-centred form.
    x̂ is detached, so that the generator receives nothing: the penalty constrains the critic at points drawn between
    the two sets. The gradient is finite (zero) for an example at which the critic is flat.

    Shapes: x_real and x_fake (batch, ...), equal; otherwise `ValueError`. `generator` draws ε.

    >>> gradient_penalty(lambda x: 3 * x[:, 0], torch.zeros(4, 2), torch.ones(4, 2))
    tensor(4.)
    """
    require_same_shape(x_real=x_real, x_fake=x_fake)
    device = x_real.device if generator is None else generator.device
    per_example = (x_real.shape[0], *[1] * (x_real.ndim - 1))
    epsilon = torch.rand(per_example, generator=generator, device=device, dtype=x_real.dtype).to(x_real.device)
    gradient = input_gradient(critic, epsilon * x_real.detach() + (1 - epsilon) * x_fake.detach())
    # vector_norm, not sqrt of a sum: its derivative at zero is zero instead of 0 · ∞.
    norm = (
        torch.linalg.vector_norm(gradient, dim=tuple(range(1, gradient.ndim))) if gradient.ndim > 1 else gradient.abs()
    )
    excess = norm - target
    return (excess.clamp(min=0) if one_sided else excess).square().mean()


def r1(critic: Critic, x_real: Tensor) -> Tensor:
    """½ E ‖∇ critic(x_real)‖², a scalar (Mescheder et al. 2018, eq. 9 without its γ).

    Played every k-th step ("lazy"), its coefficient is multiplied by k.

    >>> r1(lambda x: 3 * x[:, 0], torch.zeros(4, 2))
    tensor(4.5000)
    """
    return 0.5 * sum_per_example(input_gradient(critic, x_real).square()).mean()


def r2(critic: Critic, x_fake: Tensor) -> Tensor:
    """½ E ‖∇ critic(x_fake)‖², a scalar: R1 at generated examples (Mescheder et al. 2018). x_fake is detached."""
    return r1(critic, x_fake)


def drift(real_logits: Tensor) -> Tensor:
    """E critic(x_real)², a scalar (Karras et al. 2018, appendix A, without its 0.001).

    A Wasserstein critic is defined up to a constant; this keeps the constant from wandering.
    """
    return single_precision(real_logits).square().mean()


@torch.no_grad()
def clip_weights(net: nn.Module, limit: float) -> None:
    """Clamps every parameter of `net` to [-limit, limit], in place (Arjovsky et al. 2017, algorithm 1).

    Buffers, such as running statistics, stay. `limit` is positive, 0.01 in the paper; otherwise `InputError`.
    """
    if not limit > 0:
        raise InputError(f"the weight limit is {limit}; give a positive number (0.01 in the WGAN paper)")
    for parameter in net.parameters():
        parameter.clamp_(-limit, limit)
