"""A recurrent network on tokens, whose memory is its state and has no window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from twofold.nets.labels import FirstSlot, without_label
from twofold.nets.layers import whole


@dataclass
class RecurrentState:
    """The LSTM's hidden and cell state (layers, batch, width), and whether the first input is still to come."""

    hidden: Tensor
    cell: Tensor
    begin: Tensor
    fresh: bool = True


class RecurrentModel(nn.Module):
    """An LSTM that predicts each token from those before it: (batch, n) int64 → logits (batch, n, vocabulary).

    A learned vector, plus the label's, stands before the first token. It obeys `decode.SequenceModel`.

    >>> RecurrentModel(50, width=16)(torch.zeros(3, 7, dtype=torch.int64)).shape
    torch.Size([3, 7, 50])
    """

    window = None
    slides = False

    def __init__(
        self, vocabulary: int, *, width: int = 256, layers: int = 1, classes: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.vocabulary = whole("vocabulary", vocabulary)
        self.classes = classes
        self.tokens = nn.Embedding(vocabulary, width)
        self.begin = FirstSlot(width, classes)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        h = torch.cat([self.begin(len(tokens), condition), self.tokens(tokens[:, :-1])], dim=1)
        return self.head(self.lstm(h)[0])

    def start(self, rows: int, condition: Mapping[str, Tensor] | None = None) -> RecurrentState:
        """A state of zeros."""
        zeros = self.head.weight.new_zeros(self.lstm.num_layers, rows, self.lstm.hidden_size)
        return RecurrentState(zeros, zeros, self.begin(rows, condition))

    def step(self, tokens: Tensor, cache: RecurrentState) -> Tensor:
        """Logits (rows, vocabulary) of the token after tokens (rows, k), which follow those in the state."""
        h = self.tokens(tokens)
        if cache.fresh:
            h = torch.cat([cache.begin, h], dim=1)
        out, (cache.hidden, cache.cell) = self.lstm(h, (cache.hidden, cache.cell))
        cache.fresh = False
        return self.head(out[:, -1])

    def null(self, condition: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The condition without its label."""
        return without_label(condition, self.classes)
