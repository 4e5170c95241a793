"""Which networks may be called once on several batches, and the call that does so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from twofold.errors import InputError


def mixes_examples(net: nn.Module) -> bool:
    """Whether an example's output can depend on the other examples of its batch: BatchNorm of any kind, or a layer
    that declares itself with the attribute `mixes_examples = True` (a minibatch statistic, say).

    >>> mixes_examples(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    True
    """
    return any(_can_mix(module) for module in net.modules())


def call_together(
    net: nn.Module, *xs: Tensor, ys: Sequence[Tensor | None] | None = None, method: Callable[..., Any] | None = None
) -> tuple[Any, ...]:
    """`net` on each of `xs`, in one call on their concatenation wherever that leaves the maths unchanged.

    A network that mixes examples in the mode it is in gets separate calls, in order, so that real and generated
    batches keep statistics of their own; in eval mode BatchNorm mixes nothing, and the call is one again.

    What is not the same number for number: a network with dropout draws other masks, and spectral normalisation
    refines its estimate once instead of once per batch.

    Args:
        net: decides whether the calls may be joined; called itself if there is no `method`.
        xs: batches (batch_i, …) of one shape per example.
        ys: each batch's second argument (labels (batch_i,), or the codes of a joint discriminator); all None is the
            same as no ys.
        method: called instead of `net`, e.g. `partial(net.forward_with_features, layer=3)`. Returns a tensor, or a
            tuple of tensors, with the batch first.

    Returns one result per batch, each shaped as a separate call's would be.

    Raises `InputError` if there is nothing to call on, not one of `ys` per batch, or only some of them are None.

    >>> net = nn.Linear(2, 1)
    >>> real, fake = call_together(net, torch.zeros(3, 2), torch.ones(4, 2))
    >>> real.shape, fake.shape
    (torch.Size([3, 1]), torch.Size([4, 1]))
    """
    if not xs:
        raise InputError("call_together was given no batches; give at least one")
    if ys is not None and len(ys) != len(xs):
        raise InputError(f"call_together was given {len(ys)} ys for {len(xs)} batches; give one for each")
    second = [y for y in ys or () if y is not None]
    if second and len(second) != len(xs):
        raise InputError(f"call_together was given ys for {len(second)} of {len(xs)} batches; give all or none")
    call = net if method is None else method
    columns = [list(xs), second] if second else [list(xs)]
    if len(xs) == 1 or any(_mixes_now(module) for module in net.modules()):
        return tuple(call(*arguments) for arguments in zip(*columns, strict=True))
    joined = call(*(torch.cat(parts) for parts in columns))
    return _split(joined, [len(x) for x in xs])


def _can_mix(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) or getattr(module, "mixes_examples", False) is True


def _mixes_now(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        return module.training or module.running_mean is None
    return _can_mix(module)


def _split(joined: Any, sizes: list[int]) -> tuple[Any, ...]:
    if isinstance(joined, Tensor):
        return joined.split(sizes)
    return tuple(zip(*(part.split(sizes) for part in joined), strict=True))
