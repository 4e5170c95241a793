"""Causal self-attention with a memory of keys and values that is allocated once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.errors import InputError
from twofold.nets.layers import Projection, whole


@dataclass
class KeyValues:
    """Keys and values of the places seen so far, (2, batch, heads, places, size) with room for all that will come."""

    room: Tensor
    filled: int = 0

    @classmethod
    def empty(cls, batch: int, heads: int, places: int, size: int, *, like: Tensor) -> KeyValues:
        """Room for `places`, in the dtype and on the device of `like`."""
        return cls(like.new_zeros(2, batch, heads, places, size))

    def take(self, new: Tensor) -> Tensor:
        """Append keys and values (2, batch, heads, n, size), and return all that are there, as a view."""
        before, self.filled = self.filled, self.filled + new.shape[3]
        self.room[:, :, :, before : self.filled] = new
        return self.room[:, :, :, : self.filled]


class CausalAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) in which each place sees itself and the places before it.

    (batch, places, width) → the same shape. With a memory, the places given are taken to follow those in it.

    Raises `InputError` if the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, *, inputs: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = whole("heads", heads)
        if whole("width", width) % heads:
            raise InputError(f"width is {width}, heads {heads}; the heads must divide the width")
        self.size = width // heads
        self.dropout = dropout
        self.joint = Projection(inputs or width, 3 * width)
        self.out = Projection(width, width)

    def memory(self, batch: int, places: int) -> KeyValues:
        """An empty memory with room for `places`."""
        return KeyValues.empty(batch, self.heads, places, self.size, like=self.joint.weight)

    def forward(self, h: Tensor, memory: KeyValues | None = None) -> Tensor:
        batch, new, _ = h.shape
        joint = self.joint(h).view(batch, new, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        if memory is None:
            rate = self.dropout if self.training else 0.0
            queries, keys, values = joint.unbind()  # (batch, heads, places, size) each
            seen = F.scaled_dot_product_attention(queries, keys, values, dropout_p=rate, is_causal=True)
        else:
            before = memory.filled
            keys, values = memory.take(joint[1:]).unbind()
            mask = None
            if new > 1:
                mask = torch.ones(new, before + new, dtype=torch.bool, device=h.device).tril(before)
            seen = F.scaled_dot_product_attention(joint[0], keys, values, attn_mask=mask)
        return self.out(seen.transpose(1, 2).flatten(2))
