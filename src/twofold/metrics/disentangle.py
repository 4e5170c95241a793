"""Disentanglement: does one latent dimension stand for one factor of the data?

Two kinds of measurement. Interventions need a renderer, `encode(factors)` → codes, that draws pictures with chosen
factors: the β-VAE metric (Higgins et al. 2017) and the FactorVAE score (Kim & Mnih 2018). Observations need codes and
factors of the same examples: MIG (Chen et al. 2018), SAP (Kumar et al. 2018), DCI (Eastwood & Williams 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from twofold.errors import InputError

Encode = Callable[[Tensor], Tensor]
"""Factor indices (n, factors) int64 → codes (n, latent) of pictures with these factors."""

_PICTURES = 2048
"""Pictures drawn and encoded at a time."""


def difference_features(
    encode: Sequence[Encode], sizes: Sequence[int], varied: Sequence[int], *, pairs: int, votes: int, seed: int
) -> tuple[list[Tensor], Tensor]:
    """The votes of the β-VAE metric for several encoders on the same pictures: per encoder (votes, latent), and which
    of `varied` was held fixed (votes,).

    For each vote: a factor of `varied` is drawn, and `pairs` pairs of factor vectors that agree in it; the vote is the
    mean over pairs of |z₁ - z₂|. Factors outside `varied` are drawn like the others but never held fixed.
    """
    if pairs < 1 or votes < 2 or len(varied) < 2:
        raise InputError(f"pairs is {pairs}, votes {votes}, varied {list(varied)}; at least 1, 2 and two factors")
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.randint(len(varied), (votes,), generator=generator)
    features: list[list[Tensor]] = [[] for _ in encode]
    for block in fixed.split(max(1, _PICTURES // (2 * pairs))):
        first, second = (_factors(len(block) * pairs, sizes, generator) for _ in range(2))
        held = torch.tensor(varied)[block].repeat_interleave(pairs)[:, None]
        second.scatter_(1, held, first.gather(1, held))
        for kept, function in zip(features, encode, strict=True):
            difference = (function(first).double() - function(second).double()).abs()
            kept.append(difference.unflatten(0, (len(block), pairs)).mean(1))
    return [torch.cat(kept) for kept in features], fixed


def beta_vae_score(features: Tensor, fixed: Tensor, *, train: int) -> Tensor:
    """(test votes,) float: 1 where a linear classifier, fitted on the first `train` votes, tells from the rest which
    factor was held fixed.

    Multinomial logistic regression on standardised features. Predicting a factor's value is another metric.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = _standardised(features, train), fixed.numpy()
    classifier = LogisticRegression(max_iter=1000).fit(x[:train], y[:train])
    return torch.from_numpy(classifier.predict(x[train:]) == y[train:]).double()


def factor_vae_score(
    encode: Encode,
    sizes: Sequence[int],
    varied: Sequence[int],
    *,
    batch: int = 64,
    train: int = 800,
    test: int = 800,
    spread: int = 10_000,
    seed: int = 0,
) -> Tensor:
    """(test votes,) float: 1 where the majority vote is right (Kim & Mnih 2018, section 4).

    For each vote a factor is held fixed in `batch` pictures; the vote is the latent dimension whose variance, divided
    by its variance over `spread` pictures, is least. A dimension stands for the factor that was most often fixed when
    it won. Dimensions that hardly vary at all (under 0.05 of the largest deviation) do not take part.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = _factors(spread, sizes, generator).split(_PICTURES)
    overall = torch.cat([encode(block).double() for block in blocks]).var(0)
    active = overall.sqrt() > 0.05 * overall.sqrt().max()
    if not bool(active.any()):
        return torch.zeros(test, dtype=torch.float64)
    fixed = torch.randint(len(varied), (train + test,), generator=generator)
    winners = []
    for block in fixed.split(max(1, _PICTURES // batch)):
        factors = _factors(len(block) * batch, sizes, generator).unflatten(0, (len(block), batch))
        held = torch.tensor(varied)[block][:, None, None]
        same = factors[:, :1].gather(2, held).expand(-1, batch, -1)
        factors.scatter_(2, held.expand(-1, batch, -1), same)
        codes = encode(factors.flatten(0, 1)).double().unflatten(0, (len(block), batch))
        normalised = torch.where(active, codes.var(1) / overall, torch.inf)
        winners.append(normalised.argmin(1))
    winner = torch.cat(winners)
    votes = torch.zeros(len(overall), len(varied), dtype=torch.int64)
    votes.index_put_((winner[:train], fixed[:train]), torch.ones(train, dtype=torch.int64), accumulate=True)
    return (votes.argmax(1)[winner[train:]] == fixed[train:]).double()


def mutual_information_gap(codes: Tensor, factors: Tensor, *, bins: int = 20) -> Tensor:
    """(factors,): the gap between the two dimensions that know most of a factor, as a part of its entropy. The mean
    is the MIG.

    Mutual information of codes (n, latent), cut into `bins` equal bins between their smallest and largest value, and
    factors (n, factors) with few values. Deviation: Chen et al. draw from the posterior; this takes its mean, as
    Locatello et al. 2019 do.
    """
    information, entropy = _information(codes, factors, bins)
    top = information.topk(min(2, len(information)), dim=0).values
    second = top[1] if len(top) > 1 else torch.zeros_like(top[0])
    return (top[0] - second) / entropy


def separated_predictability(codes: Tensor, factors: Tensor, *, train: int) -> Tensor:
    """(factors,): the gap between the two dimensions that alone best predict a factor's value; the mean is SAP.

    Kumar et al. 2018 with a linear SVM (C = 0.01) for each dimension and factor, fitted on the first `train` examples
    and scored on the rest, as Locatello et al. 2019 measure it.
    """
    from sklearn.svm import LinearSVC

    x, score = _standardised(codes, train), np.zeros((codes.shape[1], factors.shape[1]))
    for i in range(codes.shape[1]):
        for j in range(factors.shape[1]):
            y = factors[:, j].long().numpy()
            column = x[:, i : i + 1]
            model = LinearSVC(C=0.01, class_weight="balanced", dual=False).fit(column[:train], y[:train])
            score[i, j] = model.score(column[train:], y[train:])
    ordered = np.sort(score, axis=0)[::-1]
    return torch.from_numpy(ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0))


class DCI(NamedTuple):
    """Eastwood & Williams 2018; each in [0, 1]."""

    disentanglement: float
    """Does each dimension serve one factor? Weighted by how much it serves at all."""
    completeness: float
    """Is each factor served by one dimension?"""
    informativeness: float
    """Accuracy of predicting the factors from all dimensions."""


def dci(codes: Tensor, factors: Tensor, *, train: int, seed: int = 0) -> DCI:
    """From the importances of boosted trees (100 trees of depth 3, Locatello et al. 2019) that predict each factor of
    (n, factors) from codes (n, latent), fitted on the first `train` examples. Takes minutes."""
    from sklearn.ensemble import GradientBoostingClassifier

    x, importance, accuracy = codes.double().numpy(), np.zeros((codes.shape[1], factors.shape[1])), []
    for j in range(factors.shape[1]):
        y = factors[:, j].long().numpy()
        model = GradientBoostingClassifier(random_state=seed).fit(x[:train], y[:train])
        importance[:, j] = np.abs(model.feature_importances_)
        accuracy.append(model.score(x[train:], y[train:]))
    return DCI(*importance_scores(torch.from_numpy(importance)), float(np.mean(accuracy)))


def importance_scores(importance: Tensor) -> tuple[float, float]:
    """(disentanglement, completeness) of an importance matrix (latent, factors): 1 minus the entropy of each row, of
    each column, in units of its largest value; rows weighted by their sum, columns too."""
    latent, factors = importance.shape
    total = importance.sum().clamp(min=1e-12)
    rows = importance / importance.sum(1, keepdim=True).clamp(min=1e-12)
    columns = importance / importance.sum(0, keepdim=True).clamp(min=1e-12)
    row_entropy = torch.special.entr(rows).sum(1) / max(np.log(factors), 1e-12)
    column_entropy = torch.special.entr(columns).sum(0) / max(np.log(latent), 1e-12)
    disentanglement = ((1 - row_entropy) * importance.sum(1) / total).sum()
    completeness = ((1 - column_entropy) * importance.sum(0) / total).sum()
    return float(disentanglement), float(completeness)


def _factors(n: int, sizes: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.stack([torch.randint(size, (n,), generator=generator) for size in sizes], dim=1)


def _standardised(features: Tensor, train: int) -> np.ndarray:
    """By the mean and deviation of the first `train`; a collapsed dimension stays, as zeros."""
    if not 2 <= train < len(features):
        raise InputError(f"train is {train}; it leaves {len(features) - train} of {len(features)} to test on")
    x = features.double()
    mean, std = x[:train].mean(0), x[:train].std(0)
    # Below rounding a deviation is noise, not a signal to be blown up.
    return torch.where(std > 1e-12, (x - mean) / std.clamp(min=1e-12), 0.0).numpy()


def _information(codes: Tensor, factors: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Mutual information (latent, factors) and the factors' entropy (factors,), in nats."""
    n, latent = codes.shape
    information = torch.zeros(latent, factors.shape[1], dtype=torch.float64)
    entropy = torch.zeros(factors.shape[1], dtype=torch.float64)
    low, high = codes.double().amin(0), codes.double().amax(0)
    place = (codes.double() - low) / (high - low).clamp(min=1e-12)
    cells = (place * bins).long().clamp(max=bins - 1)
    for j in range(factors.shape[1]):
        _, value = factors[:, j].unique(return_inverse=True)
        count = int(value.max()) + 1
        entropy[j] = torch.special.entr(torch.bincount(value).double() / n).sum()
        if count < 2:
            raise InputError(f"factor {j} has a single value in these examples; leave it out")
        for i in range(latent):
            joint = torch.bincount(cells[:, i] * count + value, minlength=bins * count).view(bins, count).double() / n
            marginals = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
            information[i, j] = (torch.xlogy(joint, joint) - torch.xlogy(joint, marginals.clamp(min=1e-300))).sum()
    return information, entropy
