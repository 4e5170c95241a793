"""A decoder-only Transformer on tokens (GPT-2's layout: Radford et al. 2019), with or without a class label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from twofold.errors import InputError
from twofold.nets.attention import CausalAttention, KeyValues
from twofold.nets.labels import FirstSlot, without_label
from twofold.nets.layers import Projection, whole


@dataclass
class TransformerCache:
    """Keys and values of every layer, and what stands in the place before the first token."""

    layers: list[KeyValues]
    begin: Tensor


class TransformerBlock(nn.Module):
    """h + attention(norm h), then h + MLP(norm h)."""

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, dropout=dropout)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(Projection(width, 4 * width), nn.GELU(), Projection(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor, memory: KeyValues | None = None) -> Tensor:
        h = h + self._dropped(self.attention(self.norm(h), memory))
        return h + self._dropped(self.mlp(self.norm_mlp(h)))

    def _dropped(self, branch: Tensor) -> Tensor:
        return self.drop(branch) if self.training else branch


class GPT(nn.Module):
    """Logits of each token of a sequence given those before it: (batch, n) int64 → (batch, n, vocabulary).

    A slot for what precedes the first token (a learned vector, plus the label's) takes the first place, so that n
    tokens need n places; `window` is the number of places. It obeys `decode.SequenceModel`: `start` and `step` compute
    token by token what calling it computes at once. A window that slides begins with the slot again, as training
    windows do.

    Args:
        classes: number of labels; `condition` may then hold "y" (batch,) int64, in which `classes` stands for no label.
        dropout: of embeddings, attention and residual branches while training.

    Raises `InputError` for sizes that do not fit, more tokens than the window has, and labels a model without classes
    is given.

    >>> net = GPT(512, 64, width=32, layers=2, heads=4)
    >>> net(torch.zeros(3, 64, dtype=torch.int64)).shape
    torch.Size([3, 64, 512])
    """

    slides = True

    def __init__(
        self,
        vocabulary: int,
        window: int,
        *,
        width: int = 256,
        layers: int = 8,
        heads: int = 8,
        dropout: float = 0.0,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary = whole("vocabulary", vocabulary)
        self.window = whole("window", window)
        self.classes = classes
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.empty(window, width))
        self.begin = FirstSlot(width, classes)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = Projection(width, vocabulary, bias=False)
        self._start_weights(layers)

    def _start_weights(self, layers: int) -> None:
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                # Branches add up along the layers, so each starts smaller the more there are (GPT-2).
                last = name.endswith(("attention.out.weight", "mlp.2.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        batch, length = tokens.shape
        if not 1 <= length <= self.window:
            raise InputError(f"{length} tokens do not fit; this model's window has 1 to {self.window}")
        h = torch.cat([self.begin(batch, condition), self.tokens(tokens[:, :-1])], dim=1)
        h = self.drop(h + self.places[:length])
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))

    def start(self, rows: int, condition: Mapping[str, Tensor] | None = None) -> TransformerCache:
        """An empty cache with room for the window."""
        attentions = [cast(TransformerBlock, block).attention for block in self.blocks]
        return TransformerCache([a.memory(rows, self.window) for a in attentions], self.begin(rows, condition))

    def step(self, tokens: Tensor, cache: TransformerCache) -> Tensor:
        """Logits (rows, vocabulary) of the token after tokens (rows, k), which follow those in the cache."""
        filled = cache.layers[0].filled
        h = self.tokens(tokens)
        if not filled:
            h = torch.cat([cache.begin, h], dim=1)
        if filled + h.shape[1] > self.window:
            raise InputError(f"the window of {self.window} places is full; start a new one from the last tokens")
        h = h + self.places[filled : filled + h.shape[1]]
        for block, memory in zip(self.blocks, cache.layers, strict=True):
            h = block(h, memory)
        return self.head(self.norm(h[:, -1]))

    def null(self, condition: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The condition without its label."""
        return without_label(condition, self.classes)
