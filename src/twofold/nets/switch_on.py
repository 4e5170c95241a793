"""What a discriminator's switch-on does to the reconstruction, measured while it happens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SwitchOn(nn.Module):
    """Follows an error before and after a moment: a moving average, its value at that moment, and the largest rise
    since. Memory of a game: buffers only, nothing waits for the device.

    The average is corrected for its start at 0: it is a weighted mean of what was seen.

    >>> memory = SwitchOn(half_life_examples=100)
    >>> for error, on in ((1.0, False), (1.0, False), (1.3, True)):
    ...     memory.note(torch.tensor(error), examples=1000, on=on)
    >>> round(float(memory.rise()), 2), round(float(memory.largest_rise), 2)
    (0.3, 0.3)
    """

    total: Tensor
    mass: Tensor
    before: Tensor
    largest_rise: Tensor

    def __init__(self, *, half_life_examples: float) -> None:
        super().__init__()
        self.half_life_examples = half_life_examples
        for name in ("total", "mass", "before", "largest_rise"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def note(self, error: Tensor, *, examples: int, on: bool) -> None:
        """Take in the error (a scalar) of a batch of so many examples, seen before or after the switch-on."""
        keep = 0.5 ** (examples / self.half_life_examples)
        self.total.mul_(keep).add_((1 - keep) * error)
        self.mass.mul_(keep).add_(1 - keep)
        if on:
            # Switched on from the first step there is no before: the first error stands for it.
            self.before.copy_(torch.where(self.before > 0, self.before, self.mean()))
            self.largest_rise.copy_(torch.maximum(self.largest_rise, self.rise()))
        else:
            self.before.copy_(self.mean())

    def mean(self) -> Tensor:
        """The moving average of the error."""
        return self.total / self.mass.clamp_min(torch.finfo(self.mass.dtype).tiny)

    def rise(self) -> Tensor:
        """The average now, relative to before, minus 1: 0.3 is an error 30 % larger. 0 before the switch-on."""
        return (
            torch.where(self.before > 0, self.mean() / self.before.clamp_min(torch.finfo(self.before.dtype).tiny), 1)
            - 1
        )
