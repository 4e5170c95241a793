"""How a token is drawn from its logits: temperature, top-k, top-p, in any combination."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from twofold.errors import InputError


@dataclass(frozen=True)
class Sampler:
    """A rule for drawing one token a row. The parts apply in this order: temperature, top-k, top-p.

    Raises `InputError` for values outside their range.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: int | None = None
    """Only the k most probable tokens; tokens as probable as the k-th stay too."""
    top_p: float | None = None
    """Only the most probable tokens whose probabilities sum to at least p: the smallest such set (Holtzman et al.
    2020), plus what is as probable as its least member."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature}; give a finite number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}; it starts at 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; give a number above 0 up to 1")

    def logits(self, logits: Tensor) -> Tensor:
        """Logits (rows, vocabulary) in float32 after temperature, with what may not be drawn at -inf."""
        logits = logits.float()
        if self.temperature in (0, 1):
            scaled = logits
        else:
            # Shifted first: at a low temperature the quotient of large logits would be infinite.
            scaled = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = scaled.topk(self.top_k, dim=-1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < least, -math.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered = scaled.sort(dim=-1, descending=True).values
            before = ordered.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
            before[..., 0] = 0
            least = ordered.masked_fill(before >= self.top_p, math.inf).amin(dim=-1, keepdim=True)
            scaled = scaled.masked_fill(scaled < least, -math.inf)
        return scaled

    def draw(self, logits: Tensor, u: Tensor) -> Tensor:
        """One token a row, (rows,) int64, from logits (rows, vocabulary) and a number u (rows, 1) in [0, 1) each: the
        token at which the sum of probabilities passes u. A token of probability 0 is never drawn.

        >>> Sampler().draw(torch.zeros(2, 4), torch.tensor([[0.1], [0.6]]))
        tensor([0, 2])
        """
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        total = self.logits(logits).softmax(dim=-1).cumsum(dim=-1)
        return (total <= u * total[:, -1:]).sum(dim=-1)


GREEDY = Sampler(temperature=0.0)
"""Takes the most probable token each time."""
