"""How well a score finds anomalies: area under the ROC curve and average precision with their standard errors, and a
threshold for a chosen rate of false alarms. Larger scores mean more anomalous."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from twofold.errors import InputError

RESAMPLES = 200
_CHUNK = 2**23


def detection(scores: Tensor, anomalous: Tensor, *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, float]:
    """{"auroc", "auroc_se", "aupr", "aupr_se"} of `scores` (n,) against `anomalous` (n,) bool.

    `auroc` is the probability that an anomaly scores higher than a normal example, ties counting half. `aupr` is the
    average precision, anomalies being the positives; a score that knows nothing has their share. Standard errors are
    the standard deviation over `resamples` bootstrap samples, anomalies and normal examples resampled apart.

    Raises `InputError` unless there are both kinds and all scores are finite.

    >>> found = detection(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([False, False, True]))
    >>> found["auroc"], found["aupr"]
    (1.0, 1.0)
    """
    if scores.shape != anomalous.shape or scores.dim() != 1:
        raise InputError(f"scores are {tuple(scores.shape)}, labels {tuple(anomalous.shape)}; give (n,) each")
    if not anomalous.any() or anomalous.all():
        raise InputError(f"{int(anomalous.sum())} of {len(scores)} examples are anomalies; both kinds are needed")
    if not scores.isfinite().all():
        raise InputError("scores must be finite")
    values, order = scores.double().sort(descending=True)
    positive = anomalous[order]
    last = torch.cat([values[1:] != values[:-1], torch.tensor([True])])
    auroc, aupr = _areas(torch.ones(1, len(values), dtype=torch.float64), positive, last)
    generator = torch.Generator().manual_seed(seed)
    size, drawn = max(1, _CHUNK // len(values)), []
    for start in range(0, resamples, size):
        weights = _resampled(positive, min(size, resamples - start), generator)
        drawn.append(torch.stack(_areas(weights, positive, last)))
    spread = torch.cat(drawn, dim=1).std(dim=1)
    return {
        "auroc": auroc.item(), "auroc_se": spread[0].item(), "aupr": aupr.item(), "aupr_se": spread[1].item(),
    }  # fmt: skip


def _areas(weights: Tensor, positive: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """AUROC and average precision, each (b,), of examples in order of falling score with weights (b, n); `last` marks
    the last of each group of equal scores."""
    hits = (weights * positive).cumsum(1)[:, last]
    alarms = (weights * ~positive).cumsum(1)[:, last]
    before_hits, before_alarms = (torch.nn.functional.pad(v, (1, 0))[:, :-1] for v in (hits, alarms))
    area = ((alarms - before_alarms) * (hits + before_hits) / 2).sum(1)
    precision = hits / (hits + alarms).clamp_min(1e-300)
    average = ((hits - before_hits) * precision).sum(1) / hits[:, -1]
    return area / (hits[:, -1] * alarms[:, -1]), average


def _resampled(positive: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """How often each example is drawn, (count, n), when each kind is drawn from with replacement."""
    weights = torch.zeros(count, len(positive), dtype=torch.float64)
    for kind in (positive, ~positive):
        own = kind.nonzero().squeeze(1)
        drawn = own[torch.randint(len(own), (count, len(own)), generator=generator)]
        weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return weights


def threshold(normal: Tensor, false_alarm: float) -> float:
    """The score above which an example is called anomalous, so that a further normal example is with probability
    `false_alarm` at most: the k-th smallest of the n scores of `normal`, k = ⌈(n + 1)(1 - false_alarm)⌉ (the quantile
    of conformal prediction, Vovk et al. 2005).

    Raises `InputError` for a rate outside (0, 1), and if there are too few scores to promise it.

    >>> threshold(torch.arange(1.0, 20.0), 0.1)
    18.0
    """
    if not 0 < false_alarm < 1:
        raise InputError(f"the rate of false alarms is {false_alarm}; give a number between 0 and 1")
    # Rounded, as 20 · (1 - 0.1) is a little above 18.
    k = math.ceil(round((len(normal) + 1) * (1 - false_alarm), 9))
    if k > len(normal):
        raise InputError(
            f"{len(normal)} normal examples cannot promise a false-alarm rate of {false_alarm:g}; "
            f"at least {math.ceil(round(1 / false_alarm, 9)) - 1} can"
        )
    return float(normal.double().sort().values[max(k, 1) - 1])
