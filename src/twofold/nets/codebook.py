"""Codebooks for vector quantisation: learned by gradient or by moving averages, and what keeps their codes alive."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from twofold.nets.layers import whole


class Codebook(nn.Module):
    """`codes` vectors of `latent` values as a parameter, trained by a loss (van den Oord et al. 2017, eq. 3).

    Starts uniform on ±√(3 / latent), so that a code's squared length is 1 on average.

    >>> Codebook(512, 64)(torch.zeros(8, 4, 4, dtype=torch.int64)).shape
    torch.Size([8, 4, 4, 64])
    """

    def __init__(self, codes: int, latent: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_start(codes, latent))

    def forward(self, indices: Tensor) -> Tensor:
        """Indices (…,) int64 to vectors (…, latent)."""
        return nn.functional.embedding(indices, self.weight)

    @torch.no_grad()
    def replace(self, where: Tensor, vectors: Tensor) -> None:
        """Put `vectors` (codes, latent) in the place of the codes that `where` (codes,) bool marks."""
        self.weight.copy_(torch.where(where[:, None], vectors.to(self.weight.dtype), self.weight))


class AveragedCodebook(nn.Module):
    """`codes` vectors of `latent` values in buffers, each the moving average of the vectors that chose it
    (van den Oord et al. 2017, appendix A.1): K-means that runs along.

    With n_i vectors choosing code i, of sum s_i, `update` does

        N_i ← decay · N_i + (1 - decay) · n_i        m_i ← decay · m_i + (1 - decay) · s_i
        e_i = m_i / N'_i,   N'_i = N · (N_i + epsilon) / (N + codes · epsilon),   N = Σ_i N_i

    where the second line is Laplace smoothing: no code divides by zero. Holds no parameters: keep it in a game's
    memory, and call `update` in the rollout after the codes were used. Of several processes each gives its vectors to
    `sums_of`, and all update from the totals.

    The averages start at 0 and are not corrected for that, as the quotient does not need it; until a code is chosen for
    the first time it keeps its start.
    """

    weight: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, latent: int, *, decay: float = 0.99, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("weight", _start(codes, latent))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, latent))

    def forward(self, indices: Tensor) -> Tensor:
        """Indices (…,) int64 to vectors (…, latent)."""
        return nn.functional.embedding(indices, self.weight)

    @torch.no_grad()
    def sums_of(self, z: Tensor, indices: Tensor) -> Tensor:
        """s: the sum of the vectors z (n, latent) that chose each code, indices (n,), as (codes, latent)."""
        return torch.zeros_like(self.sums).index_add_(0, indices, z.to(self.sums.dtype))

    @torch.no_grad()
    def update(self, counts: Tensor, sums: Tensor) -> None:
        """Take in a batch: how many vectors chose each code, (codes,), and their sums, (codes, latent)."""
        self.counts.lerp_(counts.to(self.counts.dtype), 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total = self.counts.sum()
        smoothed = total * (self.counts + self.epsilon) / (total + len(self.counts) * self.epsilon)
        average = self.sums / smoothed.clamp_min(torch.finfo(smoothed.dtype).tiny)[:, None]
        self.weight.copy_(torch.where(self.counts[:, None] > 0, average, self.weight))

    @torch.no_grad()
    def replace(self, where: Tensor, vectors: Tensor) -> None:
        """Put `vectors` (codes, latent) in the place of the codes that `where` (codes,) bool marks, each counting as
        an average code does."""
        vectors, count = vectors.to(self.sums.dtype), self.counts.mean()
        self.weight.copy_(torch.where(where[:, None], vectors, self.weight))
        self.sums.copy_(torch.where(where[:, None], vectors * count, self.sums))
        self.counts.copy_(torch.where(where, count, self.counts))


class CodeUsage(nn.Module):
    """How long each code has gone unchosen; memory of a game. Nothing here waits for the device."""

    idle_examples: Tensor
    """(codes,) examples seen since the code was last chosen."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.register_buffer("idle_examples", torch.zeros(whole("codes", codes), dtype=torch.int64))

    @torch.no_grad()
    def restart(self, codebook: Codebook | AveragedCodebook, drawn: Tensor, *, after: int) -> Tensor:
        """Move each code that nobody chose for `after` examples onto its vector of `drawn` (codes, latent). Returns how
        many those are, a scalar."""
        dead = self.idle_examples >= after
        codebook.replace(dead, drawn)
        self.idle_examples.masked_fill_(dead, 0)
        return dead.sum().to(drawn.dtype)

    @torch.no_grad()
    def note(self, counts: Tensor, *, examples: int) -> None:
        """Note how often a batch of so many examples chose each code, (codes,)."""
        self.idle_examples.add_(examples).masked_fill_(counts > 0, 0)

    def share(self, within: int) -> Tensor:
        """The fraction of the codes that were chosen, or moved, within the last so many examples, a scalar."""
        return (self.idle_examples < within).float().mean()


def _start(codes: int, latent: int) -> Tensor:
    reach = math.sqrt(3 / whole("latent", latent))
    return (torch.rand(whole("codes", codes), latent) * 2 - 1) * reach
