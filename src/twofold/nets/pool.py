"""The pool of past images that a discriminator is shown beside new ones (Shrivastava et al. 2017)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from twofold.nets.layers import whole


@dataclass(frozen=True)
class Shown:
    """What the discriminator is to be shown of a batch of generated images."""

    new: list[int]
    """Those of the batch that are shown themselves."""
    past: Tensor | None
    """Past images, in place of the others; None if there are none."""


class ImagePool(nn.Module):
    """Up to `size` past images. Holds buffers only, and no gradient.

    Each new image is shown as it is until the pool is full, and with probability ½ afterwards; otherwise a past image
    is shown in its place, and the new one takes that one's place in the pool. Which ones is decided on the host, from
    numbers that the host knows, so that the images that are shown themselves need no second pass through the
    discriminator and nothing waits for the device.

    >>> pool = ImagePool(1, (2,))
    >>> pool.show(torch.ones(1, 2), seen=0, key=0).new
    [0]
    """

    images: Tensor
    filled: Tensor

    @property
    def uneven(self) -> bool:
        """Whether how many images a network sees in one call depends on what is shown."""
        return self.size > 0

    def __init__(self, size: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.size = whole("pool", size, least=0)
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))

    def show(self, images: Tensor, *, seen: int, key: int, own: range | None = None) -> Shown:
        """Put `images` (batch, …) in and say what to show. `seen`: images of earlier calls; `key`: a number that
        decides what is chosen at random. `own`: say it only of these images of the batch, counted from the first of
        them; all go in."""
        images = images.detach()
        draw = random.Random(f"{key} {seen}")
        count = len(images)
        new = [k for k in range(count) if seen + k < self.size]
        free = list(range(min(self.size, seen)))
        draw.shuffle(free)
        exchanged: list[tuple[int, int]] = []
        for k in range(len(new), count):
            # Each place is used once in a batch, so that one call can read and write them all.
            if self.size and free and draw.random() < 0.5:
                exchanged.append((k, free.pop()))
            else:
                new.append(k)
        stored = [k for k in new if seen + k < self.size]
        own = range(count) if own is None else own
        past = None
        if exchanged:
            which, places = (torch.tensor(v, device=images.device) for v in zip(*exchanged, strict=True))
            there = self.filled[places].view(-1, *[1] * (images.dim() - 1))
            past = torch.where(there, self.images[places].to(images.dtype), images[which])
            past = past[[j for j, (k, _) in enumerate(exchanged) if k in own]]
            self._put(places, images[which])
        if stored:
            places = torch.tensor([seen + k for k in stored], device=images.device)
            self._put(places, images[torch.tensor(stored, device=images.device)])
        return Shown([k - own.start for k in new if k in own], None if past is None or not len(past) else past)

    def _put(self, places: Tensor, images: Tensor) -> None:
        self.images[places] = images.to(self.images.dtype)
        self.filled[places] = True
