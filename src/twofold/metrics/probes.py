"""Probes: what labels can be read from features that were learned without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.errors import InputError

GRID = 4
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Values of C that are tried, for examples of mean squared length 1."""


def linear_probe(train: Tensor, y_train: Tensor, test: Tensor, y_test: Tensor, *, seed: int = 0) -> Tensor:
    """(test,) float: 1 where a linear L2-SVM fitted on (n, d) features tells the label (Radford et al. 2016, section
    5). Features are standardised and scaled to examples of mean squared length 1, so that C means the same for few
    features and for many; it is chosen on a fifth of the training examples, then all are used."""
    from sklearn.svm import LinearSVC

    if len(y_train.unique()) < 2:
        raise InputError("a probe needs training examples of at least 2 labels")
    mean, std = train.double().mean(0), train.double().std(0).clamp(min=1e-8)
    x, x_test = (((z.double() - mean) / std / train.shape[1] ** 0.5).numpy() for z in (train, test))
    y = y_train.numpy()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).numpy()
    kept, held = order[len(x) // 5 :], order[: len(x) // 5]
    strength = 1.0
    if len(held) >= 10 and len(set(y[kept].tolist())) > 1:
        scores = [_svm(LinearSVC, c, seed).fit(x[kept], y[kept]).score(x[held], y[held]) for c in STRENGTHS]
        strength = STRENGTHS[scores.index(max(scores))]
    predicted = _svm(LinearSVC, strength, seed).fit(x, y).predict(x_test)
    return (torch.from_numpy(predicted) == y_test).double()


def few_label_curve(
    train: Tensor,
    y_train: Tensor,
    test: Tensor,
    y_test: Tensor,
    *,
    labels: Sequence[int],
    draws: int = 5,
    seed: int = 0,
    probe: Callable[..., Tensor] = linear_probe,
) -> dict[int, tuple[float, float]]:
    """{labels of each class: (mean accuracy, its standard deviation)} over `draws` random choices of the labelled
    examples. Counts that some class does not have are left out."""
    least = int(torch.bincount(y_train).min())
    generator, found = torch.Generator().manual_seed(seed), {}
    for count in (c for c in labels if c <= least):
        accuracies = []
        for _ in range(draws):
            chosen = torch.cat([_some(y_train == label, count, generator) for label in y_train.unique()])
            accuracies.append(float(probe(train[chosen], y_train[chosen], test, y_test, seed=seed).mean()))
        found[count] = (sum(accuracies) / draws, float(torch.tensor(accuracies).std()) if draws > 1 else 0.0)
    return found


def discriminator_features(discriminator: nn.Module, x: Tensor) -> Tensor:
    """Every hidden block's output on x (n, channels, height, width), max-pooled to a 4×4 grid where it is larger,
    flattened and concatenated: (n, d), DCGAN's protocol. Blocks without a map are taken as they are.

    Raises `InputError` for a network that does not list its blocks.
    """
    blocks = getattr(getattr(discriminator, "net", discriminator), "layers", None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        raise InputError("this discriminator does not list its hidden blocks, so it has no features to probe")
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda module, given, out: outputs.append(out[0] if isinstance(out, tuple) else out)
        )
        for block in blocks
    ]
    try:
        with torch.no_grad():
            discriminator(x)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([_pooled(h).flatten(1) for h in outputs], dim=1)


def _pooled(h: Tensor) -> Tensor:
    if h.dim() != 4 or max(h.shape[2:]) <= GRID:
        return h
    return F.adaptive_max_pool2d(h, (min(GRID, h.shape[2]), min(GRID, h.shape[3])))


def _some(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    indices = mask.nonzero()[:, 0]
    return indices[torch.randperm(len(indices), generator=generator)[:count]]


def _svm(kind: Callable[..., Any], strength: float, seed: int) -> Any:
    return kind(C=strength, dual="auto", max_iter=5000, random_state=seed)
