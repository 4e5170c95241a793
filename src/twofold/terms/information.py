"""How much an example tells about a code: lower bounds of mutual information, and total correlation from a density
ratio. All in nats and per example unless said otherwise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.errors import InputError
from twofold.terms.likelihood import normal_nll
from twofold.terms.matching import require_same_shape, single_precision


def categorical_information(logits: Tensor, code: Tensor) -> Tensor:
    """H(c) + log Q(c|x) for a code c with `values` equally likely values; its mean is a lower bound of I(c; x).

    InfoGAN (Chen et al. 2016, eq. 5), maximised. Shapes: logits (batch, values), code (batch,) int64 → (batch,). Never
    above log values, which is reached when Q names every code with certainty; 0 if Q knows nothing. Gradient of one
    example's value: one-hot - softmax(logits).

    >>> categorical_information(torch.zeros(1, 10), torch.tensor([3]))
    tensor([0.])
    """
    if logits.ndim != 2 or code.shape != logits.shape[:1] or code.dtype != torch.int64:
        raise ValueError(
            f"logits is {tuple(logits.shape)}, code is {code.dtype} {tuple(code.shape)}; "
            "give (batch, values) and int64 (batch,)"
        )
    return math.log(logits.shape[1]) - F.cross_entropy(single_precision(logits), code, reduction="none")


def uniform_information(mean: Tensor, code: Tensor, *, std: float) -> Tensor:
    """H(c) + log Q(c|x) for codes uniform on [-1, 1], Q(c|x) = N(mean, std²); its mean is a lower bound of I(c; x).

    Shapes (batch, codes) twice → (batch,), summed over the codes. H(c) is log 2 for each. At most
    codes · (log 2 - log(std √(2π))): with std = 1, InfoGAN's released choice, that is negative, and the bound says
    nothing, though its gradient, (code - mean) / std², teaches.
    """
    require_same_shape(mean=mean, code=code)
    if not 0 < std < math.inf:
        raise InputError(f"the standard deviation of the continuous codes is {std}; give a number above 0")
    return math.log(2.0) * code[0].numel() - normal_nll(mean, code, log_std=math.log(std))


def total_correlation(logits: Tensor) -> Tensor:
    """Mean logit over draws z of q(z), a scalar: KL(q(z) ‖ Π_j q(z_j)) if the discriminator is the optimal one between
    draws of q(z) (as real) and of the product of its marginals.

    FactorVAE (Kim & Mnih 2018, eq. 3), minimised by the encoder; the gradient at each of n logits is 1/n. An estimate,
    neither an upper nor a lower bound, and below 0 where the discriminator lags behind.
    """
    return single_precision(logits).mean()
